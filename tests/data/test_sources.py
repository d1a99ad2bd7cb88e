"""Readers on the datasets' own layouts, and what they say of damage."""

from __future__ import annotations

import gzip
import json
import re
import shutil
import tarfile
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pydicom
import pytest
from dataset_layouts import (
    LAYOUTS,
    chexpert,
    indiana,
    indiana_kaggle,
    jpg_tables,
    mimic_cxr,
    mimic_cxr_jpg,
    nih,
    r2gen,
    rsna,
    vqa_rad,
    write_csv,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from words import mavilt

from mavilt_pl.cli import main
from mavilt_pl.data.records import Study
from mavilt_pl.data.sources import SOURCES, read_source, source_options
from mavilt_pl.data.sources.fields import hash_split
from mavilt_pl.data.sources.indiana import MESH, mesh_labels
from mavilt_pl.errors import UserError


def read(name: str, root: Path, **options: object) -> tuple[list[Study], list[tuple]]:
    rejects: list[tuple] = []
    return list(read_source(name, root, lambda *why: rejects.append(why), **options)), rejects


def test_mimic_reads_what_the_phantom_wrote(mimic_root: Path) -> None:
    studies, rejects = read("mimic-cxr-jpg", mimic_root)
    assert len(studies) == 61 and not rejects
    assert [sum(s.split == name for s in studies) for name in ("train", "val", "test")] == [
        43,
        7,
        11,
    ]
    assert all(
        s.findings
        and s.impression
        and s.images[0].path.exists()
        and s.images[0].view in ("PA", "AP")
        for s in studies
    )
    splits: dict[str, set[str]] = {}
    for study in studies:
        splits.setdefault(study.patient, set()).add(study.split)
    assert all(len(split) == 1 for split in splits.values())


@pytest.fixture
def copied(mimic_root: Path, tmp_path: Path) -> Path:
    root = tmp_path / "mimic"
    shutil.copytree(mimic_root, root)
    return root


def test_mimic_plain_tables_with_bom_and_other_column_order(copied: Path) -> None:
    before, _ = read("mimic-cxr-jpg", copied)
    for path in list(copied.glob("*.csv.gz")):
        rows = pd.read_csv(path, dtype=str, keep_default_na=False)
        rows[rows.columns[::-1]].to_csv(
            path.with_suffix(""), index=False, encoding="utf-8-sig", lineterminator="\r\n"
        )
        path.unlink()
    assert read("mimic-cxr-jpg", copied)[0] == before


def test_mimic_zipped_reports(copied: Path) -> None:
    before, _ = read("mimic-cxr-jpg", copied)
    with zipfile.ZipFile(copied / "mimic-cxr-reports.zip", "w") as archive:
        for path in copied.rglob("*.txt"):
            archive.write(path, path.relative_to(copied))
            path.unlink()
    assert read("mimic-cxr-jpg", copied)[0] == before


def test_mimic_damage_is_named(copied: Path) -> None:
    split = copied / "mimic-cxr-2.0.0-split.csv.gz"
    whole = split.read_bytes()
    split.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"split\.csv\.gz is not a readable table"):
        read("mimic-cxr-jpg", copied)
    split.write_bytes(gzip.compress(b"dicom_id,study_id,split\n1,2,train\n"))
    with pytest.raises(UserError, match="no column subject_id"):
        read("mimic-cxr-jpg", copied)
    split.write_bytes(gzip.compress(b"dicom_id,study_id,subject_id,split\n"))
    with pytest.raises(UserError, match="no rows: the table is empty"):
        read("mimic-cxr-jpg", copied)
    split.write_bytes(
        gzip.compress(b"dicom_id,study_id,subject_id,split\na,2,3,train\na,2,3,train\n")
    )
    with pytest.raises(UserError, match=r"row 3: dicom_id a is there twice"):
        read("mimic-cxr-jpg", copied)
    split.write_bytes(
        gzip.compress(b"dicom_id,study_id,subject_id,split\n../../a,2,3,train\nb,3,4,holdout\n")
    )
    studies, rejects = read("mimic-cxr-jpg", copied)
    assert not studies and len(rejects) == 2
    split.unlink()
    with pytest.raises(UserError, match="is missing"):
        read("mimic-cxr-jpg", copied)


