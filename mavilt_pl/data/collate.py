"""Combine items of a `StudyDataset` into a batch.

Shape legend: B studies.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import torch

STACKED = ("pixels", "codes", "control_codes", "labels")
# Lists of a batch that not every study contributes to.
LISTED = ("views", "control_views", "replay")


def collate(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Stack tensors, list everything else.

    `studies` keeps, for each item, what is neither a tensor nor one of `LISTED`.
    """
    batch: dict[str, Any] = {"studies": [_record(item) for item in items]}
    for key in STACKED:
        # All items of a dataset have the same tensors.
        if key in items[0]:
            batch[key] = torch.stack([item[key] for item in items])
    for key in LISTED:
        # Shorter than the batch, if some items have none; a key without any entry is absent.
        found = [item[key] for item in items if key in item]
        if found:
            batch[key] = found
    batch["patient"] = [item["patient"] for item in items]
    batch["text"] = [item["text"] for item in items]
    return batch


def _record(item: dict[str, Any]) -> dict[str, Any]:
    """What an item's record keeps."""
    record = {}
    for key, value in item.items():
        if not isinstance(value, torch.Tensor) and key not in LISTED:
            record[key] = value
    return record


def plain_collate(items: Sequence[dict[str, Any]], split: str) -> dict[str, Any]:
    """`collate` for any split; what a `CXRDataModule` uses unless a module sets its own."""
    return collate(items)


def sample_key(name: str) -> int:
    """A stable number for a study's name, so that sampled noise does not depend on the batch.

    >>> sample_key("mimic-cxr:50414267") == sample_key("mimic-cxr:50414267")
    True
    """
    # A text may hold halves of surrogate pairs.
    return zlib.crc32(name.encode("utf-8", "surrogatepass"))
