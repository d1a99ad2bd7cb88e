"""Order of the data: weighted sources in training, every study exactly once in evaluation.

The order of an epoch is a function of (seed, epoch) alone, and the randomness of an item a function
of its position in it. So an augmented image is the same whichever worker or rank makes it, and
whenever the run was interrupted before.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler


class SeededIndex(int):
    """Index of an item, with the seed of its randomness: (seed, epoch, position in the epoch)."""

    seed: tuple[int, ...] | None = None

    @classmethod
    def at(cls, index: int, *seed: int) -> SeededIndex:
        """An index with its seed."""
        seeded = cls(index)
        seeded.seed = seed
        return seeded


class WeightedSourceSampler(DistributedSampler):
    """Training order over several sources.

    An epoch is as long as all sources together. Each source is drawn by its weight, without
    repetition until it is used up. Ranks take turns; what they cannot share evenly at the end of an
    epoch is dropped. An interrupted epoch continues after the `num_consumed` items that all ranks
    together have used, however many ranks there are now.

    It is a `DistributedSampler` by name so that Lightning does not replace it.

    Args:
        sizes: items of each source.
        weights: how often each source is drawn.
        seed: of the order.
        rank, world: this process and the number of processes.
    """

    def __init__(
        self, sizes: Sequence[int], weights: Sequence[float], seed: int, rank: int, world: int
    ):
        self.sizes, self.weights, self.seed = list(sizes), list(weights), seed
        self.rank, self.num_replicas, self.epoch, self.num_consumed = rank, world, 0, 0
        self.num_samples = sum(sizes) // world
        self.total_size = self.num_samples * world

    def _order(self) -> list[int]:
        random = np.random.default_rng([self.seed, self.epoch])
        share = np.asarray(self.weights) / sum(self.weights)
        # Rounding down leaves a few items over; the first source gets them, so that an epoch's
        # length does not depend on the weights.
        counts = np.floor(share * sum(self.sizes)).astype(int)
        counts[0] += sum(self.sizes) - counts.sum()
        starts = np.cumsum([0, *self.sizes[:-1]])
        picked = []
        for start, size, count in zip(starts, self.sizes, counts):
            # A source drawn more often than it has items is shuffled again for every round.
            rounds = [random.permutation(size) for _ in range(-(-int(count) // size))]
            chosen = np.concatenate(rounds)[:count] if rounds else np.empty(0, int)
            picked.append(start + chosen)
        # Mixed over the whole epoch: batches contain all sources.
        shuffled = random.permutation(np.concatenate(picked))
        return [int(index) for index in shuffled]

    def __iter__(self) -> Iterator[SeededIndex]:
        order, epoch, start = self._order(), self.epoch, self.num_consumed
        # It applies to the interrupted epoch only.
        self.num_consumed = 0
        # Equal for all ranks: one that had an item more would wait for the others forever.
        shared = (len(order) - start) // self.num_replicas * self.num_replicas
        positions = range(start + self.rank, start + shared, self.num_replicas)
        return (SeededIndex.at(order[at], self.seed, epoch, at) for at in positions)

    def __len__(self) -> int:
        return self.num_samples


class UnpaddedDistributedSampler(DistributedSampler):
    """Rank r takes items r, r + world, …: every item exactly once, none repeated as padding.

    A rank for which no item is left takes the first one, because the ranks wait for one another's
    metrics; `is_filler` is then true, and whoever scores must leave the item out.

    >>> [list(UnpaddedDistributedSampler(5, rank, 2)) for rank in range(2)]
    [[0, 2, 4], [1, 3]]
    """

    def __init__(self, size: int, rank: int, world: int):
        self.size, self.rank, self.num_replicas, self.epoch = size, rank, world, 0
        self.is_filler = 0 < size <= rank
        self._items = range(0, 1) if self.is_filler else range(rank, size, world)

    def __iter__(self) -> Iterator[int]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)


class ResumableLoader(DataLoader):
    """A loader whose position within the epoch Lightning can save and restore.

    The position is the number of items that all ranks together have used, so another batch size or
    number of ranks continues at the same item.
    """

    num_consumed = 0

    @property
    def items_per_batch(self) -> int:
        """Items that one batch of every rank uses."""
        return self.batch_size * self.sampler.num_replicas  # type: ignore[attr-defined,operator,return-value]

    @property
    def batches_left(self) -> int:
        """Batches of this rank that are left of the epoch."""
        total = sum(self.sampler.sizes)  # type: ignore[attr-defined]
        return (total - self.num_consumed) // self.items_per_batch

    def __iter__(self) -> Iterator[Any]:
        # Counted as batches are handed out, not as workers prefetch them: what was fetched and not
        # trained on has to come again.
        consumed = self.num_consumed = self.sampler.num_consumed  # type: ignore[attr-defined]
        for batch in super().__iter__():
            consumed += self.items_per_batch
            self.num_consumed = consumed
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Position of the next batch; after an epoch's last one, the start of the next epoch."""
        epoch = self.sampler.epoch  # type: ignore[attr-defined]
        if self.batches_left:
            return {"epoch": epoch, "num_consumed": self.num_consumed}
        return {"epoch": epoch + 1, "num_consumed": 0}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue at a saved position."""
        self.num_consumed = self.sampler.num_consumed = state["num_consumed"]  # type: ignore[attr-defined]
        self.sampler.epoch = state["epoch"]  # type: ignore[attr-defined]