def test_indiana_counts_are_exact_on_the_real_reports() -> None:
    pytest.importorskip("torchxrayvision")
    from mavilt_pl.phantom.indiana import reports_archive

    studies, rejects = read("indiana", Path("."), reports=str(reports_archive()))
    assert not rejects and len(studies) == 3955
    assert sum(bool(s.findings) for s in studies) == 3425
    assert sum(bool(s.impression) for s in studies) == 3921
    assert sum(bool(s.findings and s.impression) for s in studies) == 3419
    assert sum(not s.findings and not s.impression for s in studies) == 28
    assert sum(len(s.images) for s in studies) == 7470
    assert sum(not s.images for s in studies) == 104
    assert sum(s.labels.get("no finding") == "present" for s in studies) == 1391


def test_indiana_entities_are_not_expanded(tmp_path: Path) -> None:
    folder = tmp_path / "ecgen-radiology"
    folder.mkdir()
    entities = '<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;">]>'
    (folder / "1.xml").write_text(f'{entities}<eCitation><uId id="CXR1"/>&b;</eCitation>')
    (folder / "2.xml").write_text('<eCitation><uId id="CXR2"/></eCitation>')
    (folder / "3.xml").write_text('<eCitation><uId id="CXR2"/></eCitation>')
    studies, rejects = read("indiana", tmp_path)
    assert [s.study for s in studies] == ["CXR2"]
    assert "EntitiesForbidden" in rejects[0][3] and "a second study with id CXR2" in rejects[1][3]


@pytest.mark.real
def test_nih_is_read_whole(real_data: Path) -> None:
    studies, rejects = read("nih", real_data / "nih")
    assert (len(studies), len({s.patient for s in studies}), len(rejects)) == (680, 466, 0)
    splits = {(s.patient, s.split) for s in studies}
    assert len(splits) == 466


def test_hash_split_is_stable_and_proportionate() -> None:
    splits = [hash_split("indiana", str(n)) for n in range(4000)]
    assert splits[:3] == [hash_split("indiana", str(n)) for n in range(3)]
    assert (
        abs(splits.count("test") / 4000 - 0.2) < 0.02
        and abs(splits.count("val") / 4000 - 0.1) < 0.02
    )


def test_unknown_source_and_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected one of"):
        read("chest", tmp_path)
    with pytest.raises(UserError, match="not a folder"):
        read("nih", tmp_path / "absent")


every_source = pytest.mark.parametrize("name", sorted(SOURCES))
pytestmark = pytest.mark.filterwarnings("ignore:.*no mimic-cxr-2.0.0-split table")


def ids(studies: list[Study]) -> list[str]:
    return [study.study for study in studies]


@every_source
def test_every_layout_is_read_whole_and_again_the_same(name: str, tmp_path: Path) -> None:
    LAYOUTS[name](tmp_path)
    studies, rejects = read(name, tmp_path)
    assert len(studies) + len(rejects) == 3 and len(rejects) == (
        name == "vqa-rad"
    )  # its HEAD image
    assert (studies, rejects) == read(name, tmp_path)
    assert all(image.path.is_relative_to(tmp_path) for study in studies for image in study.images)


@pytest.mark.parametrize(
    "bad", ["../../x", "..\\x", "/etc/passwd", "C:\\x", "a/../../../x", "x\0", "y" * 300]
)
@every_source
def test_paths_that_leave_the_folder_are_refused(name: str, bad: str, tmp_path: Path) -> None:
    if name == "indiana" and "\0" in bad:
        pytest.skip("no XML can hold it")
    LAYOUTS[name](tmp_path / "whole")
    LAYOUTS[name](tmp_path / "bad", name=bad)
    whole, before = read(name, tmp_path / "whole")
    studies, rejects = read(name, tmp_path / "bad")
    (reason,) = [why for why in rejects if why[1:] not in [w[1:] for w in before]]
    assert re.search(
        "leaves the dataset's folder|identifier .* expected|is no file name", reason[3]
    )
    assert len(studies) + sum(why[2] == "read" for why in rejects) == len(whole) + len(before)
    assert all(
        image.path.is_relative_to(tmp_path / "bad") for study in studies for image in study.images
    )


