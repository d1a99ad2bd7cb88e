"""Datasets that lead out of their folder, never end, or write formulas: each is refused by name."""

from __future__ import annotations

import csv
import json
import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from mavilt_pl.cli import main
from mavilt_pl.data.corpus import Corpus
from mavilt_pl.data.sources import report_files
from tests.data.dataset_layouts import indiana
from tests.data.test_sources import read


@pytest.fixture
def raw(mimic_root: Path, tmp_path: Path) -> Path:
    return shutil.copytree(mimic_root, tmp_path / "raw")


def prepare(raw: Path, *words: str, source: str = "mimic-cxr-jpg") -> list[dict[str, str]]:
    """Prepare a corpus; the rows of rejects.csv."""
    out = str(raw.parent / "out")
    assert main(["prepare", source, str(raw), "--out", out, "--workers", "1", *words]) == 0
    with (raw.parent / "out/rejects.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_an_image_and_a_report_behind_links(raw: Path) -> None:
    outside = raw.parent / "outside"
    outside.mkdir()
    picture = sorted(raw.rglob("*.jpg"))[0]
    report = sorted(raw.rglob("s*.txt"))[-1]
    for path in (picture, report):
        shutil.move(path, outside / path.name)
        path.symlink_to(outside / path.name)
    rejects = prepare(raw)
    assert {row["stage"] for row in rejects} >= {"read", "decode"}
    for row in rejects:
        if row["stage"] in ("read", "decode"):
            assert "leads to" in row["reason"] and "--follow-links" in row["reason"]
    shutil.rmtree(raw.parent / "out")
    assert not prepare(raw, "--follow-links")


def test_a_link_within_the_folder_is_followed(raw: Path) -> None:
    picture = sorted(raw.rglob("*.jpg"))[0]
    shutil.move(picture, raw / "elsewhere.jpg")
    picture.symlink_to(raw / "elsewhere.jpg")
    (raw.parent / "shortcut").symlink_to(raw)
    assert not prepare(raw.parent / "shortcut")


def test_a_whole_folder_behind_a_link_is_said_at_once(
    raw: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.move(raw / "files", raw.parent / "disk")
    (raw / "files").symlink_to(raw.parent / "disk")
    command = ["prepare", "mimic-cxr-jpg", str(raw), "--out", str(raw.parent / "out")]
    assert main([*command, "--workers", "1"]) == 1
    message = capsys.readouterr().err
    assert f"{raw / 'files'} leads to {raw.parent / 'disk'}" in message
    assert main(["doctor", str(raw)]) == 1
    capsys.readouterr()
    # The folder is free for the same command with the option.
    assert not prepare(raw, "--follow-links")
    assert main(["doctor", str(raw), "--follow-links"]) == 0


def test_reports_that_are_no_files(tmp_path: Path) -> None:
    indiana(tmp_path)
    folder = tmp_path / "ecgen-radiology"
    (folder / "3.xml").mkdir()
    (folder / "4.xml").symlink_to(folder / "absent.xml")
    os.mkfifo(folder / "5.xml")
    studies, rejects = read("indiana", tmp_path)
    assert [study.study for study in studies] == ["CXR1", "CXR2", "CXR10"]
    reasons = [why[3] for why in rejects]
    expected = ["3.xml is a folder", "4.xml is no regular file", "5.xml is no regular file"]
    for reason, text in zip(reasons, expected, strict=True):
        assert text in reason


def test_a_report_without_an_end(raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder and in an archive, whose directory may say anything of the size."""
    monkeypatch.setattr(report_files, "LARGEST_REPORT", 4000)
    report = sorted(raw.rglob("s*.txt"))[0]
    report.write_bytes(b"x" * 4001)
    reason = read("mimic-cxr-jpg", raw)[1][0][3]
    assert report.name in reason and "more than 4,000 bytes" in reason
    with zipfile.ZipFile(raw / "mimic-cxr-reports.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(str(report.relative_to(raw)), b"x" * 4001)
    reason = read("mimic-cxr-jpg", raw)[1][0][3]
    assert "mimic-cxr-reports.zip: report" in reason and "more than 4,000 bytes" in reason


def test_texts_that_no_file_can_hold(tmp_path: Path) -> None:
    """JSON may hold halves of surrogate pairs."""
    entries = [
        {"id": "a", "report": "Clear \ud800 lungs.", "image_path": ["a.png"]},
        {"id": "b\udfff", "report": "Clear.", "image_path": ["a.png"]},
    ]
    (tmp_path / "raw/images").mkdir(parents=True)
    ramp = np.arange(1024, dtype=np.uint8).reshape(32, 32)
    Image.fromarray(ramp).save(tmp_path / "raw/images/a.png")
    annotation = json.dumps({"train": entries, "val": [], "test": []})
    (tmp_path / "raw/annotation.json").write_text(annotation)
    rejects = prepare(tmp_path / "raw", source="r2gen")
    assert rejects[0]["study"] == "b\\udfff" and "no text" in rejects[0]["reason"]
    (study,) = Corpus(tmp_path / "out")
    assert study.findings == "Clear ? lungs."


@pytest.mark.parametrize("start", ["=", "+", "-", "@"])
def test_rejects_hold_no_formula(raw: Path, start: str) -> None:
    """A spreadsheet program would compute it, and may send it somewhere."""
    table = raw / "mimic-cxr-2.0.0-split.csv.gz"
    rows = pd.read_csv(table, dtype=str)
    rows.loc[0, ["study_id", "split"]] = f'{start}HYPERLINK("http://x")', "train"
    rows.to_csv(table, index=False)
    cells = [cell for row in prepare(raw) for cell in row.values()]
    assert any("HYPERLINK" in cell for cell in cells)
    assert not any(cell.startswith(start) for cell in cells)
