"""Verdicts on what a generated report claims."""

from __future__ import annotations

import pytest

from mavilt_pl.metrics.claims import compare_claims

PRESENT = {"lung lesion": "present"}


@pytest.mark.parametrize(
    ("generated", "reference", "labels", "verdicts"),
    [
        ("Nodule in the left upper lung.", "Nodule in the left upper lung.", PRESENT, ["right"]),
        (
            "Nodule in the right upper lung.",
            "Nodule in the left upper lung.",
            PRESENT,
            ["wrong side"],
        ),
        (
            "Nodule in the left lower lung.",
            "Nodule in the left upper lung.",
            PRESENT,
            ["wrong zone"],
        ),
        # What a text does not say cannot be wrong.
        ("A nodule.", "Nodule in the left upper lung.", PRESENT, ["right"]),
        ("Nodule in the left lung.", "Nodule in the left upper lung.", PRESENT, ["right"]),
        ("Clear lungs.", "Nodule in the left lung.", PRESENT, ["missed"]),
        ("Left nodule.", "Clear lungs.", {"lung lesion": "absent"}, ["invented"]),
        ("Left nodule.", "", {"edema": "absent"}, ["unlabelled"]),
        ("Left nodule.", "Possible nodule.", {"lung lesion": "uncertain"}, []),
    ],
)
def test_verdicts(
    generated: str, reference: str, labels: dict[str, str], verdicts: list[str]
) -> None:
    row = {"generated": generated, "reference": reference, "labels": labels}
    assert [verdict for _, verdict in compare_claims(row)] == verdicts