@every_source
def test_tables_with_bom_crlf_other_column_order_and_gzip_read_the_same(
    name: str, tmp_path: Path
) -> None:
    LAYOUTS[name](tmp_path)
    before = read(name, tmp_path)
    for path in tmp_path.glob("*.csv"):
        rows = pd.read_csv(path, dtype=str, keep_default_na=False)
        text = rows[rows.columns[::-1]].to_csv(index=False, lineterminator="\r\n")
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(("\ufeff" + text).encode()))
        path.unlink()
    for path in tmp_path.glob("*.json"):
        path.write_text("\ufeff" + path.read_text().replace(",", ",\r\n"))
    assert read(name, tmp_path) == before


def test_mimic_cxr_with_and_without_the_tables_of_the_jpg_release(tmp_path: Path) -> None:
    mimic_cxr(tmp_path / "dicom")
    with pytest.warns(UserWarning, match="split 70 / 10 / 20 by hash"):
        alone, _ = read("mimic-cxr", tmp_path / "dicom")
    assert [s.split for s in alone] == [hash_split("mimic-cxr", s.patient) for s in alone]
    assert {image.view for s in alone for image in s.images} == {"UNKNOWN"} and not alone[0].labels
    jpg_tables(tmp_path / "jpg", ("a-1", "b-2", "c-3", "e-4"))
    studies, rejects = read("mimic-cxr", tmp_path / "dicom", tables=str(tmp_path / "jpg"))
    assert not rejects and [s.split for s in studies] == ["test", "test", "val"]
    assert [[image.view for image in s.images] for s in studies] == [
        ["PA", "LATERAL"],
        ["AP"],
        ["LATERAL"],
    ]
    assert studies[0].labels == {"edema": "present", "pneumonia": "uncertain", "fracture": "absent"}
    assert (studies[0].findings, studies[0].impression) == ("Effusion 50.", "Seen 50.")
    assert studies[0].report == "INDICATION: ___. FINDINGS: Effusion 50. IMPRESSION: Seen 50."
    assert studies[0].images[0].path == tmp_path / "dicom/files/p10/p10000001/s50/a-1.dcm"
    with pytest.raises(UserError, match=r"holds no mimic-cxr-2\.0\.0-split"):
        read("mimic-cxr", tmp_path / "dicom", tables=str(tmp_path / "dicom"))
    with pytest.raises(UserError, match="expected one of chexpert, negbio"):
        read("mimic-cxr", tmp_path / "dicom", labels="vis")


def test_mimic_cxr_what_the_tables_do_not_agree_on(tmp_path: Path) -> None:
    mimic_cxr(tmp_path)
    jpg_tables(tmp_path, ("a-1", "b-2", "c-3", "other"))
    with (tmp_path / "cxr-study-list.csv").open("a") as file:
        file.write("10000003,53,files/p10/p10000003/s53.txt\n")
    studies, rejects = read("mimic-cxr", tmp_path)
    assert ids(studies) == ["50", "51"]
    assert [(why[0], why[2]) for why in rejects] == [("52", "read"), ("53", "read")]
    assert "not in the table" in rejects[0][3] and "no image" in rejects[1][3]


def test_mimic_cxr_report_paths_stay_in_the_folder(tmp_path: Path) -> None:
    mimic_cxr(tmp_path / "root")
    (tmp_path / "secret.txt").write_text("FINDINGS: secret")
    path = tmp_path / "root/cxr-study-list.csv"
    path.write_text(path.read_text().replace("files/p10/p10000002/s52.txt", "../secret.txt"))
    studies, rejects = read("mimic-cxr", tmp_path / "root")
    assert (
        ids(studies) == ["50", "51"]
        and "'../secret.txt' leaves the dataset's folder" in rejects[0][3]
    )


