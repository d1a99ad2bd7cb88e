"""Stop a training of the tokenizer at the first value that is NaN or infinite.

An adversarial training can diverge within a step. Without the check the optimizer would write NaN
into every weight, and the next checkpoint would replace a good one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mavilt_pl.errors import UserError

LISTED_STUDIES = 8  # in a message, enough to find a damaged image in a batch


def check_finite(
    values: Mapping[str, Tensor],
    gradients: Mapping[str, Tensor],
    batch: Mapping[str, Any],
    step: int,
) -> None:
    """Refuse values of a batch that are not finite.

    Args:
        values: scalars by name.
        gradients: norms of the values' gradients by name; named only if all values are finite.
        batch: the batch they come from, whose studies are named.
        step: generator step.

    Raises:
        UserError: names the step, the values and the studies.
    """
    # A sum is NaN or infinite if any of its terms is, so the host waits for the device once. Names
    # are looked up only if something is wrong.
    if torch.isfinite(torch.stack([*values.values(), *gradients.values()]).sum()):
        return
    bad = [name for name, value in values.items() if not torch.isfinite(value)]
    bad = bad or [name for name, value in gradients.items() if not torch.isfinite(value)]
    # All terms may be finite and their sum overflow.
    culprits = ", ".join(bad) or "the sum of the terms"
    names = [study["hidden_name"] for study in batch["studies"]]
    studies = ", ".join(names[:LISTED_STUDIES])
    if len(names) > LISTED_STUDIES:
        studies += ", …"
    raise UserError(
        f"step {step}: not finite: {culprits}; studies of the batch: {studies}. The last "
        "checkpoint is good: lower learning_rate or the term's weight and resume (--ckpt_path last)"
    )
