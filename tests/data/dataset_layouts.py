"""Each dataset, small, in its official layout with its official columns.

In a writer, `name` replaces the last image's file name.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import pandas as pd

LABELS = (
    "Atelectasis",
    "Cardiomegaly",
    "Consolidation",
    "Edema",
    "Enlarged Cardiomediastinum",
    "Fracture",
    "Lung Lesion",
    "Lung Opacity",
    "No Finding",
    "Pleural Effusion",
    "Pleural Other",
    "Pneumonia",
    "Pneumothorax",
    "Support Devices",
)
REPORT = (
    " FINAL REPORT\n INDICATION: ___.\n\n"
    " FINDINGS:\n\n Effusion {n}.\n\n IMPRESSION:\n\n Seen {n}.\n"
)


def write_csv(path: Path, columns: Iterable[str], *rows: Iterable[object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame([list(row) for row in rows], columns=list(columns)).to_csv(path, index=False)


def jpg_tables(root: Path, dicoms: Iterable[str]) -> None:
    """Tables of MIMIC-CXR-JPG for three studies of two patients, the first with two images."""
    ids = [
        [*row] for row in zip(dicoms, (50, 50, 51, 52), (10000001, 10000001, 10000001, 10000002))
    ]
    splits, views = ("test", "test", "test", "validate"), ("PA", "LL", "AP", "")
    keys = ("dicom_id", "study_id", "subject_id")
    write_csv(
        root / "mimic-cxr-2.0.0-split.csv",
        (*keys, "split"),
        *([*row, split] for row, split in zip(ids, splits)),
    )
    meta = (
        *keys,
        "PerformedProcedureStepDescription",
        "ViewPosition",
        "ViewCodeSequence_CodeMeaning",
    )
    rows = ([*row, "CHEST", view, "lateral"] for row, view in zip(ids, views))
    write_csv(root / "mimic-cxr-2.0.0-metadata.csv", meta, *rows)
    known = {"Edema": "1.0", "Pneumonia": "-1.0", "Fracture": "0.0"}
    label_rows = (
        [patient, study, *(known.get(n, "") for n in LABELS)] for _, study, patient in ids[1:]
    )
    write_csv(
        root / "mimic-cxr-2.0.0-chexpert.csv", ("subject_id", "study_id", *LABELS), *label_rows
    )


def mimic_cxr_jpg(root: Path, name: str = "e-4") -> None:
    jpg_tables(root, ("a-1", "b-2", "c-3", name))
    for patient, study in ((10000001, 50), (10000001, 51)):  # the third study has no report
        path = root / f"files/p10/p{patient}/s{study}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(REPORT.format(n=study))


def mimic_cxr(root: Path, name: str = "files/p10/p10000002/s52/e-4.dcm") -> None:
    home = "files/p10/p10000001"
    paths = (f"{home}/s50/a-1.dcm", f"{home}/s50/b-2.dcm", f"{home}/s51/c-3.dcm", name)
    rows = zip(
        (10000001, 10000001, 10000001, 10000002),
        (50, 50, 51, 52),
        ("a-1", "b-2", "c-3", "e-4"),
        paths,
    )
    write_csv(root / "cxr-record-list.csv", ("subject_id", "study_id", "dicom_id", "path"), *rows)
    listed = [
        (10000001, 50, f"{home}/s50.txt"),
        (10000001, 51, f"{home}/s51.txt"),
        (10000002, 52, "files/p10/p10000002/s52.txt"),
    ]
    write_csv(root / "cxr-study-list.csv", ("subject_id", "study_id", "path"), *listed)
    for _, study, path in listed:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(REPORT.format(n=study))


XML = """<?xml version="1.0" encoding="utf-8"?><eCitation>
<uId id="CXR{n}"/><MedlineCitation><Article><Abstract>
<AbstractText Label="COMPARISON">None.</AbstractText><AbstractText Label="INDICATION"/>
<AbstractText Label="FINDINGS">Findings {n}.</AbstractText>
<AbstractText Label="IMPRESSION">Normal {n}.</AbstractText>
</Abstract></Article></MedlineCitation><MeSH><major>Cardiomegaly/mild</major></MeSH>{images}</eCitation>"""
KAGGLE = ("uid", "MeSH", "Problems", "image", "indication", "comparison", "findings", "impression")


def projections(root: Path, name: str) -> None:
    rows = (
        (1, "1_IM-0001-4001.dcm.png", "Frontal"),
        (1, "1_IM-0001-3001.dcm.png", "Lateral"),
        (2, name, "Frontal"),
    )
    write_csv(root / "indiana_projections.csv", ("uid", "filename", "projection"), *rows)


def indiana(root: Path, name: str = "CXR2_IM-0652-1001") -> None:
    (root / "ecgen-radiology").mkdir(parents=True)
    for n, keys in ((1, ("CXR1_1_IM-0001-4001", "CXR1_1_IM-0001-3001")), (2, (name,)), (10, ())):
        images = "".join(
            f'<parentImage id="{key}"><caption>PA</caption></parentImage>' for key in keys
        )
        (root / f"ecgen-radiology/{n}.xml").write_text(XML.format(n=n, images=images))
    projections(root, "2_IM-0652-1001.dcm.png")
    header = (
        ("CXR1_1_IM-0001-4001", "PA"),
        ("CXR1_1_IM-0001-3001", "PA"),
        ("CXR2_IM-0652-1001", ""),
    )
    write_csv(root / "nlmcxr_dicom_metadata.csv", ("imageid", "View Position"), *header)


def indiana_kaggle(root: Path, name: str = "2_IM-0652-1001.dcm.png") -> None:
    reports = (
        (
            n,
            "Cardiomegaly/mild;Lung/hyperdistention",
            "",
            "PA",
            "",
            "None.",
            f"Findings {n}.",
            f"Normal {n}.",
        )
        for n in (1, 2, 10)
    )
    write_csv(root / "indiana_reports.csv", KAGGLE, *reports)
    projections(root, name)


def r2gen(root: Path, name: str = "CXR2_IM-0652/0.png") -> None:
    (root / "images").mkdir(parents=True)
    entries = [
        {
            "id": f"CXR{n}_IM-000{n}",
            "report": f"Findings {n}.",
            "image_path": [f"CXR{n}_IM-000{n}/{i}.png" for i in (0, 1)],
        }
        for n in (1, 3)
    ]
    entries.append({"id": "CXR2_IM-0652", "report": "Findings 2.", "image_path": [name]})
    (root / "annotation.json").write_text(
        json.dumps(dict(zip(("train", "val", "test"), ([e] for e in entries))))
    )


def nih(root: Path, name: str = "00000003_000.png") -> None:
    rows = (
        ("00000001_000.png", "Cardiomegaly|Effusion", 1, "PA"),
        ("00000001_001.png", "No Finding", 1, "AP"),
        (name, "Hernia", 3, "PA"),
    )
    columns = ("Image Index", "Finding Labels", "Patient ID", "View Position")
    write_csv(root / "Data_Entry_2017_v2020.csv", columns, *rows)
    (root / "images_001/images").mkdir(parents=True)
    (root / "images_001/images/00000001_000.png").touch()
    (root / "test_list.txt").write_text("\ufeff00000001_000.png\r\n00000001_001.png\r\n")


def chexpert(
    root: Path, name: str = "CheXpert-v1.0-small/train/patient00002/study1/view1_frontal.jpg"
) -> None:
    columns = ("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *LABELS)
    labels = ["1.0", "", "0.0", "-1.0", *[""] * 10]
    home = "CheXpert-v1.0-small/{}/patient{:05d}/study1/view{}.jpg".format
    rows = (
        (home("train", 1, "1_frontal"), "F", 68, "Frontal", "AP"),
        (home("train", 1, "2_lateral"), "F", 68, "Lateral", ""),
        (name, "M", 50, "Frontal", "PA"),
    )
    write_csv(root / "train.csv", columns, *([*row, *labels] for row in rows))
    write_csv(
        root / "valid.csv",
        columns,
        [home("valid", 64541, "1_frontal"), "M", 73, "Frontal", "", *["0.0"] * 14],
    )


def rsna(root: Path, name: str = "c") -> None:
    boxes = (
        ("a", "1", "2", "3", "4", 1),
        ("a", "5", "6", "7", "8", 1),
        ("b", "", "", "", "", 0),
        (name, "", "", "", "", 0),
    )
    write_csv(
        root / "stage_2_train_labels.csv",
        ("patientId", "x", "y", "width", "height", "Target"),
        *boxes,
    )
    classes = (
        ("a", "Lung Opacity"),
        ("a", "Lung Opacity"),
        ("b", "Normal"),
        (name, "No Lung Opacity / Not Normal"),
    )
    write_csv(root / "stage_2_detailed_class_info.csv", ("patientId", "class"), *classes)


def vqa_rad(root: Path, name: str = "synpic2.jpg") -> None:
    (root / "VQA_RAD Image Folder").mkdir(parents=True)
    rows = (
        ("synpic1.jpg", "CHEST", "Is there a pneumothorax?", "No", "CLOSED ", "PRES"),
        ("synpic1.jpg", "CHEST", "Where is the nodule?", "left lung", "OPEN", "POS"),
        ("synpic9.jpg", "HEAD", "Is it normal?", "Yes", "CLOSED", "ABN"),
        (name, "CHEST", "How many ribs?", 12, "OPEN", "COUNT"),
    )
    keys = ("image_name", "image_organ", "question", "answer", "answer_type", "question_type")
    (root / "VQA_RAD Dataset Public.json").write_text(
        json.dumps([dict(zip(keys, row)) for row in rows])
    )


def table(root: Path, name: str = "b/3.png") -> None:
    rows = (
        ("a/1.png", "s1", "p1", "train", "PA", REPORT.format(n=1), "Edema=1; Mass=0"),
        ("a/2.png", "s1", "p1", "train", "LL", "", ""),
        ("a/3.png", "s2", "p1", "train", "AP", "", ""),
        (name, "s3", "p3", "test", "", "Clear lungs.", "No Finding=present"),
    )
    columns = ("image", "study", "patient", "split", "view", "report", "labels")
    write_csv(root / "studies.csv", columns, *rows)


LAYOUTS: dict[str, Callable[..., None]] = {
    "mimic-cxr-jpg": mimic_cxr_jpg,
    "mimic-cxr": mimic_cxr,
    "indiana": indiana,
    "indiana-kaggle": indiana_kaggle,
    "r2gen": r2gen,
    "nih": nih,
    "chexpert": chexpert,
    "rsna": rsna,
    "vqa-rad": vqa_rad,
    "table": table,
}
