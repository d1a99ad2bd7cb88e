"""The learning-rate schedule of all long trainings."""

from __future__ import annotations

import math
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR


def rate_share(step: int, warmup: int, steps: int) -> float:
    """Share of the peak learning rate at a step.

    Linear over `warmup` steps, then a cosine from 1 down to 0.01 at step `steps`. transformers'
    cosine with a minimum differs: its warm-up starts at 0, so that its first step learns nothing.

    >>> [round(rate_share(step, warmup=3, steps=7), 2) for step in (0, 3, 5, 7, 9)]
    [0.25, 1.0, 0.51, 0.01, 0.01]
    """
    if step < warmup:
        # Step 0 already learns, and step `warmup` is the first at full rate.
        return (step + 1) / (warmup + 1)
    # A run that is continued beyond `steps` keeps the lowest rate.
    passed = min((step - warmup) / max(steps - warmup, 1), 1.0)
    return 0.01 + 0.99 * (1 + math.cos(math.pi * passed)) / 2


def warm_cosine(optimizer: Optimizer, warmup: int, steps: int) -> LambdaLR:
    """A scheduler that multiplies each group's rate by `rate_share`; call it after every step."""
    return LambdaLR(optimizer, lambda step: rate_share(step, warmup, steps))


class OneCycle(OneCycleLR):
    """A one-cycle schedule over the steps of the present run.

    torch saves the number of steps with the state and takes it back on a resume, so a run that is
    extended would end with an error at the step at which the first one ended. As with `warm_cosine`
    the rate is a function of the step and of the length that the run has now.
    """

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue at the saved step, with this schedule's own length."""
        own_length = {key: getattr(self, key) for key in ("total_steps", "_schedule_phases")}
        super().load_state_dict({**state_dict, **own_length})
