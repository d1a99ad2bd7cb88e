"""results.json: a flat list of figures and what made them; and the callback that writes it after a
test.
"""

from __future__ import annotations

import json
import math
import os
import platform
import resource
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from PIL import Image as Pillow

from mavilt_pl.checkpoint import sha256
from mavilt_pl.errors import UserError

TASKS = ("tokenizer", "report", "synthesis", "vqa", "text")
KEYS = ("task", "source", "metric", "value", "low", "high", "n", "protocol", "control")


def write_json(path: Path, content: Any) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(
        json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False), encoding="utf-8"
    )
    os.replace(part, path)


def check_figures(figures: Sequence[dict[str, Any]], where: str) -> list[dict[str, Any]]:
    """The figures, each with every key and a protocol; a number without its protocol is refused."""
    for figure in figures:
        missing = [key for key in KEYS if key not in figure]
        if (
            missing
            or figure["task"] not in TASKS
            or not figure["protocol"]
            or not math.isfinite(figure["value"])
        ):
            raise UserError(
                f"{where}: figure {figure.get('metric', '?')} of task {figure.get('task', '?')}: "
                f"missing {missing}, or a value or protocol that says nothing"
            )
    return list(figures)


def read_results(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        check_figures(content["figures"], str(path))
        return content
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is not a results file ({type(error).__name__}: {error}); run the test again"
        ) from None


def versions() -> dict[str, str]:
    from importlib.metadata import version

    names = ("mavilt", "torch", "lightning", "transformers", "torchmetrics")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def commit() -> str | None:
    """The commit of the source tree, where it is one."""
    try:
        here = Path(__file__).parent
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=here,
            capture_output=True,
            text=True,
            check=True,
            timeout=5,
        )
        return done.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


class ResultsWriter(Callback):
    """After a test, writes `<default_root_dir>/test/results.json` and samples.json with their
    pictures.

    It gathers what the metric callbacks of the same trainer computed.
    """

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        out = Path(trainer.default_root_dir) / "test"
        # Every callback that has figures: the metrics of each task, and forgetting.
        sources = [callback for callback in trainer.callbacks if hasattr(callback, "figures")]  # type: ignore[attr-defined]
        figures = [figure for callback in sources for figure in callback.figures]  # type: ignore[attr-defined]
        if not figures:
            raise UserError(
                "the test computed no figure: add metric callbacks (mavilt_pl.callbacks) to "
                "trainer.callbacks"
            )
        samples = {
            callback.task: self._saved(callback.examples, out, callback.task)
            for callback in sources
            if callback.examples
        }  # type: ignore[attr-defined]
        write_json(out / "samples.json", samples)
        write_json(
            out / "results.json",
            {
                "figures": check_figures(figures, str(out)),
                "made_by": self._made_by(trainer, pl_module),
            },
        )
        _print(figures)
        print(f"{len(figures)} figures: {out / 'results.json'}")

    @staticmethod
    def _saved(examples: list[dict[str, Any]], out: Path, task: str) -> list[dict[str, Any]]:
        """Samples with their arrays saved as PNG beside them."""
        (out / "pictures").mkdir(parents=True, exist_ok=True)
        saved = []
        for number, example in enumerate(examples):
            row = dict(example)
            for key, value in example.items():
                if hasattr(value, "dtype"):
                    name = f"pictures/{task}-{number:03d}-{key}.png"
                    Pillow.fromarray(value).save(out / name)
                    row[key] = name
            saved.append(row)
        return saved

    @staticmethod
    def _made_by(trainer: Trainer, module: LightningModule) -> dict[str, Any]:
        data = trainer.datamodule  # type: ignore[attr-defined]
        path = Path(str(trainer.ckpt_path)) if trainer.ckpt_path else None
        decoding = {}
        if "sampling" in module.hparams:
            decoding = dict(module.hparams["sampling"])
            decoding["max_text_tokens"] = module.hparams["model"]["max_text_tokens"]
        return {
            "checkpoint_sha256": sha256(path) if path is not None and path.is_file() else None,
            "corpus": {corpus.name: corpus.fingerprint for corpus in data.corpora},
            "judges": {
                callback.task: sha256(Path(callback.judge_path))  # type: ignore[attr-defined]
                for callback in trainer.callbacks  # type: ignore[attr-defined]
                if Path(getattr(callback, "judge_path", None) or "").is_file()
            },
            "tokens": {
                corpus.name: cache.tokenizer
                for corpus, cache in zip(data.corpora, data.token_caches)
            },
            "config": {"model": _plain(module.hparams), "data": _plain(data.hparams)},
            "decoding": decoding,
            "seed": int(os.environ.get("PL_GLOBAL_SEED", 0)),
            "versions": versions(),
            "commit": commit(),
            "steps": trainer.global_step,
            "threads": torch.get_num_threads(),
            "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        }


def _print(figures: list[dict[str, Any]]) -> None:
    """A table for each source, of what is not of a single finding; the whole is in the file."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    whole = [figure for figure in figures if "/" not in figure["metric"]]
    for source in dict.fromkeys(figure["source"] for figure in whole):
        table = Table(title=source, box=SIMPLE_HEAD, title_justify="left")
        table.add_column("figure", overflow="fold")
        for heading in ("value (95 % interval)", "images shuffled"):
            table.add_column(heading, overflow="fold", justify="right")
        of = {(f["task"], f["metric"], f["control"]): f for f in whole if f["source"] == source}
        for (task, metric, control), figure in of.items():
            other = of.get((task, metric, "shuffled_images"))
            if control is None:
                interval = (
                    ""
                    if figure["low"] is None
                    else f" ({figure['low']:.4g} to {figure['high']:.4g})"
                )
                table.add_row(
                    f"{task} {metric}",
                    f"{figure['value']:.4g}{interval}",
                    f"{other['value']:.4g}" if other else "",
                )
        Console().print(table)


def _plain(values: Any) -> dict[str, Any]:
    """Hyperparameters without paths: a run's figures do not depend on where it lies."""
    hidden = {
        "corpora",
        "tokens",
        "replay",
        "backbone",
        "init_from",
        "encoder",
        "_instantiator",
        "_class_path",
    }
    return json.loads(
        json.dumps({k: v for k, v in dict(values).items() if k not in hidden}, default=str)
    )
