"""Every layout that the phantom writes goes through its reader and `prepare`, and is kept whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mavilt_pl.cli import main
from mavilt_pl.data.corpus import Corpus

LAYOUTS = [
    ("mimic", "mimic-cxr-jpg", ["--test", "3", "--laterals", "0.5"]),
    ("mimic-dicom", "mimic-cxr", []),
    ("indiana", "indiana", []),
    ("indiana-kaggle", "indiana-kaggle", []),
    ("r2gen", "r2gen", []),
]
WITHOUT_VIEWS = ("mimic-dicom", "indiana", "r2gen")
WITH_LATERALS = ("mimic-dicom", "r2gen", "indiana-kaggle")


@pytest.mark.parametrize(("layout", "source", "options"), LAYOUTS)
@pytest.mark.filterwarnings("ignore:.*no mimic-cxr-2.0.0-split table")
def test_from_the_phantom_to_a_corpus(
    layout: str, source: str, options: list[str], tmp_path: Path
) -> None:
    if not layout.startswith("mimic"):
        pytest.importorskip("torchxrayvision")  # it carries the reports
    raw, out = tmp_path / "raw", tmp_path / "corpus"
    assert main(["phantom", layout, str(raw), "--studies", "12", "--size", "48", *options]) == 0
    assert main(["prepare", source, str(raw), "--out", str(out), "--size", "32"]) == 0
    facts = json.loads((out / "corpus.json").read_text())
    assert facts["total"]["studies"] == {"read": 12, "kept": 12, "rejected": 0}
    studies = list(Corpus(out))
    assert all(study.findings for study in studies)
    views = {image.view for study in studies for image in study.images}
    assert "LATERAL" in views or layout in WITHOUT_VIEWS
    if layout in WITH_LATERALS:
        assert any(len(study.images) == 2 for study in studies)
    assert main(["doctor", str(raw), "--source", source, "--all"]) == 0
