"""What the processes of a training share: their numbers, sums and batches. Asked at every call: a
module is built before its processes know each other.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def rank_and_size() -> tuple[int, int]:
    """This process's number and how many there are; (0, 1) where there is one."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def summed(part: Tensor) -> Tensor:
    """The sum over all ranks, the same bits on each."""
    if rank_and_size()[1] > 1:
        part = part.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(part)
    return part


def dealt(part_BX: Tensor) -> Tensor:
    """The batches of all ranks as one, in the order in which a sampler dealt them out: rank r has
    rows r, r+W, …

    [B,…] on each of W ranks → [B·W,…] on all.
    """
    size = rank_and_size()[1]
    if size == 1:
        return part_BX
    parts = [torch.empty_like(part_BX) for _ in range(size)]
    dist.all_gather(parts, part_BX.contiguous())
    return torch.stack(parts, 1).flatten(0, 1)
