"""LightningCLI for every module: `mavilt fit --config stage1.yaml`, from any folder.

A config that is not a file here is looked up among the shipped ones. Each run keeps everything under
`trainer.default_root_dir` (default `runs/<module>`): `checkpoints/last.ckpt`, the logs in `tensorboard/`, and its
config. The first run and the hundredth use the same command: `--ckpt_path last` starts anew where there is nothing to
resume.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint, RichProgressBar
from lightning.pytorch.cli import LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger

from mavilt_pl.data.datamodule import CXRDataModule
from mavilt_pl.data.study import DataError

CONFIGS = next(
    (p for p in (Path(__file__).parent / "configs", Path(__file__).parent.parent / "configs") if p.is_dir()),
    Path(__file__).parent / "configs",
)


def find_config(name: str) -> Path:
    """A config file here, or a shipped one of that name (`.yaml` may be left out)."""
    for path in (Path(name), CONFIGS / name, CONFIGS / f"{name}.yaml"):
        if path.is_file():
            return path
    shipped = sorted(str(p.relative_to(CONFIGS)) for p in CONFIGS.rglob("*.yaml"))
    raise DataError(f"config {name} is neither a file here nor a shipped one; shipped are: {', '.join(shipped)}")


def _with_configs(argv: list[str]) -> list[str]:
    """The arguments with every --config resolved to a path."""
    out, following = [], False
    for word in argv:
        if following:
            word = str(find_config(word))
        elif word.startswith("--config="):
            word = f"--config={find_config(word.removeprefix('--config='))}"
        following = word in ("--config", "-c")
        out.append(word)
    return out


class MaviltCLI(LightningCLI):
    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Give every run one folder, one TensorBoard history and a `last.ckpt` that a resumed run finds again."""
        assert self.subcommand is not None
        config = self.config[self.subcommand]
        chosen = config.trainer
        if not chosen.default_root_dir:
            chosen.default_root_dir = f"runs/{config.model.class_path.rsplit('.', 1)[-1].lower()}"
        root = Path(chosen.default_root_dir)
        if chosen.logger is None or chosen.logger is True:
            kwargs["logger"] = TensorBoardLogger(root, name="", version="tensorboard") if self.subcommand == "fit" else False
        trainer = super().instantiate_trainer(**kwargs)
        extra: list[Any] = []
        if chosen.enable_progress_bar is not False and sys.stdout.isatty():
            extra.append(RichProgressBar())
        if self.subcommand == "fit":
            if not trainer.checkpoint_callbacks or all(c.dirpath is None for c in trainer.checkpoint_callbacks):
                trainer.callbacks = [c for c in trainer.callbacks if not isinstance(c, ModelCheckpoint)]
                every = self._get(config, "checkpoint_every")
                extra.append(ModelCheckpoint(root / "checkpoints", filename="{step}", save_last=True, every_n_train_steps=every, save_on_train_epoch_end=False))  # fmt: skip
            if trainer.loggers:
                extra.append(LearningRateMonitor("step"))
        if extra and isinstance(extra[0], RichProgressBar):
            from lightning.pytorch.callbacks import ProgressBar

            trainer.callbacks = [c for c in trainer.callbacks if not isinstance(c, ProgressBar)]
        # Checkpoints are saved after every other callback has put its state in order.
        trainer.callbacks = [
            *[c for c in trainer.callbacks if not isinstance(c, ModelCheckpoint)],
            *[c for c in extra if not isinstance(c, ModelCheckpoint)],
            *[c for c in [*trainer.callbacks, *extra] if isinstance(c, ModelCheckpoint)],
        ]
        for callback in extra:
            if hasattr(callback, "setup") and isinstance(callback, RichProgressBar):
                trainer._callback_connector.trainer = trainer
        return trainer

    @staticmethod
    def _get(config: Any, name: str) -> Any:
        return config.get(name)

    def add_arguments_to_parser(self, parser: Any) -> None:
        parser.add_argument("--checkpoint_every", type=int, default=500, help="steps between checkpoints")


def run(argv: list[str]) -> int:
    """fit, validate, test or predict."""
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*Checkpoint directory .* exists and is not empty.*")
    torch.set_float32_matmul_precision("high")
    MaviltCLI(
        LightningModule,
        CXRDataModule,
        subclass_mode_model=True,
        args=_with_configs(argv),
        save_config_callback=SaveConfigCallback,
        save_config_kwargs={"overwrite": True},
        seed_everything_default=0,
    )
    return 0