def test_mimic_zip_that_is_none_and_a_damaged_member(copied: Path) -> None:
    archive = copied / "mimic-cxr-reports.zip"
    archive.write_bytes(b"PK no zip")
    with pytest.raises(UserError, match=r"mimic-cxr-reports\.zip is not a readable zip"):
        read("mimic-cxr-jpg", copied)
    texts = sorted(copied.rglob("*.txt"))
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as opened:
        for path in texts:
            opened.write(path, path.relative_to(copied))
    data = bytearray(archive.read_bytes())
    start = 30 + len(str(texts[0].relative_to(copied)))  # the first member's data
    data[start : start + 40] = bytes(40)
    archive.write_bytes(data)
    studies, rejects = read("mimic-cxr-jpg", copied)
    assert len(studies) == 60 and len(rejects) == 1 and "is damaged" in rejects[0][3]


def test_a_patient_is_in_one_split_and_an_id_names_one_study(tmp_path: Path) -> None:
    mimic_cxr_jpg(tmp_path)
    split = tmp_path / "mimic-cxr-2.0.0-split.csv"
    split.write_text(
        split.read_text().replace("c-3,51,10000001,test", "c-3,51,10000001,train")
        + "f-5,50,10000009,train\n"
    )
    studies, rejects = read("mimic-cxr-jpg", tmp_path)
    assert ids(studies) == ["50", "52"]
    assert [why[0] for why in rejects] == ["51", "50"]
    assert "patient 10000001 is in test and this study in train" in rejects[0][3]
    assert "a second study with id 50" in rejects[1][3]
    split.write_text(split.read_text().replace("b-2,50,10000001,test", "b-2,50,10000001,train"))
    assert "split 'test/train'" in read("mimic-cxr-jpg", tmp_path)[1][0][3]


def test_labels_that_are_none_are_rejected(tmp_path: Path) -> None:
    mimic_cxr_jpg(tmp_path)
    path = tmp_path / "mimic-cxr-2.0.0-chexpert.csv"
    path.write_text(path.read_text().replace("1.0", "maybe", 1))
    (reason,) = read("mimic-cxr-jpg", tmp_path)[1]
    assert "label Edema is 'maybe'; expected 1, 0, -1 or blank" in reason[3]


def test_indiana_views_of_projections_and_headers(tmp_path: Path) -> None:
    indiana(tmp_path)
    studies, _ = read("indiana", tmp_path)
    assert ids(studies) == ["CXR1", "CXR2", "CXR10"]
    assert [[image.view for image in s.images] for s in studies] == [
        ["PA", "LATERAL"],
        ["FRONTAL"],
        [],
    ]
    assert studies[0].report == "COMPARISON: None. FINDINGS: Findings 1. IMPRESSION: Normal 1."
    assert studies[0].labels["cardiomegaly"] == "present" and studies[0].labels["edema"] == "absent"
    (tmp_path / "indiana_projections.csv").unlink()
    assert [image.view for image in read("indiana", tmp_path)[0][0].images] == [
        "PA",
        "PA",
    ]  # the headers' noise
    (tmp_path / "1").mkdir()
    (tmp_path / "1/1_IM-0001-4001.dcm").touch()
    assert [i.path.name for i in read("indiana", tmp_path)[0][0].images] == [
        "1_IM-0001-4001.dcm",
        "CXR1_1_IM-0001-3001.png",
    ]


def test_indiana_with_r2gens_splits(tmp_path: Path) -> None:
    indiana(tmp_path)
    r2gen(tmp_path)
    studies, rejects = read("indiana", tmp_path)
    assert [(s.study, s.split) for s in studies] == [("CXR1", "train"), ("CXR2", "test")]
    assert [(why[0], why[2]) for why in rejects] == [("CXR10", "read"), ("CXR3", "read")]
    assert "in none of R2Gen's splits" in rejects[0][3] and "no XML report" in rejects[1][3]


