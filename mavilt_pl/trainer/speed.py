"""How fast a training is, in its log and its progress bar."""

from __future__ import annotations

import resource
import time
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

GB = 1e9


class Speed(Callback):
    """Logs studies and positions a second, MFU and peak memory at steps that are logged.

    Rates are of all ranks, since the last logged step; validations and checkpoints in between are
    left out. Positions and MFU are of the language stages; MFU needs a GPU whose peak is known.
    """

    def __init__(self) -> None:
        self.studies = self.positions = self.flops = self.seconds = 0.0
        self.start = 0.0

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Start the clock, and count the batch."""
        # Waiting for a batch is before this: the loader's time is not the step's.
        self.start = time.monotonic()
        self.studies += len(batch.get("studies", batch.get("texts", ())))
        for packed in batch.get("packed", ()):
            self.positions += packed.ids_BT.numel()
        count = getattr(pl_module, "batch_flops", None)
        if count is not None:
            self.flops += count(batch)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop the clock; log the rates if this step is logged."""
        self.seconds += time.monotonic() - self.start
        if trainer.global_step % max(trainer.log_every_n_steps, 1) or not self.seconds:
            return
        # Ranks have batches of about the same size.
        rates = {"studies_per_s": trainer.world_size * self.studies / self.seconds}
        if self.positions:
            rates["positions_per_s"] = trainer.world_size * self.positions / self.seconds
        peak = getattr(pl_module, "peak_flops", None)
        if peak and self.flops:
            rates["mfu"] = self.flops / self.seconds / peak
        rates["memory_gb"] = _peak_memory(pl_module.device) / GB
        # One number for the bar, all for the loggers.
        named = {f"speed/{name}": value for name, value in rates.items()}
        pl_module.log_dict(named, batch_size=1)
        pl_module.log("studies/s", rates["studies_per_s"], prog_bar=True, logger=False)
        self.studies = self.positions = self.flops = self.seconds = 0.0


def _peak_memory(device: torch.device) -> int:
    """Bytes: of the GPU's allocator, or resident in this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # In KiB on Linux.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
