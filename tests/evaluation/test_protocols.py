"""`mavilt score --protocol`, `mavilt results --export`, and the tables of figures."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest

from mavilt_pl.cli import main
from mavilt_pl.evaluation.figure_tables import write_tables
from mavilt_pl.evaluation.predictions import write_predictions
from mavilt_pl.evaluation.results import write_json

REPORT = {
    "task": "report",
    "source": "iu",
    "study": "s1",
    "patient": "p1",
    "generated": "1. No effusion.",
    "reference": "2. No Effusion!",
    "labels": {},
}
DRAWING = {**REPORT, "task": "synthesis", "generated": "", "image": "drawn/iu-s1.png"}


def scored(file: Path, out: Path, *options: str) -> dict[str, tuple[float, str]]:
    assert main(["score", str(file), "--out", str(out), *options]) == 0
    figures = json.loads((out / "results.json").read_text())["figures"]
    return {figure["metric"]: (figure["value"], figure["protocol"]) for figure in figures}


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    rows = [
        {"generated": "1. No effusion. " + "clear " * 70, "reference": "No effusion! Rareword."},
        {"generated": "Heart is normal.", "reference": "Heart is normal."},
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_a_protocol_cleans_both_texts_and_is_printed(
    pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = scored(pairs, tmp_path / "raw")
    assert raw["bleu_1_coco"][1].startswith("raw: texts as they are; coco: ")
    cleaned = scored(pairs, tmp_path / "cleaned", "--protocol", "r2gen-iu")
    value, protocol = cleaned["bleu_1_coco"]
    assert value > raw["bleu_1_coco"][0]
    assert "references cut at 59 words, generated texts at 60" in protocol
    assert "rare words kept" in protocol
    assert "r2gen-iu: both texts cleaned" in capsys.readouterr().out


def test_rare_words_are_unknown_with_a_vocabulary(pairs: Path, tmp_path: Path) -> None:
    entries = [
        {"id": str(number), "report": "No effusion. Heart is normal."} for number in range(3)
    ]
    entries.append({"id": "9", "report": "Rareword."})
    annotation = tmp_path / "annotation.json"
    annotation.write_text(json.dumps({"train": entries, "val": [], "test": []}))
    options = ["--protocol", "r2gen-iu", "--vocabulary", str(annotation)]
    value, protocol = scored(pairs, tmp_path / "out", *options)["bleu_1_coco"]
    assert "words of 2 or fewer occurrences" in protocol
    # "clear" and "rareword" are both <unk>, so one more word agrees.
    assert value > scored(pairs, tmp_path / "kept", "--protocol", "r2gen-iu")["bleu_1_coco"][0]


def test_settings_that_contradict_are_one_message(
    pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["score", str(pairs), "--vocabulary", "annotation.json"]) == 1
    assert "the protocol raw keeps rare words" in capsys.readouterr().err
    assert main(["score", str(pairs), "--chexbert", "chexbert.pth"]) == 1
    assert "belong together" in capsys.readouterr().err


@pytest.mark.skipif(shutil.which("java") is None, reason="needs a Java runtime")
def test_meteor_of_the_java_program(pairs: Path, tmp_path: Path) -> None:
    meteor = pytest.importorskip("pycocoevalcap.meteor.meteor")
    expected, _ = meteor.Meteor().compute_score({0: ["no effusion ."]}, {0: ["no effusion ."]})
    same = tmp_path / "same.jsonl"
    same.write_text(json.dumps({"generated": "no effusion .", "reference": "no effusion ."}))
    found = scored(same, tmp_path / "out", "--protocol", "coco")
    assert found["meteor_coco"] == (expected, found["meteor_coco"][1])
    assert "METEOR 1.5" in found["meteor_coco"][1]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with predictions of a report and a drawing."""
    made_by = {"config": {}}
    path = tmp_path / "run/stage2/test/predictions.jsonl"
    write_predictions(path, [REPORT, DRAWING], "notice", made_by)
    return tmp_path / "run"


