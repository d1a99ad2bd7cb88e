"""Sides and zones of findings in reports, compared between two texts.

For reports whose truth is complete: a phantom's says the side of every finding that has one. A real
report that leaves a side out counts as none.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from mavilt_pl.metrics.bootstrap import Estimate, patient_key
from mavilt_pl.metrics.clinical import mentions_in
from mavilt_pl.metrics.intervals import f1_interval, num_patients

SIDE = re.compile(r"\b(left|right|bilateral|both)\b", re.IGNORECASE)
ZONE = re.compile(r"\b(upper|mid(?:dle)?|lower|apical|basilar|basal|bibasilar)\b", re.IGNORECASE)
# Words for one zone are one zone; "bibasilar" has a side too, which "both" stands for.
ZONES = {
    "apical": "upper",
    "basilar": "lower",
    "basal": "lower",
    "bibasilar": "lower",
    "mid": "middle",
}
# The heart, edema, devices and the like have no side that a report would name.
SIDED = (
    "pleural effusion",
    "pneumothorax",
    "consolidation",
    "atelectasis",
    "lung lesion",
    "lung opacity",
)

Location = tuple[str, str, str]  # finding, side, zone; "" where the text does not say


def locations_in(text: str) -> set[Location]:
    """Findings that a report asserts, with side and zone as their sentence names them.

    A sentence about both sides gives both. A sentence without a side gives none.

    >>> sorted(locations_in("Small left effusion. There is a nodule in the right upper lobe."))
    [('lung lesion', 'right', 'upper'), ('pleural effusion', 'left', '')]
    >>> sorted(locations_in("Bilateral pleural effusions. The heart is enlarged."))
    [('pleural effusion', 'left', ''), ('pleural effusion', 'right', '')]
    """
    found = set()
    for clause, name, label in mentions_in(text):
        # A denied effusion has no side that could be wrong.
        if label != "present" or name not in SIDED:
            continue
        sides = {side.lower() for side in SIDE.findall(clause)}
        if sides & {"bilateral", "both"} or "bibasilar" in clause.lower():
            sides = {"left", "right"}
        zones = [ZONES.get(zone.lower(), zone.lower()) for zone in ZONE.findall(clause)]
        # Two zones in one clause cannot be told apart by findings.
        zone = zones[0] if len(set(zones)) == 1 else ""
        found |= {(name, side, zone) for side in sides}
    return found


def location_scores(
    reports: Sequence[str], references: Sequence[str], patients: Sequence[str]
) -> dict[str, Estimate]:
    """`side_f1` and `zone_f1`: F1 of located findings over all pairs of texts, with intervals.

    A claim is right if the reference has the same finding on the same side; for zones, on the same
    side and in the same zone, among those with a zone. No figure where the references have none.

    Args:
        reports: generated texts.
        references: as many.
        patients: of each pair.
    """
    # Right, claimed and true locations of each pair, which can be summed by weight.
    counts: dict[str, list[tuple[int, int, int]]] = {"side_f1": [], "zone_f1": []}
    for report, reference in zip(reports, references):
        ours, theirs = locations_in(report), locations_in(reference)
        for name, with_zone in (("side_f1", False), ("zone_f1", True)):
            said, meant = ({_key(one, with_zone) for one in found} for found in (ours, theirs))
            said.discard(None)
            meant.discard(None)
            counts[name].append((len(said & meant), len(said), len(meant)))
    keys = np.array([patient_key(patient) for patient in patients])
    figures = {}
    for name, rows in counts.items():
        right, claimed, true = np.array(rows, dtype=float).reshape(-1, 3).T
        # Where no reference names a side, any claim would be wrong.
        if not true.any():
            continue
        value = float(2 * right.sum() / (claimed.sum() + true.sum()))
        # In closed form, by patients with a location at all: they may be few.
        concerned = claimed + true > 0
        interval = f1_interval(value, num_patients(keys, concerned))
        figures[name] = Estimate(value, *interval, len(rows), int((true > 0).sum()))
    return figures


def _key(location: Location, with_zone: bool) -> Location | None:
    """What has to be equal; None for a location without a zone where zones are compared."""
    name, side, zone = location
    if not with_zone:
        return name, side, ""
    return location if zone else None


def location_protocol(name: str) -> str:
    """How `side_f1` or `zone_f1` is computed."""
    what = "finding and side" if name == "side_f1" else "finding, side and zone"
    return f"micro F1 of {what}, named in one clause of generated and reference text alike"