def test_indiana_archive_that_is_cut(tmp_path: Path) -> None:
    indiana(tmp_path)
    with tarfile.open(tmp_path / "reports.tgz", "w:gz") as archive:
        archive.add(tmp_path / "ecgen-radiology", "ecgen-radiology")
    assert read("indiana", tmp_path, reports=str(tmp_path / "reports.tgz")) == read(
        "indiana", tmp_path
    )
    (tmp_path / "reports.tgz").write_bytes((tmp_path / "reports.tgz").read_bytes()[:-40])
    with pytest.raises(UserError, match=r"reports\.tgz is not a readable archive"):
        read("indiana", tmp_path, reports=str(tmp_path / "reports.tgz"))


def test_the_layouts_of_indiana_agree(tmp_path: Path) -> None:
    for name in ("indiana", "indiana-kaggle"):
        LAYOUTS[name](tmp_path / name)
    xml, kaggle = (read(name, tmp_path / name)[0] for name in ("indiana", "indiana-kaggle"))
    same = ("source", "patient", "study", "split", "findings", "impression", "report")
    assert [[getattr(s, n) for n in same] for s in xml] == [
        [getattr(s, n) for n in same] for s in kaggle
    ]
    assert kaggle[0].labels["hyperinflation"] == "present"
    assert [image.view for image in kaggle[0].images] == ["FRONTAL", "LATERAL"]


def test_kaggle_projections_of_no_report(tmp_path: Path) -> None:
    indiana_kaggle(tmp_path)
    with (tmp_path / "indiana_projections.csv").open("a") as file:
        file.write("77,77_IM-0001-1001.dcm.png,Frontal\n")
    studies, rejects = read("indiana-kaggle", tmp_path)
    assert len(studies) == 3 and rejects[0][:3] == ("CXR77", "77_IM-0001-1001.dcm.png", "image")


def test_r2gen_both_flavours(tmp_path: Path) -> None:
    r2gen(tmp_path)
    studies, _ = read("r2gen", tmp_path)
    assert [(s.source, s.patient, s.study, s.split) for s in studies][1] == (
        "indiana",
        "CXR3",
        "CXR3_IM-0003",
        "val",
    )
    assert (
        studies[0].images[1].path == tmp_path / "images/CXR1_IM-0001/1.png"
        and studies[0].findings == "Findings 1."
    )
    entry = {"subject_id": 10, "study_id": 5, "report": "Clear."}
    train = [entry | {"id": n, "image_path": [f"p10/p10/s5/{n}.jpg"]} for n in ("a", "b", "b")]
    train.append(entry | {"id": "c", "image_path": ["p10/p10/s5/c.jpg"], "report": "Other."})
    test = [
        entry | {"id": "d", "study_id": 6, "image_path": ["p10/p10/s6/d.jpg"]},
        {"id": "e", "report": None},
        {"id": "f", "report": "R."},
    ]
    (tmp_path / "annotation.json").write_text(json.dumps({"train": train, "val": [], "test": test}))
    studies, rejects = read("r2gen", tmp_path)
    assert [(s.source, s.patient, s.study, len(s.images)) for s in studies] == [
        ("mimic-cxr", "10", "5", 2)
    ]
    reasons = " ".join(why[3] for why in rejects)
    assert len(rejects) == 5 and all(
        text in reasons
        for text in (
            "lists an image twice",
            "another report",
            "patient 10 is in train",
            "report 'None'",
            "image_path",
        )
    )


def test_nih_official_lists(tmp_path: Path) -> None:
    nih(tmp_path)
    studies, _ = read("nih", tmp_path)
    assert [s.split for s in studies] == ["test", "test", hash_split("nih", "3", 0, 0.125)]
    assert (
        studies[0].labels["pleural effusion"] == "present"
        and studies[1].labels["no finding"] == "present"
    )
    (tmp_path / "train_val_list.txt").write_text("00000009_000.png\n")
    assert "in neither" in read("nih", tmp_path)[1][0][3]
    table = tmp_path / "Data_Entry_2017_v2020.csv"
    table.write_text(table.read_text().replace("Hernia", "Hernya"))
    assert "Finding Labels 'hernya'" in read("nih", tmp_path)[1][0][3]
    shutil.rmtree(tmp_path / "images_001")
    with pytest.raises(UserError, match=r"no \*\.png under images"):
        read("nih", tmp_path)


