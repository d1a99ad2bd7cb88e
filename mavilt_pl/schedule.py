"""The learning-rate schedule that every long training here uses."""

from __future__ import annotations

from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR


def warm_cosine(optimizer: Optimizer, warmup: int, steps: int) -> SequentialLR:
    """Linear warm-up over `warmup` steps, then a cosine down to a hundredth of the rate at step `steps`."""
    warm = max(warmup, 1)
    rate = optimizer.param_groups[0]["lr"]
    cool = CosineAnnealingLR(optimizer, max(steps - warm, 1), eta_min=rate * 0.01)
    return SequentialLR(optimizer, [LinearLR(optimizer, 1 / warm, 1.0, warm), cool], [warm])
