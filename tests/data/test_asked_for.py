"""Reports and questions that a user names: used, or refused before an image is decoded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from mavilt_pl.cli import main
from mavilt_pl.data import decode_shard
from mavilt_pl.errors import MaviltWarning


@pytest.fixture
def raw(mimic_root: Path, tmp_path: Path) -> Path:
    """The phantom's MIMIC-CXR-JPG without its reports, which lie in `texts`."""
    root = shutil.copytree(mimic_root, tmp_path / "raw")
    shutil.copytree(mimic_root / "files", tmp_path / "texts/files", ignore=_no_pictures)
    for report in root.rglob("s*.txt"):
        report.unlink()
    return root


def _no_pictures(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if name.endswith(".jpg")]


def prepare(raw: Path, *words: object) -> int:
    command = ["prepare", "mimic-cxr-jpg", str(raw), "--out", str(raw.parent / "out")]
    return main([*command, "--workers", "1", *map(str, words)])


@pytest.mark.parametrize("where", ["texts/files", "empty"])
def test_reports_that_are_not_there(
    raw: Path,
    where: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One folder too deep, or an empty one (MultiMedEval#38, MGCA#41)."""
    (raw.parent / "empty").mkdir()
    decoded = []
    monkeypatch.setattr(decode_shard.ShardDecoder, "decode", decoded.append)
    assert prepare(raw, "--reports", raw.parent / where) == 1
    message = capsys.readouterr().err
    assert f"--reports {raw.parent / where}: a report of none of" in message
    assert "expected mimic-cxr-reports.zip" in message
    assert not decoded
    # The same folder is prepared with the right path.
    monkeypatch.undo()
    assert prepare(raw, "--reports", raw.parent / "texts") == 0
    facts = json.loads((raw.parent / "out/corpus.json").read_text())
    assert facts["texts"] == facts["studies"] > 0
    assert f"Of {facts['studies']} studies kept, {facts['texts']}" in capsys.readouterr().out


def test_no_reports_at_all_are_said(raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.warns(MaviltWarning, match=r"0 of \d+ studies have a report"):
        assert prepare(raw) == 0
    assert ", 0 have a text" in capsys.readouterr().out


def test_questions_about_none_of_the_studies(raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    questions = raw.parent / "questions.json"
    item = {"study_id": 1, "question": "Edema?", "answer": ["yes"], "semantic_type": "verify"}
    questions.write_text(json.dumps([item]))
    words = ("--reports", raw.parent / "texts", "--questions", questions)
    assert prepare(raw, *words) == 1
    message = capsys.readouterr().err
    assert "1 usable questions, and 0 of them are about one of" in message
    questions.write_text(json.dumps([item | {"semantic_type": "essay"}]))
    assert prepare(raw, *words) == 1
    assert "semantic_type 'essay'" in capsys.readouterr().err
    study = next((raw.parent / "texts").rglob("s*.txt")).stem[1:]
    # Zero as a number, and half of a surrogate pair.
    good = item | {"study_id": int(study), "semantic_type": "query", "answer": 0}
    questions.write_text(json.dumps([good | {"question": "How many \ud800?"}]))
    assert prepare(raw, *words) == 0
    assert json.loads((raw.parent / "out/corpus.json").read_text())["questions"] == 1


def test_a_disk_too_small_is_told_before_an_image_is_decoded(
    raw: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("--reports", raw.parent / "texts", "--views", "PA")
    kind = type(shutil.disk_usage(raw))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: kind(0, 0, 20_000))
    assert prepare(raw, *words, "--size", 64) == 1
    message = capsys.readouterr().err
    assert "images of 64 × 64 take" in message and "20 KB are free" in message
    # The same folder takes a smaller size, and only the views asked for count.
    monkeypatch.setattr(shutil, "disk_usage", lambda path: kind(0, 0, 30_000))
    assert prepare(raw, *words, "--size", 16) == 0
