"""Build the packed sequences of a batch in the loader's workers."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from torch.utils.data import get_worker_info

from mavilt_pl.data.collate import collate
from mavilt_pl.language.prompt_builder import PromptBuilder
from mavilt_pl.language.sequences import PackedBatch, pack
from mavilt_pl.language.trees import group_by_length, separate_branches


class PromptCollate:
    """A collate function that adds packed sequences to a batch; runs in the loader's workers.

    The batch gets `packed`, a list of `PackedBatch` (each one pass through the model), and
    `prompt_counts`, the events that the builder counted. Evaluation of a test needs no sequences.

    Args:
        prompts: builds the sequences.
        shares_prefix: whether the model keeps branches of one prefix apart.
        length_groups: passes of similar length for each direction.
    """

    def __init__(self, prompts: PromptBuilder, shares_prefix: bool, length_groups: int):
        self.prompts, self.shares_prefix = prompts, shares_prefix
        self.length_groups = length_groups

    def __call__(self, items: Sequence[dict[str, Any]], split: str) -> dict[str, Any]:
        """Collate items of a split: `train`, `val` or `test`."""
        if get_worker_info() is not None:
            # A forked tokenizer must not use threads; each worker is a process anyway.
            os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        batch = collate(items)
        # Metric callbacks of a test generate from the codes, and would never read these.
        if split != "test":
            self.add_packed(batch, training=split == "train")
        return batch

    def add_packed(self, batch: dict[str, Any], training: bool) -> None:
        """Add `packed` and `prompt_counts` to a collated batch that has codes."""
        if "codes" in batch:
            batch["packed"] = self.pack(batch, training)
            # Cleared with each batch: counts of one worker must be logged once.
            batch["prompt_counts"] = dict(self.prompts.counts)
            self.prompts.counts.clear()

    def pack(self, batch: Mapping[str, Any], training: bool) -> list[PackedBatch]:
        """Packed sequences of a collated batch, one for each pass through the model."""
        packed = []
        for trees in self.prompts.trees(batch, training):
            readable = trees if self.shares_prefix else separate_branches(trees)
            for group in group_by_length(readable, self.length_groups):
                packed.append(pack(group, self.prompts.vocabulary.end, self.prompts.max_context))
        return packed
