"""Downloads and files of other people that differ from the official ones: read, not lost."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mavilt_pl.cli import main
from mavilt_pl.data.corpus import Corpus
from mavilt_pl.errors import UserError
from tests.data.dataset_layouts import chexpert, nih, table, vqa_rad
from tests.data.test_sources import read


def test_nih_with_the_table_of_2017(tmp_path: Path) -> None:
    """PyHealth#343. That table ends each row with a comma."""
    nih(tmp_path)
    expected, _ = read("nih", tmp_path)
    table = tmp_path / "Data_Entry_2017_v2020.csv"
    old = "".join(f"{line},\n" for line in table.read_text().splitlines())
    table.unlink()
    (tmp_path / "Data_Entry_2017.csv").write_text(old)
    assert read("nih", tmp_path)[0] == expected
    (tmp_path / "Data_Entry_2017.csv").unlink()
    with pytest.raises(UserError, match=r"Data_Entry_2017_v2020\.csv\.gz \(or \.csv\) is missing"):
        read("nih", tmp_path)


@pytest.mark.parametrize("tables_above", [False, True])
def test_chexpert_in_batches(tmp_path: Path, tables_above: bool) -> None:
    """As the full-size download comes: the tables in the first batch, no folder `train`."""
    chexpert(tmp_path)
    expected, _ = read("chexpert", tmp_path)
    first = tmp_path / "CheXpert-v1.0 batch 1 (validate & csv)"
    (first / "valid/patient64541/study1").mkdir(parents=True)
    for number, patient in ((2, "patient00001"), (3, "patient00002")):
        folder = tmp_path / f"CheXpert-v1.0 batch {number} (train {number - 1})"
        (folder / patient / "study1").mkdir(parents=True)
    if not tables_above:
        for table in tmp_path.glob("*.csv"):
            shutil.move(table, first / table.name)
    studies, rejects = read("chexpert", tmp_path)
    assert not rejects
    assert [study.study for study in studies] == [study.study for study in expected]
    paths = [str(study.images[0].path.relative_to(tmp_path)) for study in studies]
    assert paths == [
        "CheXpert-v1.0 batch 2 (train 1)/patient00001/study1/view1_frontal.jpg",
        "CheXpert-v1.0 batch 3 (train 2)/patient00002/study1/view1_frontal.jpg",
        "CheXpert-v1.0 batch 1 (validate & csv)/valid/patient64541/study1/view1_frontal.jpg",
    ]


def test_r2gen_files_of_other_hospitals(tmp_path: Path) -> None:
    entries = [
        {"id": "a1", "report": "Clear.", "image_path": ["a1.png", "a2.png"], "view": ["PA", "LL"]},
        {"id": "b1", "report": "Mass.", "image_path": ["b1.png"], "view": "AP", "subject_id": 7},
        {"id": "c1", "report": "Mass.", "image_path": ["c1.png"]},
        {"id": "d1", "report": "Mass.", "image_path": ["d1.png"], "view": ["PA", "AP"]},
    ]
    annotation = {"train": entries, "val": [], "test": []}
    (tmp_path / "annotation.json").write_text(json.dumps(annotation))
    studies, rejects = read("r2gen", tmp_path)
    assert [(study.source, study.patient) for study in studies] == [
        ("r2gen", "a1"),
        ("r2gen", "7"),
        ("r2gen", "c1"),
    ]
    views = [[image.view for image in study.images] for study in studies]
    assert views == [["PA", "LATERAL"], ["AP"], ["UNKNOWN"]]
    assert "view lists 2 names for 1 images" in rejects[0][3]


def test_vqa_rad_with_an_answer_of_zero(tmp_path: Path) -> None:
    vqa_rad(tmp_path)
    path = tmp_path / "VQA_RAD Dataset Public.json"
    path.write_text(path.read_text().replace('"answer": 12', '"answer": 0'))
    studies, _ = read("vqa-rad", tmp_path)
    assert studies[1].questions[0].answer == "0"


