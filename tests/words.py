"""Command-line arguments that many tests share, and a way to run a command."""

from __future__ import annotations

from pathlib import Path

from mavilt_pl.cli import main

FINDINGS = ["cardiomegaly", "pleural effusion", "edema", "support devices"]
DATA = "--data.findings=[" + ",".join(FINDINGS) + "]"
QUIET = [
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--trainer.accelerator=cpu",
]


def mavilt(command: str, *words: str | Path) -> None:
    """Run a command that must succeed.

    Args:
        command: split at spaces, e.g. `fit --config stage1.yaml`.
        words: further arguments, each kept as one, such as paths.
    """
    assert main([*command.split(), *map(str, words)]) == 0