def test_layouts_of_other_evaluations(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("rexrank", "radeval", "chexgenbench"):
        # Twice: what it has written itself it may replace.
        for _ in range(2):
            assert main(["results", str(run), "--export", name]) == 0
    folder = run / "stage2/test"
    rexrank = json.loads((folder / "rexrank.json").read_text())
    assert rexrank["s1"]["model_prediction"] == REPORT["generated"]
    assert rexrank["s1"]["section_findings"] == REPORT["reference"]
    radeval = json.loads((folder / "radeval.json").read_text())
    assert (radeval["refs"], radeval["hyps"]) == ([REPORT["reference"]], [REPORT["generated"]])
    with (folder / "chexgenbench.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows == [{"img_savename": "drawn/iu-s1.png", "annotated_prompt": REPORT["reference"]}]


def test_an_export_of_what_was_not_tested_says_how_to_get_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_predictions(tmp_path / "a/test/predictions.jsonl", [REPORT], "notice", {})
    assert main(["results", str(tmp_path), "--export", "chexgenbench"]) == 1
    assert "test with SynthesisMetrics and its save_images true" in capsys.readouterr().err
    assert main(["results", str(tmp_path / "a/none"), "--export", "rexrank"]) == 1
    assert "no predictions.jsonl below it" in capsys.readouterr().err


def test_a_file_of_somebody_else_is_not_replaced(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = run / "stage2/test/chexgenbench.csv"
    theirs.write_text("name,grade\nmine,1\n")
    assert main(["results", str(run), "--export", "chexgenbench"]) == 1
    assert theirs.read_text() == "name,grade\nmine,1\n"


def test_tables_hold_no_formula_and_no_command(tmp_path: Path) -> None:
    figure = {
        "task": "report",
        "source": "=1+1\\input{secret}",
        "metric": "bleu_4",
        "value": 0.25,
        "low": 0.2,
        "high": 0.3,
        "n": 9,
        "protocol": "p",
        "control": None,
    }
    shuffled = {**figure, "value": 0.1, "low": None, "high": None, "control": "shuffled_images"}
    write_tables(tmp_path, [figure, shuffled])
    with (tmp_path / "figures.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows[0]["source"].startswith("'=")
    assert rows[1]["control"] == "shuffled_images"
    tex = (tmp_path / "figures.tex").read_text()
    assert "bleu\\_4 & 0.250 (0.200--0.300) & 0.100" in tex
    assert "\\input" not in tex


ANSWER = {
    **{"task": "vqa", "source": "iu", "study": "s1", "patient": "p1", "question": "Edema?"},
    **{"topic": "edema", "reference": "yes", "candidates": ["yes", "no"]},
}


@pytest.mark.parametrize("probabilities", ["text", ["a", "b"], [], None, 5])
def test_answers_that_are_none_are_one_message(
    probabilities: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made_by = {"seed": 0, "commit": None, "versions": {}, "checkpoint_sha256": None}
    figure = {
        **{"task": "vqa", "source": "iu", "metric": "accuracy", "value": 1.0, "low": None},
        **{"high": None, "n": 1, "protocol": "p", "control": None},
    }
    write_json(tmp_path / "a/test/results.json", {"figures": [figure], "made_by": made_by})
    answer = {**ANSWER, "probabilities": probabilities}
    write_predictions(tmp_path / "a/test/predictions.jsonl", [answer], "notice", made_by)
    assert main(["results", str(tmp_path)]) == 1
    assert "expected a list of a number for each" in capsys.readouterr().err


def test_an_export_of_an_incomplete_record_names_what_it_lacks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = {key: value for key, value in REPORT.items() if key != "study"}
    write_predictions(tmp_path / "a/test/predictions.jsonl", [record], "notice", {})
    assert main(["results", str(tmp_path), "--export", "rexrank"]) == 1
    assert "a record without study" in capsys.readouterr().err


def test_a_threshold_that_is_no_number_is_none(tmp_path: Path) -> None:
    answer = {**ANSWER, "probabilities": [0.7, 0.3], "threshold": "half"}
    path = tmp_path / "theirs.jsonl"
    path.write_text(json.dumps(answer))
    assert "accuracy" in scored(path, tmp_path / "out")
