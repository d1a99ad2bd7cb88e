"""The callback that writes what a test computed, with its provenance."""

from __future__ import annotations

import json
import os
import resource
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning import Callback, LightningModule, Trainer
from PIL import Image

from mavilt_pl.checkpoint import load_tensors, sha256
from mavilt_pl.errors import UserError
from mavilt_pl.evaluation.predictions import FILE as PREDICTIONS
from mavilt_pl.evaluation.predictions import write_predictions
from mavilt_pl.evaluation.results import MARKS, Figure, check_figures, versions, write_json
from mavilt_pl.evaluation.subgroups import FILE as SUBGROUPS
from mavilt_pl.evaluation.subgroups import write_subgroups
from mavilt_pl.parallel.own_files import check_replaceable

# Settings that are paths: figures must not depend on where a run's files are.
PATH_KEYS = {
    "corpora",
    "tokens",
    "replay",
    "backbone",
    "init_from",
    "encoder",
    "_instantiator",
    "_class_path",
}
NOTICE = (
    "Texts and images of the tested studies. Unless they are synthetic, share them only as you may "
    "share the dataset."
)


def commit() -> str | None:
    """The commit of the source tree; None if the package is installed without one."""
    try:
        # Of the source tree, not of the working directory. Without git, or in a container without
        # the repository, figures are still written.
        git = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
            timeout=5,
        )
        return git.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


class ResultsWriter(Callback):
    """Writes results.json, samples, predictions and subgroups to `<default_root_dir>/test/`.

    It collects what the other callbacks of the trainer computed. `figures` and `path` are kept for
    the command line, which prints them.
    """

    def __init__(self) -> None:
        self.figures: list[Figure] = []
        self.path: Path | None = None

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that the results may be written, before they are computed."""
        folder = Path(trainer.default_root_dir) / "test"
        for name in ("results.json", "samples.json", PREDICTIONS, SUBGROUPS):
            check_replaceable(folder / name, MARKS[name])

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the files.

        Raises:
            UserError: no callback computed a figure.
        """
        # Metrics were gathered on all ranks; one writes.
        if not trainer.is_global_zero:
            return
        folder = Path(trainer.default_root_dir) / "test"
        sources = self._callbacks_with_figures(trainer)
        figures: list[Figure] = []
        for callback in sources:
            figures += callback.figures
        if not figures:
            raise UserError(
                "the test computed no figure: add metric callbacks (mavilt_pl.callbacks) to "
                "trainer.callbacks"
            )
        precision = _weights_dtype(pl_module)
        if precision != "float32":
            figures = [{**one, "protocol": f"{one['protocol']}; {precision}"} for one in figures]
        samples: dict[str, Any] = {"notice": NOTICE}
        for callback in sources:
            if callback.examples:
                samples[callback.task] = _save_samples(callback.examples, folder, callback.task)
        # Before results.json, whose presence means that a test is complete.
        write_json(folder / "samples.json", samples)
        provenance = _provenance(trainer, pl_module)
        predictions: list[dict[str, Any]] = []
        for callback in sources:
            predictions += getattr(callback, "predictions", [])
        write_predictions(folder / PREDICTIONS, predictions, NOTICE, provenance)
        # From the predictions alone, as `mavilt score` does it.
        data: Any = trainer.datamodule
        write_subgroups(folder, predictions, list(data.findings))
        content = {"figures": check_figures(figures, str(folder)), "made_by": provenance}
        self.figures, self.path = figures, folder / "results.json"
        write_json(self.path, content)

    @staticmethod
    def _callbacks_with_figures(trainer: Trainer) -> list[Any]:
        """The metric callbacks of all tasks, and the one that measures forgetting."""
        found = []
        for callback in trainer.callbacks:
            if hasattr(callback, "figures") and not isinstance(callback, ResultsWriter):
                found.append(callback)
        return found


def _save_samples(examples: list[dict[str, Any]], folder: Path, task: str) -> list[dict[str, Any]]:
    """Samples with their arrays saved as PNG files, named relative to the folder."""
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    saved = []
    for number, example in enumerate(examples):
        row = dict(example)
        for key, value in example.items():
            # Arrays are images; everything else is plain JSON.
            if hasattr(value, "dtype"):
                name = f"pictures/{task}-{number:03d}-{key}.png"
                Image.fromarray(value).save(folder / name)
                row[key] = name
        saved.append(row)
    return saved


def _provenance(trainer: Trainer, module: LightningModule) -> dict[str, Any]:
    """What the figures were made by: model, data, settings, versions, machine."""
    data: Any = trainer.datamodule
    checkpoint = Path(str(trainer.ckpt_path)) if trainer.ckpt_path else None
    judges = {}
    for callback in trainer.callbacks:
        judge = getattr(callback, "judge_path", None)
        # By content, since two figures are comparable only under the same judge, whatever its path.
        if judge and Path(judge).is_file():
            judges[callback.task] = sha256(Path(judge))
    caches = {}
    for corpus, cache in zip(data.corpora, data.token_caches):
        # The tokenizer's checksum.
        caches[corpus.name] = cache.tokenizer
    # Of the file, so a figure can be traced even if the run's folder is renamed.
    checksum = None
    if checkpoint is not None and checkpoint.is_file():
        checksum = sha256(checkpoint)
    return {
        "checkpoint_sha256": checksum,
        "training": _training(checkpoint),
        "corpus": {corpus.name: corpus.fingerprint for corpus in data.corpora},
        "judges": judges,
        "tokens": caches,
        "config": {
            "model": _without_paths(module.hparams),
            "data": _without_paths(data.hparams),
        },
        "decoding": dict(module.hparams.get("sampling", {})),
        "precision": _weights_dtype(module),
        # Of the test. Lightning's `seed_everything` leaves it in the environment.
        "seed": int(os.environ.get("PL_GLOBAL_SEED", 0)),
        "versions": versions(),
        "commit": commit(),
        "threads": torch.get_num_threads(),
        # `ru_maxrss` is in KiB on Linux.
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def _weights_dtype(module: LightningModule) -> str:
    """Type of the module's weights, such as float32."""
    weight = next(module.parameters(), None)
    return "float32" if weight is None else str(weight.dtype).removeprefix("torch.")


def _training(checkpoint: Path | None) -> dict[str, Any]:
    """Steps and seed of the training that made a checkpoint; None where they are not known."""
    if checkpoint is None or not checkpoint.is_file():
        return {"steps": None, "seed": None}
    # Mapped, not read: a checkpoint of a large model takes a while.
    steps = load_tensors(checkpoint, mmap=True).get("global_step")
    # A checkpoint has no seed; a figure of an unknown seed cannot be repeated, and says so.
    seed = None
    # RUN/config.yaml beside RUN/checkpoints is the training's.
    config = checkpoint.resolve().parent.parent / "config.yaml"
    if config.is_file():
        try:
            settings = yaml.safe_load(config.read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError):
            settings = None
        if isinstance(settings, dict):
            seed = settings.get("seed_everything")
    return {"steps": steps, "seed": seed}


def _without_paths(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without paths, as plain values of JSON."""
    # `default=str`, since a setting may be a Path or an object of the command line.
    kept = {key: value for key, value in settings.items() if key not in PATH_KEYS}
    return json.loads(json.dumps(kept, default=str))