def test_chexpert_studies_and_splits(tmp_path: Path) -> None:
    chexpert(tmp_path)
    studies, _ = read("chexpert", tmp_path)
    assert [(s.patient, s.study, s.split) for s in studies] == [
        ("patient00001", "patient00001_study1", "train"),
        ("patient00002", "patient00002_study1", "train"),
        ("patient64541", "patient64541_study1", "val"),
    ]
    assert [[image.view for image in s.images] for s in studies] == [
        ["AP", "LATERAL"],
        ["PA"],
        ["FRONTAL"],
    ]
    assert studies[0].labels == {
        "atelectasis": "present",
        "consolidation": "absent",
        "edema": "uncertain",
    }
    assert read("chexpert", tmp_path, valid="test")[0][2].split == "test"
    with pytest.raises(UserError, match="expected val or test"):
        read("chexpert", tmp_path, valid="no")
    path = tmp_path / "train.csv"
    path.write_text(
        path.read_text()
        .replace("F,68,Lateral,,1.0", "F,68,Lateral,,0.0")
        .replace("patient00002", "pat2")
    )
    studies, rejects = read("chexpert", tmp_path)
    assert len(studies) == 1 and [why[2] for why in rejects] == ["read", "read"]
    assert "expected …/train/patient00001" in rejects[0][3] and "different labels" in rejects[1][3]


def test_rsna_boxes_and_classes(tmp_path: Path) -> None:
    rsna(tmp_path)
    studies, _ = read("rsna", tmp_path)
    assert [(s.labels["pneumonia"], s.labels["no finding"]) for s in studies] == [
        ("present", "absent"),
        ("absent", "present"),
        ("absent", "absent"),
    ]
    assert studies[0].images[0].path == tmp_path / "stage_2_train_images/a.dcm"
    (tmp_path / "stage_2_detailed_class_info.csv").write_text("patientId,class\na,Normal\n")
    studies, rejects = read("rsna", tmp_path)
    assert (
        ids(studies) == ["b", "c"]
        and "no finding" not in studies[0].labels
        and "class normal with Target 1" in rejects[0][3]
    )
    (tmp_path / "stage_2_train_labels.csv").write_text("patientId,Target\na,1\na,0\n")
    assert "Target 0 and 1" in read("rsna", tmp_path)[1][0][3]


def test_rsna_attributes_come_from_the_headers(tmp_path: Path) -> None:
    mavilt("phantom mimic-dicom --studies 3 --size 40 --workers 1", tmp_path / "phantom")
    files = sorted((tmp_path / "phantom").rglob("*.dcm"))[:3]
    root, elsewhere = tmp_path / "rsna", tmp_path / "elsewhere"
    (root / "stage_2_train_images").mkdir(parents=True)
    elsewhere.mkdir()
    for name, file in zip("abc", files):
        data = pydicom.dcmread(file)
        data.PatientSex, data.PatientAge, data.ManufacturerModelName = "F", "062Y", "DX  1"
        # The last one lies outside of the folder.
        folder = elsewhere if name == "c" else root / "stage_2_train_images"
        data.save_as(folder / f"{name}.dcm")
    (root / "stage_2_train_images/c.dcm").symlink_to(elsewhere / "c.dcm")
    (root / "stage_2_train_images/b.dcm").write_bytes(b"no header")
    table = "patientId,Target\na,1\nb,0\nc,0\nd,0\n"
    (root / "stage_2_train_labels.csv").write_text(table)
    studies, _ = read("rsna", root)
    known = {"sex": "female", "age": "60 to 79", "scanner": "DX 1"}
    assert [dict(study.attributes) for study in studies] == [known, {}, {}, {}]
    studies, _ = read("rsna", root, follow_links=True)
    assert dict(studies[2].attributes) == known


