"""Sides and zones that reports name."""

from __future__ import annotations

import numpy as np
import pytest

from mavilt_pl.metrics.locations import location_scores, locations_in
from mavilt_pl.phantom.findings import sample_findings
from mavilt_pl.phantom.wording import findings_text


def test_locations_of_phantoms_are_read_exactly() -> None:
    random = np.random.default_rng(0)
    for _ in range(300):
        findings = sample_findings(random)
        expected = set()
        for finding in findings:
            # The atelectasis of a phantom is basilar.
            zone = "lower" if finding.name == "atelectasis" else finding.zone
            for side in ("left", "right"):
                if finding.side in (side, "both"):
                    expected.add((finding.name, side, zone))
        assert locations_in(findings_text(findings, random)) == expected


def test_the_wrong_side_is_a_claim_and_a_miss() -> None:
    reference = "Small left effusion. There is a nodule in the right upper lung."
    report = "Small right effusion. There is a nodule in the right lower lung."
    found = location_scores([report, report], [reference, reference], ["a", "b"])
    # The nodule is on the right side and in the wrong zone.
    assert found["side_f1"].value == pytest.approx(0.5)
    assert found["zone_f1"].value == 0
    right = location_scores([reference] * 2, [reference] * 2, ["a", "b"])
    assert {name: figure.value for name, figure in right.items()} == {"side_f1": 1, "zone_f1": 1}


def test_references_without_sides_have_no_figure() -> None:
    assert location_scores(["Left effusion."], ["The heart is enlarged."], ["a"]) == {}
