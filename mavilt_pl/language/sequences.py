"""Trees as the rows of a batch: ids, positions, segments, and where each target is predicted from.

Shape legend: B trees, T positions, M target positions in the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mavilt_pl.language.trees import Tree, prompt_runs

WIDTH_MULTIPLE = 8  # of a padded batch


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
    1, 2, … in the branches and -1 in padding; `parents_BT` is the segment that a segment continues:
    0, or that of a shared prompt. They are None, and `positions_BT` with them, if every tree has
    one branch: plain causal attention and positions from 0 on are correct then.
    """

    ids_BT: Tensor
    positions_BT: Tensor | None
    segments_BT: Tensor | None
    parents_BT: Tensor | None
    row_M: Tensor
    column_M: Tensor
    target_M: Tensor
    branch_M: Tensor
    spans: tuple[TargetSpan, ...]
    num_branches: int
    lengths: tuple[int, ...]  # of the rows, without padding

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
        # Counts and spans are the host's and stay.
        changed: dict[str, Any] = {}
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                changed[name] = function(value)
        return replace(self, **changed)

    def mask(self, dtype: torch.dtype) -> Tensor | None:
        """Additive attention mask [B,1,T,T]; None if plain causal attention is correct.

        Padding stands at the end, so causal attention alone hides it from everything before it.
        """
        if self.segments_BT is None or self.parents_BT is None:
            return None
        # Axis 1 is the position that looks, axis 2 the one that is seen: own branch, shared prompt
        # or prefix.
        seen_B1T = self.segments_BT[:, None, :]
        visible_BTT = seen_B1T == self.segments_BT[:, :, None]
        visible_BTT |= seen_B1T == self.parents_BT[:, :, None]
        visible_BTT |= seen_B1T == 0
        length = self.ids_BT.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=self.ids_BT.device).tril()
        visible_BTT &= causal
        # The lowest finite value instead of −∞, as in transformers' own additive masks.
        mask = torch.zeros_like(visible_BTT, dtype=dtype)
        return mask.masked_fill_(~visible_BTT, torch.finfo(dtype).min)[:, None]


@dataclass
class _Row:
    """One tree laid out: ids, position ids, segments and their parents, one entry a position."""

    ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    segments: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    num_segments: int = 0

    def append(self, ids: Sequence[int], first_position: int, parent: int = 0) -> int:
        """Add a segment; its number."""
        segment = self.num_segments
        self.num_segments += 1
        self.ids += ids
        self.positions += range(first_position, first_position + len(ids))
        self.segments += [segment] * len(ids)
        self.parents += [parent] * len(ids)
        return segment

    def pad(self, width: int, pad_id: int) -> None:
        """Fill up to `width`."""
        missing = width - len(self.ids)
        self.ids += [pad_id] * missing
        self.positions += [0] * missing
        # −1 equals no other segment, so neither prefix nor branches see padding.
        self.segments += [-1] * missing
        self.parents += [-1] * missing


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
    parents_BT: Tensor | None = None
    if any(len(tree.branches) > 1 for tree in trees):
        positions_BT = torch.tensor([row.positions for row in rows])
        segments_BT = torch.tensor([row.segments for row in rows])
        parents_BT = torch.tensor([row.parents for row in rows])
    columns = torch.tensor([target[2:] for target in targets]).reshape(-1, 4)
    branch_M, row_M, column_M, target_M = columns.T.contiguous().unbind()
    return PackedBatch(
        ids_BT=torch.tensor([row.ids for row in rows]),
        positions_BT=positions_BT,
        segments_BT=segments_BT,
        parents_BT=parents_BT,
        row_M=row_M,
        column_M=column_M,
        target_M=target_M,
        branch_M=branch_M,
        spans=_spans(targets),
        num_branches=num_branches,
        lengths=tuple(tree.length for tree in trees),
    )


def _spans(targets: Sequence[_Target]) -> tuple[TargetSpan, ...]:
    """Where each kind and task begins and ends among sorted targets."""
    # Sorted targets of one kind and task are neighbours.
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
    row.append(tree.prefix, first_position=0)
    # Numbered through the batch, as likelihoods are summed.
    branch_number = first_branch
    # Positions of each branch continue the prefix's, as if it were the only branch.
    depth = len(tree.prefix)
    for run in prompt_runs(tree.branches):
        prompt, is_shared = run[0].prompt, len(run) > 1
        parent = row.append(prompt, depth) if is_shared else 0
        end_of_prompt = len(row.ids) - 1
        for branch in run:
            if not branch.target or depth + len(prompt) == 0:
                raise ValueError("a branch needs a target, and something before it to predict from")
            # A target is predicted from the column before it. The first one is predicted from the
            # prompt's last token or, without a prompt, from the prefix's: the column before it may
            # belong to another branch.
            if is_shared:
                read, position, start = branch.target[:-1], depth + len(prompt), len(row.ids)
                first = end_of_prompt
            else:
                read, position, start = prompt + branch.target, depth, len(row.ids) + len(prompt)
                first = start - 1 if prompt else depth - 1
            columns = [first, *range(start, start + len(branch.target) - 1)]
            for column, target in zip(columns, branch.target):
                kind = (branch.is_image, branch.task, branch_number, number)
                targets.append(_Target(*kind, column, target))
            row.append(read, position, parent)
            branch_number += 1
    return row
