"""Progress bar of a training whose length is given in steps."""

from __future__ import annotations

from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar


class StepProgressBar(RichProgressBar):
    """Counts the steps of the whole training if `max_steps` ends it.

    The remaining time is then that of the run. Lightning's bar counts the batches of an epoch, and
    shows "0/-2" if no number of epochs is set.

    It overrides private methods of Lightning 2.6.
    """

    _shown: dict[str, Any] | None = None

    def _initialize_train_progress_bar_id(self) -> None:
        if self.trainer.max_steps < 1:
            super()._initialize_train_progress_bar_id()
        elif self.progress is not None:
            done, total = self.trainer.global_step, self.trainer.max_steps
            self.train_progress_bar_id = self.progress.add_task("Step", completed=done, total=total)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add the bar once, not again at every epoch."""
        if trainer.max_steps < 1:
            super().on_train_epoch_start(trainer, pl_module)
        elif self.is_enabled and self.train_progress_bar_id is None:
            self._initialize_train_progress_bar_id()

    def _update(
        self, progress_bar_id: Any, current: int, visible: bool = True, hard: bool = False
    ) -> None:
        is_train_bar = progress_bar_id is not None and progress_bar_id == self.train_progress_bar_id
        if is_train_bar and self.trainer.max_steps > 0:
            # Lightning passes the number of the batch in its epoch.
            current = self.trainer.global_step
        super()._update(progress_bar_id, current, visible, hard)

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """All metrics but the logger's version: a run has one folder and one history.

        In a training they are read at steps that are logged: the host waits for the device for each
        of them.
        """
        due = trainer.global_step % max(trainer.log_every_n_steps, 1) == 0
        if due or not trainer.training or self._shown is None:
            self._shown = {**super().get_metrics(trainer, pl_module)}
            self._shown.pop("v_num", None)
        return self._shown
