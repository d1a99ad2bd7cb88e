"""Progress of a training as lines of a log, for runs without a terminal."""

from __future__ import annotations

import logging
import math
import time
from datetime import timedelta
from typing import Any

from lightning import Callback, LightningModule, Trainer

logger = logging.getLogger(__name__)


# Of `Speed`, which comes before this callback.
SPEEDS = {
    "studies_per_s": "{:.3g} studies/s",
    "positions_per_s": "{:,.0f} positions/s",
    "mfu": "MFU {:.2f}",
    "memory_gb": "{:.1f} GB",
}


class ProgressLog(Callback):
    """Logs a line every `log_every_n_steps` steps: step, loss, rate, speed, memory, time left.

    A progress bar writes nothing into a file, so the log of a job would be empty until its end.
    """

    def __init__(self) -> None:
        self.first_step = self.logged_step = 0
        self.start = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note where the run begins: a resumed one has made steps at another speed."""
        self.first_step = self.logged_step = trainer.global_step
        self.start = time.monotonic()

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Log this step if it is due."""
        step, interval = trainer.global_step, max(trainer.log_every_n_steps, 1)
        # Several batches may make one step.
        if not trainer.is_global_zero or step % interval or step == self.logged_step:
            return
        self.logged_step = step
        seconds = (time.monotonic() - self.start) / (step - self.first_step)
        total = trainer.estimated_stepping_batches
        parts = [f"step {step:,}" if total == math.inf else f"step {step:,} of {int(total):,}"]
        loss = trainer.callback_metrics.get("train/loss")
        if loss is not None:
            parts.append(f"loss {float(loss):.4g}")
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        parts += [f"learning rate {rate:.3g}", f"{seconds:.2g} s a step"]
        # What this training has: an encoder has no positions, a CPU no MFU.
        for name, words in SPEEDS.items():
            if f"speed/{name}" in trainer.callback_metrics:
                parts.append(words.format(float(trainer.callback_metrics[f"speed/{name}"])))
        if total != math.inf:
            parts.append(f"{timedelta(seconds=round(seconds * max(total - step, 0)))} left")
        logger.info("%s", ", ".join(parts))
