"""Downloads and files of other people that differ from the official ones: read, not lost."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from mavilt_pl.errors import UserError
from tests.data.dataset_layouts import chexpert, nih, vqa_rad
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