def test_vqa_rad_questions(tmp_path: Path) -> None:
    vqa_rad(tmp_path)
    studies, rejects = read("vqa-rad", tmp_path)
    asked = studies[0].questions
    assert [(q.answer, q.topic, q.candidates) for q in asked] == [
        ("no", "pres", ("yes", "no")),
        ("left lung", "pos", ()),
    ]
    assert (
        studies[1].questions[0].answer == "12" and "image_organ HEAD; only CHEST" in rejects[0][3]
    )
    path = tmp_path / "VQA_RAD Dataset Public.json"
    path.write_text(
        json.dumps(
            [
                *json.loads(path.read_text()),
                7,
                {"image_name": "synpic1.jpg", "image_organ": "CHEST"},
            ]
        )
    )
    assert [why[2] for why in read("vqa-rad", tmp_path)[1]] == ["question", "question", "read"]


def test_options_that_a_source_lacks(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="source chexpert has no option reports; it has valid"):
        read("chexpert", tmp_path, reports="x")


def test_prepare_counts_what_was_read(tmp_path: Path) -> None:
    """read = kept + rejected, through the command line: one study is kept, one has a damaged image,
    one has none.
    """
    indiana_kaggle(tmp_path / "raw")
    folder = tmp_path / "raw/images/images_normalized"
    folder.mkdir(parents=True)
    cv2.imwrite(
        str(folder / "1_IM-0001-4001.dcm.png"), np.arange(1024, dtype=np.uint8).reshape(32, 32)
    )
    (folder / "2_IM-0652-1001.dcm.png").write_bytes(b"no image")
    assert (
        main(
            [
                "prepare",
                "indiana-kaggle",
                str(tmp_path / "raw"),
                "--out",
                str(tmp_path / "out"),
                "--workers",
                "1",
            ]
        )
        == 0
    )
    facts = json.loads((tmp_path / "out/corpus.json").read_text())
    assert facts["total"]["studies"] == {"read": 3, "kept": 1, "rejected": 2}
    rejects = (tmp_path / "out/rejects.csv").read_text()
    assert all(text in rejects for text in ("CXR1", "CXR2", "CXR10"))


