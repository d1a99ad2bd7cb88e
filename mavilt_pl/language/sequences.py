"""Sequences as trees: a prefix that is read once, and branches that see the prefix and themselves.

One image with its report and eight questions is one tree: the image is read once, and no branch
sees another. A sequence with a single branch is the ordinary case and needs no mask.

Shape legend: B trees, T positions, M target positions in the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

# Short trees stay whole: their parts would consist mostly of the prefix.
SMALLEST_PART = 512  # positions that a part of a split tree may have at least
WIDTH_MULTIPLE = 8  # of a padded batch


@dataclass(frozen=True)
class Branch:
    """A prompt and its target.

    Args:
        prompt: ids that follow the prefix.
        target: ids to predict.
        task: groups the loss; an index into `options.TASKS`.
        is_image: the target is codes.
    """

    prompt: list[int]
    target: list[int]
    task: int = 0
    is_image: bool = False

    @property
    def length(self) -> int:
        """Positions of prompt and target."""
        return len(self.prompt) + len(self.target)


@dataclass(frozen=True)
class Tree:
    """A prefix and its branches."""

    prefix: list[int]
    branches: Sequence[Branch]

    @property
    def length(self) -> int:
        """Positions of the prefix and all branches."""
        return len(self.prefix) + sum(branch.length for branch in self.branches)


class TargetSpan(NamedTuple):
    """Targets of one task and kind, which follow one another in a batch."""

    task: int
    is_image: bool
    start: int
    stop: int


@dataclass
class PackedBatch:
    """A batch of trees as tensors.

    Entry m of the target arrays means: from hidden state (row[m], column[m]) predict id target[m]
    in branch branch[m] (numbered through the batch). Targets are sorted, texts first, so that a
    task is a slice: nothing has to be looked up on the device. `segments_BT` is 0 in the prefix,
    1, 2, … in the branches and -1 in padding. It is None, and `positions_BT` with it, if every tree
    has one branch: plain causal attention and positions from 0 on are correct then.
    """

    ids_BT: Tensor
    positions_BT: Tensor | None
    segments_BT: Tensor | None
    row_M: Tensor
    column_M: Tensor
    target_M: Tensor
    branch_M: Tensor
    spans: tuple[TargetSpan, ...]
    num_branches: int

    @property
    def num_text_targets(self) -> int:
        """Targets that are text; they come first."""
        return sum(span.stop - span.start for span in self.spans if not span.is_image)

    def to(self, device: torch.device) -> PackedBatch:
        """Copy to a device."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> PackedBatch:
        """Copy to page-locked memory; the DataLoader calls this."""
        return self._map(Tensor.pin_memory)

    def _map(self, function: Callable[[Tensor], Tensor]) -> PackedBatch:
        changed: dict[str, Any] = {}
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                changed[name] = function(value)
        return replace(self, **changed)

    def mask(self, dtype: torch.dtype) -> Tensor | None:
        """Additive attention mask [B,1,T,T]; None if plain causal attention is correct.

        Padding stands at the end, so causal attention alone hides it from everything before it.
        """
        if self.segments_BT is None:
            return None
        # Axis 1 is the position that looks, axis 2 the one that is seen: own branch or prefix.
        visible_BTT = self.segments_BT[:, None, :] == self.segments_BT[:, :, None]
        visible_BTT |= self.segments_BT[:, None, :] == 0
        length = self.ids_BT.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=self.ids_BT.device).tril()
        visible_BTT &= causal
        # The lowest finite value instead of −∞, as in transformers' own additive masks.
        mask = torch.zeros_like(visible_BTT, dtype=dtype)
        return mask.masked_fill_(~visible_BTT, torch.finfo(dtype).min)[:, None]


def separate_branches(trees: Sequence[Tree]) -> list[Tree]:
    """One tree a branch, for models whose branches cannot share a prefix."""
    return [Tree(tree.prefix, [branch]) for tree in trees for branch in tree.branches]


def group_by_length(trees: Sequence[Tree], groups: int) -> list[list[Tree]]:
    """Split trees into at most `groups` groups of similar length with the least padding.

    Each group is padded to its own longest tree. The best cuts of the order by length are found by
    dynamic programming; trees of equal length keep their order.

    >>> trees = [Tree([0] * n, [Branch([], [1])]) for n in (9, 1, 8, 2)]
    >>> [[tree.length for tree in group] for group in group_by_length(trees, 2)]
    [[2, 3], [9, 10]]
    """
    # Contiguous groups of the order by length are optimal: swapping two trees across a cut never
    # makes the longest of either group shorter.
    ordered = sorted(trees, key=lambda tree: tree.length)
    count = np.arange(len(ordered) + 1)
    widths = np.array([0, *(tree.length for tree in ordered)], dtype=float)
    # cost[m, n]: positions of one padded group of the trees m to n - 1.
    starts_before = count[:, None]
    positions = (count - starts_before) * widths
    cost = np.where(starts_before < count, positions, np.inf)
    best = np.where(count == 0, 0.0, np.inf)  # of the first n trees in the groups so far
    starts: list[np.ndarray] = []  # of the last group, for each n
    for _ in range(min(groups, len(ordered))):
        total = best[:, None] + cost
        if starts and total[:, -1].min() >= best[-1]:
            break  # another group saves nothing
        starts.append(total.argmin(0))
        best = total.min(0)
    found: list[list[Tree]] = []
    end = len(ordered)
    # Walk the cuts back from the end; `starts` has one entry for each group that paid off.
    for start_of in reversed(starts):
        start = int(start_of[end])
        found.insert(0, ordered[start:end])
        end = start
    return found


