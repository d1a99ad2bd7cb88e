"""Sequences as trees: what is read once (the prefix), and branches that each see the prefix and
themselves only.

One image with its report and eight questions is one tree: the image is read once, and no branch
sees another. A sequence with a single branch is the ordinary case, and then no mask is needed at
all.

Shape legend: B trees, T positions, M target positions in the batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Branch:
    """What is asked and what should be said. `image` says that the target is codes; `task` groups
    the loss.
    """

    prompt: list[int]
    target: list[int]
    task: int = 0
    image: bool = False


@dataclass(frozen=True)
class Tree:
    prefix: list[int]
    branches: Sequence[Branch]


@dataclass
class Packed:
    """A batch of trees as tensors. Position m of the target arrays says: from hidden state (row[m],
    column[m]) predict id target[m], for the task task[m], within branch branch[m] (numbered through
    the batch).
    """

    ids_BT: Tensor
    positions_BT: Tensor
    segments_BT: Tensor | None  # 0 the prefix, 1… the branches, -1 padding; None: one branch each
    row_M: Tensor
    column_M: Tensor
    target_M: Tensor
    task_M: Tensor
    branch_M: Tensor
    image_M: Tensor

    def to(self, device: torch.device) -> Packed:
        moved = {
            k: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v
            for k, v in vars(self).items()
        }
        return Packed(**moved)

    def mask(self, dtype: torch.dtype) -> Tensor | None:
        """Additive attention mask [B,1,T,T], or None where plain causal attention is right already.

        Padding stands at the end, so that causal attention alone hides it from everything before
        it.
        """
        if self.segments_BT is None:
            return None
        seen_BTT = self.segments_BT[:, None, :] == self.segments_BT[:, :, None]
        seen_BTT |= self.segments_BT[:, None, :] == 0
        length = self.ids_BT.shape[1]
        seen_BTT &= torch.ones(length, length, dtype=torch.bool, device=self.ids_BT.device).tril()
        return torch.zeros_like(seen_BTT, dtype=dtype).masked_fill_(
            ~seen_BTT, torch.finfo(dtype).min
        )[:, None]


def length_of(tree: Tree) -> int:
    return len(tree.prefix) + sum(
        len(branch.prompt) + len(branch.target) for branch in tree.branches
    )


def by_length(trees: Sequence[Tree], groups: int) -> list[list[Tree]]:
    """The trees in at most so many groups, each to be padded to its own longest, so that the fewest
    positions are padding: the best cuts of their order by length, found by dynamic programming. No
    group more than that takes; equal lengths keep their order.
    """
    line = sorted(trees, key=length_of)
    count = np.arange(len(line) + 1)
    widths = np.array([0, *map(length_of, line)], dtype=float)
    # [m,n]: positions of a group of the trees m to n - 1.
    group = np.where(count[:, None] < count, (count - count[:, None]) * widths, np.inf)
    least = np.where(count == 0, 0.0, np.inf)  # of the first n trees in so many groups
    begins: list[np.ndarray] = []  # where the last of these begins
    for _ in range(min(groups, len(line))):
        total = least[:, None] + group
        if begins and total[:, -1].min() >= least[-1]:
            break
        begins.append(total.argmin(0))
        least = total.min(0)
    found: list[list[Tree]] = []
    end = len(line)
    for begin in reversed(begins):
        start = int(begin[end])
        found.insert(0, line[start:end])
        end = start
    return found


def at_once(trees: Sequence[Tree], most: int) -> Iterator[list[Tree]]:
    """The trees in order, in groups whose masks [B,T,T] have at most so many entries where that can
    be; a tree of many branches is taken apart first, each part of which reads the prefix anew.
    """
    group: list[Tree] = []
    for part in (part for tree in trees for part in _parts(tree)):
        width = max(map(length_of, [*group, part]))
        if group and (len(group) + 1) * width**2 > most:
            yield group
            group = []
        group.append(part)
    if group:
        yield group


def _parts(tree: Tree) -> Iterator[Tree]:
    alone = [Tree(tree.prefix, [branch]) for branch in tree.branches]
    most = max(2 * max(map(length_of, alone)), 512)
    some: list[Branch] = []
    for branch in tree.branches:
        if some and length_of(Tree(tree.prefix, [*some, branch])) > most:
            yield Tree(tree.prefix, some)
            some = []
        some.append(branch)
    yield Tree(tree.prefix, some)


def pack(trees: Sequence[Tree], pad: int = 0) -> Packed:
    """Lay trees out side by side, padded at the end to the longest."""
    width = max(map(length_of, trees))
    ids, positions, segments = [], [], []
    row, column, target, task, branch, image = [], [], [], [], [], []
    number = 0
    for r, tree in enumerate(trees):
        line = list(tree.prefix)
        place = list(range(len(line)))
        segment = [0] * len(line)
        for k, part in enumerate(tree.branches, start=1):
            words = part.prompt + part.target
            if not part.target or len(tree.prefix) + len(part.prompt) == 0:
                raise ValueError(
                    "a branch needs a target, and something before it to predict it from"
                )
            # The first target is predicted by the last prompt token, or by the prefix's last where
            # there is no prompt.
            first = len(line) + len(part.prompt) - 1 if part.prompt else len(tree.prefix) - 1
            after = len(line) + len(part.prompt)
            column += [first, *range(after, after + len(part.target) - 1)]
            row += [r] * len(part.target)
            target += part.target
            task += [part.task] * len(part.target)
            branch += [number] * len(part.target)
            image += [part.image] * len(part.target)
            place += range(len(tree.prefix), len(tree.prefix) + len(words))
            segment += [k] * len(words)
            line += words
            number += 1
        rest = width - len(line)
        ids.append(line + [pad] * rest)
        positions.append(place + [0] * rest)
        segments.append(segment + [-1] * rest)
    several = any(len(tree.branches) > 1 for tree in trees)
    if not several:  # plain causal sequences: positions simply count on
        positions = [list(range(width))] * len(trees)
    return Packed(
        ids_BT=torch.tensor(ids),
        positions_BT=torch.tensor(positions),
        segments_BT=torch.tensor(segments) if several else None,
        row_M=torch.tensor(row),
        column_M=torch.tensor(column),
        target_M=torch.tensor(target),
        task_M=torch.tensor(task),
        branch_M=torch.tensor(branch),
        image_M=torch.tensor(image, dtype=torch.bool),
    )