def test_the_reader_in_the_docs_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[2] / "docs/datasets.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (code,) = [block for block in blocks if "def read(" in block]
    assert len(code.splitlines()) < 60
    (tmp_path / "padchest_of_the_docs.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(SOURCES, "padchest", "padchest_of_the_docs")
    rows = (
        ("1_a.png", 0, "1", "p", "PA", "['normal']"),
        ("1_b.png", 0, "1", "p", "L", "['normal']"),
        ("2_a.png", 3, "2", "p", "AP_horizontal", "['pulmonary edema', ' nodule']"),
        ("../3_a.png", 3, "3", "q", "PA", "['normal']"),
        ("4_a.png", 3, "4", "q", "PA", "nan"),
        ("5_a.png", "..", "5", "q", "PA", "['normal']"),
    )
    columns = ("ImageID", "ImageDir", "StudyID", "PatientID", "Projection", "Labels")
    write_csv(
        tmp_path / "root/PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv", columns, *rows
    )
    studies, rejects = read("padchest", tmp_path / "root")
    assert [[image.view for image in s.images] for s in studies] == [["PA", "LATERAL"], ["AP"]]
    assert studies[0].images[1].path == tmp_path / "root/0/1_b.png"
    assert studies[1].labels == {"edema": "present", "lung lesion": "present"}
    assert len({s.split for s in studies}) == 1 and [why[0] for why in rejects] == ["3", "4", "5"]


def test_the_docs_name_every_source_and_option() -> None:
    page = (Path(__file__).parents[2] / "docs/datasets.md").read_text(encoding="utf-8")
    for name in SOURCES:
        (line,) = [line for line in page.splitlines() if line.startswith(f"| `{name}` |")]
        assert set(re.findall(r"`(\w+)`", line.split("|")[3])) == set(source_options(name))


@pytest.mark.slow
def test_official_counts_of_the_real_tables(tmp_path: Path) -> None:
    """The label tables that torchxrayvision carries are the datasets' own: studies and patients as
    published.
    """
    tables = Path(pytest.importorskip("torchxrayvision").__file__).parent / "data"
    for folder in ("chexpert", "nih/images", "rsna"):
        (tmp_path / folder).mkdir(parents=True)
    shutil.copy(tables / "chexpert_train.csv.gz", tmp_path / "chexpert/train.csv.gz")
    chexpert(tmp_path / "valid")
    shutil.copy(tmp_path / "valid/valid.csv", tmp_path / "chexpert")
    shutil.copy(tables / "Data_Entry_2017_v2020.csv.gz", tmp_path / "nih")
    (tmp_path / "nih/images/00000001_000.png").touch()
    with zipfile.ZipFile(tables / "kaggle_stage_2_train_labels.csv.zip") as archive:
        name = next(
            n
            for n in archive.namelist()
            if n.endswith("stage_2_train_labels.csv") and "MACOSX" not in n
        )
        (tmp_path / "rsna/stage_2_train_labels.csv").write_bytes(archive.read(name))
    for source, studies, patients, images in (
        ("chexpert", 187_642, 64_541, 223_415),
        ("nih", 112_120, 30_805, 112_120),
        ("rsna", 26_684, 26_684, 26_684),
    ):
        found, rejects = read(source, tmp_path / source)
        counts = len(found), len({s.patient for s in found}), sum(len(s.images) for s in found)
        assert not rejects and counts == (studies, patients, images)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_mutants_are_read_or_refused(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Bytes changed, cut or doubled in any table, JSON, XML or text: studies, rejects or a
    UserError naming a file.
    """
    name = data.draw(st.sampled_from(sorted(SOURCES)))
    root = tmp_path_factory.mktemp("mutant")
    LAYOUTS[name](root)
    path = data.draw(
        st.sampled_from(sorted(p for p in root.rglob("*.*") if p.is_file() and p.stat().st_size))
    )
    raw = path.read_bytes()
    start, length = (data.draw(st.integers(0, len(raw) - 1)) for _ in range(2))
    middle = data.draw(
        st.one_of(
            st.binary(max_size=8), st.sampled_from([b"\n", b",", b'"', b"{", b"null", b"\0", raw])
        )
    )
    path.write_bytes(raw[:start] + middle + raw[start + length % 16 :])
    try:
        studies, rejects = read(name, root)
    except UserError as error:
        assert str(root) in str(error)
        return
    assert all(isinstance(text, str) for why in rejects for text in why)
    assert all(
        image.path.is_relative_to(root) and ".." not in image.path.parts
        for s in studies
        for image in s.images
    )
    assert len({s.study for s in studies}) == len(studies)
    assert len({s.patient for s in studies}) == len({(s.patient, s.split) for s in studies})


@pytest.mark.parametrize(
    ("headings", "labels"),
    [
        (["Tube, Inserted/trachea"], {"support devices": "present"}),
        (["Cardiac Shadow/enlarged/mild"], {"cardiomegaly": "present"}),
        (["Cardiomegaly/borderline"], {"cardiomegaly": "uncertain"}),
        (["Cardiomegaly/borderline", "Cardiac Shadow/enlarged"], {"cardiomegaly": "present"}),
        (["Costophrenic Angle/left/blunted"], {"pleural effusion": "uncertain"}),
        (
            ["Costophrenic Angle/blunted", "Pleural Effusion/left"],
            {"pleural effusion": "present"},
        ),
        (
            ["Opacity/lung/apex/round"],
            {"lung lesion": "present", "lung opacity": "present"},
        ),
        (["Density/ribs/round"], {}),
        (["Lung/hyperdistention"], {"hyperinflation": "present"}),
        (["normal"], {"no finding": "present"}),
    ],
)
def test_mesh_headings_with_their_qualifiers(headings: list[str], labels: dict[str, str]) -> None:
    found = mesh_labels(headings)
    assert {name: label for name, label in found.items() if label != "absent"} == labels
    assert set(found) == set(MESH.values())


@pytest.mark.parametrize("headings", [[], [""], ["No Indexing"]])
def test_a_report_that_nobody_indexed_has_no_labels(headings: list[str]) -> None:
    assert mesh_labels(headings) == {}
