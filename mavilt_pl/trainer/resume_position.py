"""Where in the data a resumed run continues: the same whenever, and by what, the run was ended.

It continues at the next item of the epoch's order, whatever the batch size and the number of ranks
are now. Nothing is repeated; at the epoch's end, items that do not fill a batch of all ranks are
dropped as in any epoch. Optimizer steps keep counting, so `max_steps`, schedules and checkpoints
come when they would have; a step takes the new number of items. If batches are accumulated, the
first step may be made of fewer.

Lightning's own counts depend on what it was doing at the time of the save. A run that `max_steps`
ended in the middle of an epoch says that the epoch is over, a checkpoint of an epoch's last step
says that it is not, and each resume from such a checkpoint drifts further (Lightning-AI/
pytorch-lightning#19617, #20801). So the position of the loader, which is saved too, decides, and
the counts are derived from it.

Uses private parts of Lightning, as read in version 2.6.6: the layout of `checkpoint["loops"]`, and
`_TrainingEpochLoop._should_check_val_fx`, `_should_accumulate` and `_batches_that_stepped`.
"""

from __future__ import annotations

from typing import Any

from lightning import Callback, LightningModule, Trainer

from mavilt_pl.data.samplers import ResumableLoader

COUNTS = ("ready", "started", "processed", "completed")


class ResumePosition(Callback):
    """Sets Lightning's counts of epochs and batches to the position of the saved loader.

    It comes before `TensorBoardResume`, which continues a validation that was due.
    """

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Rewrite the saved counts as those of a save between two batches."""
        loops = checkpoint["loops"]["fit_loop"]
        loaders = loops["state_dict"].get("combined_loader", [])
        # A checkpoint of other loaders than ours says nothing about a position.
        if len(loaders) != 1 or "num_consumed" not in loaders[0]:
            return
        position, batches = loaders[0], loops["epoch_loop.batch_progress"]
        # `limit_train_batches` ends an epoch that the loader has more of.
        if batches["is_last_batch"] and position["num_consumed"]:
            position.update(epoch=position["epoch"] + 1, num_consumed=0)
        for count in COUNTS:
            batches["total"][count] = batches["total"]["ready"]
            batches["current"][count] = batches["current"]["ready"]

        epoch, begun = position["epoch"], position["num_consumed"] > 0
        if not begun and checkpoint.get("validation_due"):
            # Lightning ends this epoch again after the validation that is due.
            epoch, begun = epoch - 1, True
        elif not begun:
            batches["current"].update(dict.fromkeys(COUNTS, 0))
            batches["is_last_batch"] = False
        for part in ("total", "current"):
            loops["epoch_progress"][part].update(
                ready=epoch + begun, started=epoch + begun, processed=epoch, completed=epoch
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Shift the counts of the epoch that is resumed to the present layout."""
        loader, loop = trainer.train_dataloader, trainer.fit_loop.epoch_loop
        if not trainer.ckpt_path or not isinstance(loader, ResumableLoader):
            return
        # `ready` was saved as a number of batches of the old size. Lightning ends the epoch when it
        # reaches the loader's length, so it is moved to what this layout's count would be.
        progress = loop.batch_progress.current
        shift = len(loader) - loader.batches_left - progress.ready
        for count in COUNTS:
            setattr(progress, count, getattr(progress, count) + shift)

        # The step number of what is logged. Lightning counts the last batch once more if its
        # validation is continued or skipped.
        fetcher, counts_again = trainer.fit_loop._data_fetcher, False
        if fetcher is not None and loop.restarting and not loop._should_accumulate():
            counts_again = loop._should_check_val_fx(fetcher)
        loop._batches_that_stepped = trainer.global_step - int(counts_again)