def split_by_mask_size(trees: Sequence[Tree], largest: int) -> Iterator[list[Tree]]:
    """Trees in order, in groups whose masks [B,T,T] have at most `largest` entries if possible.

    A tree of many branches is first split into parts, each of which reads the prefix again.
    """
    group: list[Tree] = []
    for tree in trees:
        for part in _split_tree(tree):
            # A group is padded to its longest member, so a long tree makes its neighbours' masks
            # grow too.
            width = max(member.length for member in [*group, part])
            if group and (len(group) + 1) * width**2 > largest:
                yield group
                group = []
            group.append(part)
    if group:
        yield group


def _split_tree(tree: Tree) -> Iterator[Tree]:
    """A tree in parts of at most twice its longest single branch, or `SMALLEST_PART`."""
    longest = max(len(tree.prefix) + branch.length for branch in tree.branches)
    # At least two of the longest branches fit, so the prefix is read at most once a branch.
    limit = max(2 * longest, SMALLEST_PART)
    branches: list[Branch] = []
    for branch in tree.branches:
        if branches and Tree(tree.prefix, [*branches, branch]).length > limit:
            yield Tree(tree.prefix, branches)
            branches = []
        branches.append(branch)
    yield Tree(tree.prefix, branches)


@dataclass
class _Row:
    """One tree laid out: ids, position ids and segments, one entry a position."""

    ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    segments: list[int] = field(default_factory=list)

    def append(self, ids: Sequence[int], first_position: int, segment: int) -> None:
        self.ids += ids
        self.positions += range(first_position, first_position + len(ids))
        self.segments += [segment] * len(ids)

    def pad(self, width: int, pad_id: int) -> None:
        missing = width - len(self.ids)
        self.ids += [pad_id] * missing
        self.positions += [0] * missing
        # −1 equals no other segment, so neither prefix nor branches see padding.
        self.segments += [-1] * missing


class _Target(NamedTuple):
    """One target; see `PackedBatch`. Tuples sort: texts first, then by task."""

    is_image: bool
    task: int
    branch: int
    row: int
    column: int
    target: int


def pack(trees: Sequence[Tree], pad_id: int = 0, context: int | None = None) -> PackedBatch:
    """Lay trees out as rows of one batch, padded at the end to the longest.

    The width is a multiple of 8, as tensor cores want it, unless that is beyond the model's
    context.

    Raises:
        ValueError: a branch has no target, or nothing before its target to predict it from.
    """
    longest = max(tree.length for tree in trees)
    width = -(-longest // WIDTH_MULTIPLE) * WIDTH_MULTIPLE
    # Learned positions end with the context.
    if context is not None and width > context:
        width = longest
    rows: list[_Row] = []
    targets: list[_Target] = []
    num_branches = 0
    for number, tree in enumerate(trees):
        row = _lay_out(tree, number, num_branches, targets)
        row.pad(width, pad_id)
        rows.append(row)
        num_branches += len(tree.branches)
    # Stable: the targets of a branch stay in their order.
    targets.sort(key=lambda target: (target.is_image, target.task))

    positions_BT: Tensor | None = None
    segments_BT: Tensor | None = None
    if any(len(tree.branches) > 1 for tree in trees):
        positions_BT = torch.tensor([row.positions for row in rows])
        segments_BT = torch.tensor([row.segments for row in rows])
    columns = torch.tensor([target[2:] for target in targets]).reshape(-1, 4)
    branch_M, row_M, column_M, target_M = columns.T.contiguous().unbind()
    return PackedBatch(
        ids_BT=torch.tensor([row.ids for row in rows]),
        positions_BT=positions_BT,
        segments_BT=segments_BT,
        row_M=row_M,
        column_M=column_M,
        target_M=target_M,
        branch_M=branch_M,
        spans=_spans(targets),
        num_branches=num_branches,
    )


def _spans(targets: Sequence[_Target]) -> tuple[TargetSpan, ...]:
    """Where each kind and task begins and ends among sorted targets."""
    spans = []
    start = 0
    for (is_image, task), members in groupby(targets, key=lambda target: target[:2]):
        stop = start + sum(1 for _ in members)
        spans.append(TargetSpan(task, is_image, start, stop))
        start = stop
    return tuple(spans)


def _lay_out(tree: Tree, number: int, first_branch: int, targets: list[_Target]) -> _Row:
    """A tree as row `number` of the batch; its targets are appended to `targets`."""
    row = _Row()
    row.append(tree.prefix, first_position=0, segment=0)
    for segment, branch in enumerate(tree.branches, start=1):
        if not branch.target or len(tree.prefix) + len(branch.prompt) == 0:
            raise ValueError("a branch needs a target, and something before it to predict from")
        start = len(row.ids) + len(branch.prompt)  # column of the first target
        # A target is predicted from the column before it. The exception is the first one of a
        # branch without a prompt: the column before it may belong to another branch, so it is
        # predicted from the prefix's last token.
        first = start - 1 if branch.prompt else len(tree.prefix) - 1
        columns = [first, *range(start, start + len(branch.target) - 1)]
        kind = (branch.is_image, branch.task, first_branch + segment - 1, number)
        for column, target in zip(columns, branch.target):
            targets.append(_Target(*kind, column, target))
        # Positions of each branch continue the prefix's, as if it were the only branch.
        row.append(branch.prompt + branch.target, len(tree.prefix), segment)
    return row
