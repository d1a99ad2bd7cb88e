"""What a generated report got right, finding by finding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mavilt_pl.metrics.clinical import findings_in
from mavilt_pl.metrics.locations import Location, locations_in


def compare_claims(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Each finding that is labelled or claimed, with the verdict on a generated report.

    A right claim is `wrong side` or `wrong zone` if both texts name one and none is the same. A
    claim that the labels are silent on is `unlabelled`; it counts as wrong in findings F1.

    Args:
        row: with `generated`, `labels` and, if it is known, `reference`.

    >>> labels = {"edema": "present", "pneumothorax": "absent", "fracture": "absent"}
    >>> compare_claims({"generated": "Small pneumothorax.", "labels": labels})
    [('edema', 'missed'), ('pneumothorax', 'invented')]
    >>> row = {"labels": {"pleural effusion": "present"}, "reference": "Left effusion."}
    >>> compare_claims({"generated": "Right effusion.", **row})
    [('pleural effusion', 'wrong side')]
    """
    labels: Mapping[str, str] = row["labels"]
    # The same reading as for findings F1, so that card and figure agree.
    asserted = findings_in(row["generated"])
    claimed = {finding for finding, label in asserted.items() if label == "present"}
    ours, theirs = locations_in(row["generated"]), locations_in(row.get("reference", ""))
    verdicts = []
    for finding, label in labels.items():
        # Only definite labels can prove a claim right or wrong; uncertain ones are left open.
        if label == "present":
            verdict = "missed"
            if finding in claimed:
                verdict = _place(_of(ours, finding), _of(theirs, finding))
            verdicts.append((finding, verdict))
        elif label == "absent" and finding in claimed:
            verdicts.append((finding, "invented"))
    verdicts += [(finding, "unlabelled") for finding in sorted(claimed - labels.keys())]
    return verdicts


def _of(locations: set[Location], finding: str) -> set[Location]:
    return {location for location in locations if location[0] == finding}


def _place(ours: set[Location], theirs: set[Location]) -> str:
    """The verdict on a right claim by its places; what a text does not name cannot be wrong."""
    if not ours or not theirs:
        return "right"
    # One side in common is right: "bilateral" for a left effusion is a second, invented one.
    same_side = {side for _, side, _ in ours} & {side for _, side, _ in theirs}
    if not same_side:
        return "wrong side"
    zones = [{zone for _, _, zone in places if zone} for places in (ours, theirs)]
    if zones[0] and zones[1] and not zones[0] & zones[1]:
        return "wrong zone"
    return "right"
