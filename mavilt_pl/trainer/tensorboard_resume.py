"""One TensorBoard history, however often a run was interrupted: nothing twice, nothing missing.

A checkpoint records the length of each event file at the time of the save. A run that resumes from
it truncates the files to these lengths and continues in a file of its own. Lightning does two
things only after the save, so the checkpoint records them too: it logs the metrics of the step, and
it runs a validation that is due, which it would skip after a resume. Both may be all that remains
to do: then no step is made.

A run that starts from scratch renames the event files that it finds, so that TensorBoard does not
read them: they are of another run, or of steps without a checkpoint.

Uses private parts of Lightning, as read in version 2.6.6: `_FitLoop.epoch_loop` and its
`batch_progress`, `_batches_that_stepped` and `_should_check_val_fx`, `_FitLoop._data_fetcher`,
`Trainer._logger_connector`, and the layout of `checkpoint["loops"]`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

EVENTS = "events.out.tfevents.*"


def _is_between_batch_and_validation(trainer: Trainer) -> bool:
    """Whether the current batch is processed but its logging and validation are not done yet."""
    progress = trainer.fit_loop.epoch_loop.batch_progress.current
    return progress.processed > progress.completed


class TensorBoardResume(Callback):
    """Keeps one TensorBoard history over all starts of a run.

    Args:
        root: the run's folder; a checkpoint of another folder does not change its history.
        logger: the run's.
    """

    def __init__(self, root: Path, logger: TensorBoardLogger):
        self.root, self.logger = root, logger
        # Event files of earlier starts.
        self.earlier = sorted(Path(logger.log_dir).glob(EVENTS))
        self.trainer: Trainer | None = None
        self.pending: dict[str, Any] | None = None  # metrics that were saved before being logged
        self.only_validates = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Keep the trainer: `state_dict` is not given one."""
        self.trainer = trainer

    def state_dict(self) -> dict[str, Any]:
        """Event files with their lengths in bytes, and the step's metrics if not logged yet."""
        if self.trainer is None or not self.trainer.is_global_zero:
            return {}
        # Otherwise the file on the disk is shorter than what has been logged.
        self.logger.experiment.flush()
        files = {path.name: path.stat().st_size for path in Path(self.logger.log_dir).glob(EVENTS)}
        return {"files": files, **self._unlogged_metrics(self.trainer)}

    @staticmethod
    def _unlogged_metrics(trainer: Trainer) -> dict[str, Any]:
        connector = trainer._logger_connector
        if not _is_between_batch_and_validation(trainer):
            return {}
        if not (trainer.training and connector.should_update_logs):
            return {}
        metrics = {name: float(value) for name, value in connector.metrics["log"].items()}
        if not metrics:
            return {}
        # As Lightning's own logging adds it.
        metrics["epoch"] = trainer.current_epoch
        return {"step": trainer.fit_loop.epoch_loop._batches_that_stepped, "metrics": metrics}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Truncate the event files to what the checkpoint has seen."""
        trainer = self.trainer
        if trainer is None or not trainer.is_global_zero:
            return
        if "files" not in state_dict:
            return
        checkpoint = Path(str(trainer.ckpt_path)).resolve()
        # A checkpoint of another run: its lengths are of other files.
        if self.root.resolve() not in checkpoint.parents:
            return
        for path in self.earlier:
            length = state_dict["files"].get(path.name)
            # Written by a start that came after this checkpoint: the steps in it will be made
            # again.
            if length is None:
                path.unlink(missing_ok=True)
            elif path.stat().st_size > length:
                os.truncate(path, length)
        if state_dict.get("metrics"):
            self.pending = {"metrics": state_dict["metrics"], "step": state_dict["step"]}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log what was saved unlogged; put the history of an earlier run aside."""
        if not trainer.ckpt_path and trainer.is_global_zero:
            for path in self.earlier:
                # Lightning deletes nothing, and so do we: the files may be all that there is of
                # that run.
                path.rename(path.with_name(path.name.replace("tfevents", "aside")))
        # The truncated files end just before these metrics.
        if self.pending:
            self.logger.log_metrics(**self.pending)
            self.pending = None
        if self.only_validates:
            # Otherwise Lightning finds that all steps are made and returns at once.
            trainer.fit_loop.epoch_loop.max_steps += 1

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Correct the number of steps again, see `on_fit_start`."""
        if self.only_validates and not trainer.sanity_checking:
            trainer.fit_loop.epoch_loop.max_steps -= 1
            self.only_validates = False

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Record whether a validation is due."""
        loop = trainer.fit_loop.epoch_loop
        fetcher = trainer.fit_loop._data_fetcher
        due = False
        if _is_between_batch_and_validation(trainer) and fetcher is not None:
            # Asked now: after a resume the counts that it depends on are different ones.
            due = bool(loop._should_check_val_fx(fetcher))
        checkpoint["validation_due"] = due

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Turn "the batch has ended" into "its validation has begun", which Lightning resumes."""
        if not checkpoint.get("validation_due"):
            return
        all_steps_made = checkpoint["global_step"] >= trainer.max_steps > 0
        # Without validation batches `on_validation_start` would never come to take the extra step
        # back.
        self.only_validates = all_steps_made and trainer.limit_val_batches > 0
        loops = checkpoint["loops"]["fit_loop"]
        batches = loops["epoch_loop.batch_progress"]
        validation = loops["epoch_loop.val_loop.batch_progress"]
        for count in ("total", "current"):
            batches[count]["completed"] = batches[count]["processed"]
        validation["total"].update(ready=1, started=1, processed=0, completed=0)
        validation["current"].update(ready=0, started=0, processed=0, completed=0)
        validation["is_last_batch"] = False
