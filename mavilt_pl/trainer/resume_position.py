"""Where in the epoch a resumed run goes on.

The rule: at the item of the epoch's order that came next, whatever the batch size and the number of
ranks are now. Nothing is repeated; what is left out at the epoch's end is what does not fill a
batch of all ranks, as in any epoch. Optimizer steps go on counting, so `max_steps`, schedules and
checkpoints come when they would have; a step takes the new number of items. Where batches are
accumulated, the first step may be made of fewer.
"""

from __future__ import annotations

from lightning import Callback, LightningModule, Trainer

from mavilt_pl.data.datamodule import ResumableLoader


class ResumePosition(Callback):
    """Sets Lightning's count of the epoch's batches to what it would be had the epoch begun with
    the present layout.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        loader, progress = trainer.train_dataloader, trainer.fit_loop.epoch_loop.batch_progress
        if not trainer.ckpt_path or not isinstance(loader, ResumableLoader):
            return
        moved = len(loader) - loader.left - progress.current.ready
        for count in ("ready", "started", "processed", "completed"):
            setattr(progress.current, count, getattr(progress.current, count) + moved)
