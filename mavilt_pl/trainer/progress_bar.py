"""The progress bar of a training whose length is told in steps."""

from __future__ import annotations

from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar


class StepProgressBar(RichProgressBar):
    """Counts the steps of the whole training, where `max_steps` ends it, so that the time left is
    that of the run. (Lightning's counts batches of an epoch, and says "0/-2" where no number of
    epochs is set.)
    """

    def _initialize_train_progress_bar_id(self) -> None:
        if self.trainer.max_steps < 1:
            super()._initialize_train_progress_bar_id()
        elif self.progress is not None:
            done, total = self.trainer.global_step, self.trainer.max_steps
            self.train_progress_bar_id = self.progress.add_task("Step", completed=done, total=total)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.max_steps < 1:
            super().on_train_epoch_start(trainer, pl_module)
        elif self.is_enabled and self.train_progress_bar_id is None:
            self._initialize_train_progress_bar_id()

    def _update(
        self, progress_bar_id: Any, current: int, visible: bool = True, hard: bool = False
    ) -> None:
        if (
            self.trainer.max_steps > 0
            and progress_bar_id is not None
            and progress_bar_id == self.train_progress_bar_id
        ):
            current = self.trainer.global_step
        super()._update(progress_bar_id, current, visible, hard)

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """All but the logger's version: a run has one folder and one history."""
        return {
            name: value
            for name, value in super().get_metrics(trainer, pl_module).items()
            if name != "v_num"
        }
