"""The learning-rate schedule that every long training here uses."""

from __future__ import annotations

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def warm_cosine(optimizer: Optimizer, warmup: int, steps: int) -> LambdaLR:
    """Linear warm-up over `warmup` steps, then a cosine down to a hundredth of each group's rate at
    step `steps`.
    """

    def share(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        passed = min((step - warmup) / max(steps - warmup, 1), 1.0)
        return 0.01 + 0.99 * (1 + math.cos(math.pi * passed)) / 2

    return LambdaLR(optimizer, share)
