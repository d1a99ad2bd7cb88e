"""Where in the epoch a resumed run continues.

It continues at the next item of the epoch's order, whatever the batch size and the number of ranks
are now. Nothing is repeated; at the epoch's end, items that do not fill a batch of all ranks are
dropped as in any epoch. Optimizer steps keep counting, so `max_steps`, schedules and checkpoints
come when they would have; a step takes the new number of items. If batches are accumulated, the
first step may be made of fewer.
"""

from __future__ import annotations

from lightning import Callback, LightningModule, Trainer

from mavilt_pl.data.samplers import ResumableLoader


class ResumePosition(Callback):
    """Sets Lightning's batch counts to what they would be had the epoch begun with this layout."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Shift the counts of the epoch that is resumed."""
        loader, progress = trainer.train_dataloader, trainer.fit_loop.epoch_loop.batch_progress
        if not trainer.ckpt_path or not isinstance(loader, ResumableLoader):
            return
        # `ready` was saved as a number of batches of the old size. Lightning ends the epoch when it
        # reaches the loader's length, so it is moved to what this layout's count would be.
        shift = len(loader) - loader.batches_left - progress.current.ready
        for count in ("ready", "started", "processed", "completed"):
            setattr(progress.current, count, getattr(progress.current, count) + shift)