def test_a_table_of_one_s_own(tmp_path: Path) -> None:
    table(tmp_path)
    (first, _, second), rejects = read("table", tmp_path)
    assert not rejects
    assert (first.patient, first.study, first.split) == ("p1", "s1", "train")
    views = [(image.view, image.key) for image in first.images]
    assert views == [("PA", "a/1"), ("LATERAL", "a/2")]
    assert (first.findings, first.impression) == ("Effusion 1.", "Seen 1.")
    assert first.labels == {"edema": "present", "mass": "absent"}
    # A report without headings counts as findings.
    assert (second.findings, second.labels) == ("Clear lungs.", {"no finding": "present"})


def test_a_table_in_lines_of_json(tmp_path: Path) -> None:
    lines = [
        {"image": "a/1.png"},
        {"image": "b.png", "study": 2, "split": "val", "labels": {"edema": -1}, "report": None},
        {"image": "c.png", "split": "validation"},
        {"image": "d.png", "study": "x", "findings": "Clear."},
        {"image": "e.png", "study": "x", "findings": "Mass."},
        {"image": ""},
    ]
    path = tmp_path / "studies.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    (first, second), rejects = read("table", tmp_path)
    assert (first.study, first.patient, first.findings) == ("a/1", "a/1", "")
    assert (second.study, second.split, second.labels) == ("2", "val", {"edema": "uncertain"})
    reasons = [why[3] for why in rejects]
    assert "split 'validation'; expected one of train, val, test" in reasons[0]
    assert "its rows differ in findings" in reasons[1]
    assert "a row without an image" in reasons[2]
    for text, message in (
        ('{"image": "a", "veiw": "PA"}', r"a column 'veiw'; expected columns among image, study"),
        ('{"image": "a"}\n{"image": "a"}', r"line 2: image a is there twice"),
        ("[1]", r"line 1: a list; expected an object"),
        ("{", r"line 1: no JSON"),
        ("", r"has no rows"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            read("table", tmp_path)
    path.unlink()
    with pytest.raises(UserError, match=r"no studies\.csv, studies\.csv\.gz or studies\.jsonl"):
        read("table", tmp_path)


READER = """
from mavilt_pl.data.records import Image, Study

def read(root, reject, reports=None):
    for path in sorted(root.glob("*.png")):
        image = Image(path, "PA", path.stem)
        yield Study("mine", path.stem, path.stem, "train", (image,), "Clear.")
"""


def test_a_reader_of_one_s_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Through the command line, without a change of the package."""
    (tmp_path / "raw").mkdir()
    ramp = np.arange(1024, dtype=np.uint8).reshape(32, 32)
    Image.fromarray(ramp).save(tmp_path / "raw/a.png")
    reader = tmp_path / "my_reader.py"
    reader.write_text(READER)
    command = [str(tmp_path / "raw"), "--out", str(tmp_path / "out"), "--workers", "1"]
    assert main(["prepare", str(reader), *command]) == 0
    (study,) = Corpus(tmp_path / "out")
    assert (study.study, study.findings) == ("a", "Clear.")
    assert Corpus(tmp_path / "out").name == "my_reader"
    assert main(["prepare", str(reader), *command]) == 0
    assert main(["doctor", str(tmp_path / "raw"), "--source", str(reader)]) == 0
    for text, message in (
        ("1 +", "cannot be imported (SyntaxError"),
        ("x = 1", "has no function read"),
        (None, "does not exist; expected a Python file"),
    ):
        if text is None:
            reader.unlink()
        else:
            reader.write_text(text)
        capsys.readouterr()
        assert main(["prepare", str(reader), *command[:2], str(tmp_path / "new")]) == 1
        assert message in capsys.readouterr().err
    assert main(["prepare", "mimik", *command]) == 1
    assert "unknown source 'mimik'; expected one of mimic-cxr-jpg" in capsys.readouterr().err
