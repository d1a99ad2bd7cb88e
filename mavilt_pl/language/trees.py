"""Sequences as trees: a prefix that is read once, and branches that see the prefix and themselves.

One image with its report and eight questions is one tree: the image is read once, and no branch
sees another. Branches that follow one another with the same prompt, as the candidate answers of a
question, share it: the question is read once too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

# Short trees stay whole: their parts would consist mostly of the prefix.
SMALLEST_PART = 1024  # positions that a part of a split tree may have at least


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
        return len(self.prefix) + sum(map(run_length, prompt_runs(self.branches)))


def prompt_runs(branches: Sequence[Branch]) -> Iterator[list[Branch]]:
    """Branches in order, those that follow one another with the same prompt together."""
    run: list[Branch] = []
    for branch in branches:
        # An empty prompt is the prefix, which is shared anyway.
        # Only neighbours: the order of branches is that of the answers.
        if run and not (branch.prompt and branch.prompt == run[0].prompt):
            yield run
            run = []
        run.append(branch)
    if run:
        yield run


def run_length(run: Sequence[Branch]) -> int:
    """Positions of branches that share a prompt."""
    if len(run) == 1:
        return run[0].length
    # Nothing is predicted from a branch's last id, so it is not read.
    return len(run[0].prompt) + sum(len(branch.target) - 1 for branch in run)


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
    longest = len(tree.prefix) + max(branch.length for branch in tree.branches)
    # At least two of the longest branches fit, so the prefix is read at most once a branch.
    limit = max(2 * longest, SMALLEST_PART)
    branches: list[Branch] = []
    length = len(tree.prefix)
    for branch in tree.branches:
        shares = bool(branches) and branch.prompt == branches[-1].prompt
        added = len(branch.target) - 1 if shares else branch.length
        if branches and length + added > limit:
            yield Tree(tree.prefix, branches)
            branches, length, added = [], len(tree.prefix), branch.length
        branches.append(branch)
        length += added
    yield Tree(tree.prefix, branches)
