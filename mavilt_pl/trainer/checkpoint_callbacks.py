"""Which checkpoints a training writes, when, and which of them are kept."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any, cast

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


def _link(path: Path, name: Path) -> None:
    """Give a file a second name at once, without a second copy if the file system can."""
    part = name.with_name(f".{name.name}.link.part")
    # A killed run may have left it; os.link does not overwrite.
    part.unlink(missing_ok=True)
    try:
        # A hard link costs nothing; a symbolic one would dangle when the step's file is deleted.
        os.link(path, part)
    except OSError as error:
        # A full disk stays an error: a copy needs more space than a link. Other errors mean that
        # the file system has no hard links.
        if error.errno == errno.ENOSPC:
            raise
        shutil.copyfile(path, part)
        with part.open("rb") as file:
            os.fsync(file.fileno())
    os.replace(part, name)
    sync_folder(name.parent)


class StepCheckpoints(ModelCheckpoint):
    """`step=N.ckpt` every `every` steps and at the end; `last.ckpt` is the newest's second name.

    Which files there are depends on the step alone, not on epochs or validations.

    Args:
        folder: of the checkpoints.
        every: optimizer steps between two checkpoints.
        keep: number of checkpoints kept; with 2 or more, a damaged one has a predecessor.

    Raises:
        UserError: `every` or `keep` is below 1.
    """

    def __init__(self, folder: Path, every: int, keep: int):
        super().__init__(
            folder, save_last=True, every_n_train_steps=every, enable_version_counter=False
        )
        if every < 1 or keep < 1:
            raise UserError(
                f"checkpoint_every {every}, checkpoint_keep {keep}: expected 1 or more (to save "
                "nothing: trainer.enable_checkpointing false)"
            )
        self.folder, self.every, self.keep = folder, every, keep
        self.saved_step = -1

    def _find_last_checkpoints(self, trainer: Trainer) -> set[str]:
        """What `--ckpt_path last` means; private in Lightning 2.6.6."""
        # Lightning would take the file that was changed last, whole or not.
        newest = newest_whole(self.folder)
        return set() if newest is None else {str(newest)}

    def save(self, trainer: Trainer) -> None:
        """Save this step once; call it on all ranks."""
        # The last step may be due by number, at the end of training and by a signal; one save is
        # enough.
        if self.saved_step == trainer.global_step or trainer.fast_dev_run:
            return
        path = self.folder / f"step={trainer.global_step}.ckpt"
        # On all ranks: sharded weights are gathered for it.
        trainer.save_checkpoint(path, weights_only=False)
        self.saved_step = trainer.global_step
        self.best_model_path = self.last_model_path = str(path)
        if trainer.is_global_zero:
            # After a save in the background: last.ckpt never names a file that is still being
            # written.
            self._checkpoint_io(trainer).then(lambda: self._rotate(path))
        # The other ranks wait here for the first one's files, not in a collective of the next step.
        trainer.strategy.barrier("StepCheckpoints.save")

    @staticmethod
    def _checkpoint_io(trainer: Trainer) -> VerifiedCheckpointIO:
        return cast(VerifiedCheckpointIO, trainer.strategy.checkpoint_io)

    def _rotate(self, path: Path) -> None:
        """Name the newest file `last.ckpt`, and delete all but the newest `keep`."""
        # The link first: at no moment is there no last.ckpt.
        _link(path, self.folder / "last.ckpt")
        steps = sorted(self.folder.glob("step=*.ckpt"), key=sequence_number, reverse=True)
        for old in steps[self.keep :]:
            old.unlink(missing_ok=True)

    def finish(self, trainer: Trainer) -> None:
        """Save this step, and wait until it is on the disk."""
        self.save(trainer)
        self._checkpoint_io(trainer).wait()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the step that was resumed from, and check the folder.

        The file that was resumed from becomes `last.ckpt`, also if the last one was damaged.
        """
        # A resume that fails at once must not save its starting point again.
        resumed = Path(trainer.ckpt_path) if trainer.ckpt_path else None
        if resumed is not None and resumed.resolve().parent == self.folder.resolve():
            # Private in Lightning 2.6.6; the step of the file is not public before training.
            loaded = trainer._checkpoint_connector._loaded_checkpoint
            self.saved_step = loaded.get("global_step", -1)
            if trainer.is_global_zero and resumed.name.startswith("step="):
                _link(resumed, self.folder / "last.ckpt")
        if trainer.is_global_zero:
            check_writable(self.folder)
            # Nobody else writes here: the run's lock is held by now.
            remove_partial_files(self.folder)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Save every `every`-th step."""
        if trainer.global_step and trainer.global_step % self.every == 0:
            self.save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the last step."""
        self.finish(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Do nothing: steps are counted, not epochs."""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the end again after the last validation, because then no validation is due any more.

        Otherwise what is saved does not depend on when validation runs.
        """
        if trainer.global_step >= trainer.max_steps > 0 and not trainer.sanity_checking:
            self.saved_step = -1

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Do nothing: the state that failed is not kept, the last save stays the last."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the files in the folder are the state."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Do nothing: the files in the folder are the state."""


class BestCheckpoint(ModelCheckpoint):
    """`best.ckpt`: the checkpoint of the best validation by a logged metric.

    Args:
        folder: of the checkpoint.
        criterion: `min:METRIC` or `max:METRIC`, e.g. `max:val/mimic/psnr`.

    Raises:
        UserError: `criterion` is neither; or, at a validation, the metric is not logged.
    """

    def __init__(self, folder: Path, criterion: str):
        mode, _, metric = criterion.partition(":")
        if mode not in ("min", "max") or not metric:
            raise UserError(
                f"checkpoint_best {criterion}: expected min:METRIC or max:METRIC, e.g. "
                "max:val/mimic/psnr"
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
        """None: `--ckpt_path last` is the business of `StepCheckpoints`."""
        return set()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save if this validation is the best one."""
        if trainer.sanity_checking:
            return
        if self.monitor not in trainer.callback_metrics:
            validated = [name for name in trainer.callback_metrics if name.startswith("val/")]
            logged = ", ".join(sorted(validated)) or "none"
            raise UserError(
                f"checkpoint_best: {self.monitor} is not logged in validation; logged are {logged}"
            )
        super().on_validation_end(trainer, pl_module)
