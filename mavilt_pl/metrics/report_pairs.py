"""Figures of reports that need all texts at once: BLEU and CIDEr of coco, sides and zones."""

from __future__ import annotations

from collections.abc import Sequence

from mavilt_pl.metrics.bootstrap import Estimate
from mavilt_pl.metrics.coco import coco_protocol, coco_scores
from mavilt_pl.metrics.locations import location_protocol, location_scores


def pair_scores(
    reports: Sequence[str], references: Sequence[str], patients: Sequence[str]
) -> list[tuple[str, Estimate, str]]:
    """Name, value and protocol of each figure.

    Args:
        reports: generated texts.
        references: as many.
        patients: of each pair.
    """
    # Each with its protocol, since one line would not be true of both kinds.
    figures = []
    for name, value in coco_scores(reports, references, patients).items():
        figures.append((name, value, coco_protocol(name)))
    for name, value in location_scores(reports, references, patients).items():
        figures.append((name, value, location_protocol(name)))
    return figures
