"""The loss of a step: each task's mean nats per target, weighted.

A step reads its sequences in several passes, and ranks have different numbers of targets. What a
target counts is therefore fixed before the first pass, from counts that are known when sequences
are packed: L = Σ_task w_task / (W · n_task) · Σ nats, with n_task the targets of all passes and
ranks, and W the sum of the weights of the tasks that are present.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mavilt_pl.language.options import TASKS, TuningOptions
from mavilt_pl.language.sequences import PackedBatch


def count_targets(passes: Sequence[PackedBatch]) -> list[int]:
    """Number of targets of each of `TASKS`, on the host."""
    # From sizes alone: nothing is read from a device.
    counts = [0] * len(TASKS)
    for packed in passes:
        for span in packed.spans:
            counts[span.task] += span.stop - span.start
    return counts


def task_shares(counts: Mapping[str, float], tuning: TuningOptions) -> dict[str, float]:
    """Weight of each task that has targets and a weight, so that the weights sum to 1.

    Renormalised over the tasks that are present, so the learning rate means the same in a batch
    without questions. The price is that a rare task has less total weight over a run.

    Args:
        counts: targets of each task.
        tuning: `task_weights`.
    """
    # A weight of 0 trains nothing, and its task is only logged.
    weights = {}
    for task, count in counts.items():
        if count and tuning.task_weight(task) > 0:
            weights[task] = tuning.task_weight(task)
    total = sum(weights.values())
    return {task: weight / total for task, weight in weights.items()}


def span_sums(losses_M: Tensor, packed: PackedBatch) -> list[tuple[str, Tensor]]:
    """Summed nats of each span of a pass, with its task."""
    # Slices, since a pack sorts its targets by task.
    sums = []
    for span in packed.spans:
        sums.append((TASKS[span.task], losses_M[span.start : span.stop].sum()))
    return sums


def weighted_pass(sums: Sequence[tuple[str, Tensor]], factors: Mapping[str, float]) -> Tensor:
    """A pass's part of the loss; zero, but a function of the weights, if it has no part.

    Args:
        sums: summed nats of its spans.
        factors: what a target of each task counts; tasks without a weight are missing.
    """
    terms = [factors[task] * nats for task, nats in sums if task in factors]
    # A loss without a graph would raise in `backward`.
    return torch.stack(terms or [0.0 * nats for _, nats in sums]).sum()
