"""One TensorBoard history, however often a run was broken off: what is done again is not told
twice, and nothing is missing.

A checkpoint keeps how long each event file was when it was saved. A run that goes on from it cuts
the files back to that, before it writes on in one of its own. Two things that Lightning would tell
only after the save are kept beside: the metrics of the step itself, and that a validation is due,
which it would otherwise leave out after a resume. Both may be all that is left to do: then no step
is made. A run that begins anew puts the files that it finds aside: what they tell is of steps that
no checkpoint was made of, or of another run.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

EVENTS = "events.out.tfevents.*"


class TensorBoardResume(Callback):
    """Args: root: the run's folder; checkpoints of other folders leave its history alone."""

    def __init__(self, root: Path, logger: Any):
        self.root = root
        self.logger = logger if isinstance(logger, TensorBoardLogger) else None
        folder = Path(self.logger.log_dir) if self.logger else None
        self.earlier = sorted(folder.glob(EVENTS)) if folder else []
        self.trainer: Trainer | None = None
        self.pending: dict[str, Any] | None = None
        self.only_validates = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.trainer = trainer

    def state_dict(self) -> dict[str, Any]:
        """Event files and their lengths in bytes; the step's metrics that are not told yet."""
        if self.logger is None or self.trainer is None or not self.trainer.is_global_zero:
            return {}
        self.logger.experiment.flush()
        files = {path.name: path.stat().st_size for path in Path(self.logger.log_dir).glob(EVENTS)}
        return {"files": files, **self._untold(self.trainer)}

    @staticmethod
    def _untold(trainer: Trainer) -> dict[str, Any]:
        loop, connector = trainer.fit_loop.epoch_loop, trainer._logger_connector
        between = loop.batch_progress.current.processed > loop.batch_progress.current.completed
        if not (between and trainer.training and connector.should_update_logs):
            return {}
        told = {name: float(value) for name, value in connector.metrics["log"].items()}
        return (
            {
                "step": loop._batches_that_stepped,
                "metrics": {**told, "epoch": trainer.current_epoch},
            }
            if told
            else {}
        )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        trainer = self.trainer
        if (
            trainer is None
            or self.logger is None
            or not trainer.is_global_zero
            or "files" not in state_dict
        ):
            return
        if self.root.resolve() not in Path(str(trainer.ckpt_path)).resolve().parents:
            return
        for path in self.earlier:
            length = state_dict["files"].get(path.name)
            if length is None:
                path.unlink(missing_ok=True)
            elif path.stat().st_size > length:
                os.truncate(path, length)
        self.pending = state_dict.get("metrics") and {
            "metrics": state_dict["metrics"],
            "step": state_dict["step"],
        }

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.ckpt_path and trainer.is_global_zero:
            for path in self.earlier:
                path.rename(
                    path.with_name(path.name.replace("tfevents", "aside"))
                )  # TensorBoard does not read it
        if self.pending and self.logger is not None:
            self.logger.log_metrics(**self.pending)
            self.pending = None
        if self.only_validates:
            trainer.fit_loop.epoch_loop.max_steps += (
                1  # else Lightning finds all steps made and leaves at once
            )

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.only_validates and not trainer.sanity_checking:
            trainer.fit_loop.epoch_loop.max_steps -= 1
            self.only_validates = False

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        loop = trainer.fit_loop.epoch_loop
        between = loop.batch_progress.current.processed > loop.batch_progress.current.completed
        fetcher = trainer.fit_loop._data_fetcher
        checkpoint["validation_due"] = bool(
            between and fetcher is not None and loop._should_check_val_fx(fetcher)
        )

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Turn "the batch has ended" into "its validation has begun", from which Lightning does go
        on with it.
        """
        if not checkpoint.get("validation_due"):
            return
        self.only_validates = (
            checkpoint["global_step"] >= trainer.max_steps > 0 and trainer.limit_val_batches > 0
        )
        loops = checkpoint["loops"]["fit_loop"]
        batches, validation = (
            loops["epoch_loop.batch_progress"],
            loops["epoch_loop.val_loop.batch_progress"],
        )
        for count in ("total", "current"):
            batches[count]["completed"] = batches[count]["processed"]
            begun = 1 if count == "total" else 0
            validation[count].update(ready=begun, started=begun, processed=0, completed=0)
        validation["is_last_batch"] = False
