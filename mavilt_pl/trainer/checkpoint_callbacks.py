"""Which checkpoints a training writes, when, and which of them stay."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from mavilt_pl.checkpoint import sequence_number
from mavilt_pl.errors import UserError
from mavilt_pl.parallel.atomic_write import sync_folder
from mavilt_pl.trainer.checkpoint_io import (
    VerifiedCheckpointIO,
    check_writable,
    newest_whole,
    remove_partial_files,
)


def _another_name(path: Path, name: Path) -> None:
    """Give a file a second name, at once and without a second copy where the file system can."""
    part = name.with_name(f".{name.name}.link.part")
    part.unlink(missing_ok=True)
    try:
        os.link(path, part)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise
        shutil.copyfile(path, part)
        with part.open("rb") as file:
            os.fsync(file.fileno())
    os.replace(part, name)
    sync_folder(name.parent)


class StepCheckpoints(ModelCheckpoint):
    """`step=N.ckpt` every so many steps and at the end, the last `keep` of them; `last.ckpt` is the
    newest's other name.

    Args:
        folder: where they lie.
        every: optimizer steps between two.
        keep: how many stay; 2 or more leave one to fall back on.
    """

    def __init__(self, folder: Path, every: int, keep: int):
        super().__init__(
            folder, save_last=True, every_n_train_steps=every, enable_version_counter=False
        )
        if every < 1 or keep < 1:
            raise UserError(
                f"checkpoint_every {every}, checkpoint_keep {keep}: expected 1 or more (to save "
                f"nothing: "
                "trainer.enable_checkpointing false)"
            )
        self.folder, self.every, self.keep, self.saved = folder, every, keep, -1

    def _find_last_checkpoints(self, trainer: Trainer) -> set[str]:
        """What `--ckpt_path last` means."""
        newest = newest_whole(self.folder)
        return set() if newest is None else {str(newest)}

    def save(self, trainer: Trainer) -> None:
        """Save this step, once; on all ranks."""
        if self.saved == trainer.global_step or trainer.fast_dev_run:
            return
        path = self.folder / f"step={trainer.global_step}.ckpt"
        trainer.save_checkpoint(path, weights_only=False)
        self.saved = trainer.global_step
        self.best_model_path = self.last_model_path = str(path)
        if trainer.is_global_zero:
            self._files(trainer).then(lambda: self._named(path))
        trainer.strategy.barrier("StepCheckpoints.save")

    @staticmethod
    def _files(trainer: Trainer) -> VerifiedCheckpointIO:
        return trainer.strategy.checkpoint_io  # type: ignore[return-value]

    def _named(self, path: Path) -> None:
        """It is the last, and those before the last `keep` go."""
        _another_name(path, self.folder / "last.ckpt")
        steps = sorted(self.folder.glob("step=*.ckpt"), key=sequence_number, reverse=True)
        for old in steps[self.keep :]:
            old.unlink(missing_ok=True)

    def finish(self, trainer: Trainer) -> None:
        """Save this step, and stay until it is on the disk."""
        self.save(trainer)
        self._files(trainer).wait()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nothing is saved again that was resumed from; `last.ckpt` is its name, also where the
        last had been damaged.
        """
        resumed = Path(trainer.ckpt_path) if trainer.ckpt_path else None
        if resumed is not None and resumed.resolve().parent == self.folder.resolve():
            self.saved = trainer._checkpoint_connector._loaded_checkpoint.get("global_step", -1)
            if trainer.is_global_zero and resumed.name.startswith("step="):
                _another_name(resumed, self.folder / "last.ckpt")
        if trainer.is_global_zero:
            check_writable(self.folder)
            remove_partial_files(self.folder)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step and trainer.global_step % self.every == 0:
            self.save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.finish(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Steps are counted, not epochs."""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """What is saved does not depend on when validation runs; but after the last of all, the end
        is saved anew: nothing is due any more.
        """
        if trainer.global_step >= trainer.max_steps > 0 and not trainer.sanity_checking:
            self.saved = -1

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """The last save stays the last: a state that broke is not kept."""

    def state_dict(self) -> dict[str, Any]:
        return {}  # the folder tells

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The folder tells."""


class BestCheckpoint(ModelCheckpoint):
    """`best.ckpt`: of all validations, the one with the smallest or largest value of a logged
    metric.

    Args:
        folder: where it lies.
        wanted: `min:METRIC` or `max:METRIC`, e.g. `max:val/mimic/psnr`.
    """

    def __init__(self, folder: Path, wanted: str):
        mode, _, metric = wanted.partition(":")
        if mode not in ("min", "max") or not metric:
            raise UserError(
                f"checkpoint_best {wanted}: expected min:METRIC or max:METRIC, e.g. "
                f"max:val/mimic/psnr"
            )
        super().__init__(
            folder,
            filename="best",
            monitor=metric,
            mode=mode,
            enable_version_counter=False,
            auto_insert_metric_name=False,
            every_n_epochs=1,
            save_on_train_epoch_end=False,
        )

    def _find_last_checkpoints(self, trainer: Trainer) -> set[str]:
        return set()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        if self.monitor not in trainer.callback_metrics:
            logged = ", ".join(
                sorted(name for name in trainer.callback_metrics if name.startswith("val/"))
            )
            raise UserError(
                f"checkpoint_best: {self.monitor} is not logged in validation; logged are "
                f"{logged or 'none'}"
            )
        super().on_validation_end(trainer, pl_module)
