"""Ranks, sums and gathers over the processes of one training.

Every function asks torch.distributed when it is called: a module is built before its processes know
each other.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def rank_and_size() -> tuple[int, int]:
    """This process's rank and the number of processes; (0, 1) for a single process.

    >>> rank_and_size()
    (0, 1)
    """
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def all_reduce_sum(part: Tensor) -> Tensor:
    """Sum over all ranks, any shape; the result has the same bits on each rank."""
    if rank_and_size()[1] > 1:
        # all_reduce works in place and wants contiguous memory; the caller keeps its own numbers.
        part = part.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(part)
    return part


def gather_lists(part: list[Any]) -> list[Any]:
    """The items of all ranks' lists, rank by rank, on every rank; they are pickled on the way."""
    size = rank_and_size()[1]
    if size == 1:
        return list(part)
    parts: list[Any] = [None] * size
    dist.all_gather_object(parts, part)
    return [item for of_rank in parts for item in of_rank]


def gather_interleaved(part_BX: Tensor) -> Tensor:
    """Batches of all ranks in the order of a distributed sampler: rank r holds rows r, r + W, ….

    [B, …] on each of W ranks → [B·W, …] on all.
    """
    size = rank_and_size()[1]
    if size == 1:
        return part_BX
    # all_gather needs equal shapes: batches of all ranks must be of the same size.
    parts = [torch.empty_like(part_BX) for _ in range(size)]
    dist.all_gather(parts, part_BX.contiguous())
    # [B, W, …] → [B·W, …]: row b of every rank before row b + 1 of any.
    return torch.stack(parts, 1).flatten(0, 1)
