"""The position in the epoch at which a resumed run continues.

A resumed run continues at the next item of the epoch's order, whatever the batch size and the
number of ranks are now. Nothing is repeated. As in any epoch, the last items that do not fill a
batch of all ranks are dropped.

Optimizer steps are counted on, so `max_steps`, schedules and checkpoints stay where they were; a
step takes the new number of items. If gradients are accumulated, the first step may have fewer
batches.
"""

from __future__ import annotations

from lightning import Callback, LightningModule, Trainer

from mavilt_pl.data.datamodule import ResumableLoader


class ResumePosition(Callback):
    """Sets Lightning's count of the epoch's batches to that of the present batch size and ranks."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Shift the counts by what another batch size or number of ranks makes of them."""
        loader = trainer.train_dataloader
        if not trainer.ckpt_path or not isinstance(loader, ResumableLoader):
            return
        # `len(loader)` is the epoch in batches of the present size, `loader.left` what remains.
        position = len(loader) - loader.left
        progress = trainer.fit_loop.epoch_loop.batch_progress.current
        shift = position - progress.ready
        progress.ready += shift
        progress.started += shift
        progress.processed += shift
        progress.completed += shift
