"""Words of the command line that many tests say."""

from __future__ import annotations

FINDINGS = ["cardiomegaly", "pleural effusion", "edema", "support devices"]
DATA = "--data.findings=[" + ",".join(FINDINGS) + "]"
QUIET = [
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--trainer.accelerator=cpu",
]
