"""Phantoms in the layout of MIMIC-CXR-JPG 2.x: images, reports and the three tables, with the official columns."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from rich.progress import track

from mavilt_pl.phantom.anatomy import draw_body, render
from mavilt_pl.phantom.findings import MIMIC_FINDINGS, Finding, draw_findings
from mavilt_pl.phantom.wording import findings_text, impression_text
from mavilt_pl.workers import pool

CHEXPERT = (
    "Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Enlarged Cardiomediastinum", "Fracture", "Lung Lesion",
    "Lung Opacity", "No Finding", "Pleural Effusion", "Pleural Other", "Pneumonia", "Pneumothorax", "Support Devices",
)  # fmt: skip
METADATA = (
    "dicom_id", "subject_id", "study_id", "PerformedProcedureStepDescription", "ViewPosition", "Rows", "Columns",
    "StudyDate", "StudyTime", "ProcedureCodeSequence_CodeMeaning", "ViewCodeSequence_CodeMeaning",
    "PatientOrientationCodeSequence_CodeMeaning",
)  # fmt: skip
REPORT = """                                 FINAL REPORT
 EXAMINATION:  CHEST ({view})

 INDICATION:  ___ year old patient, phantom.

 COMPARISON:  None.

 FINDINGS:

 {findings}

 IMPRESSION:

 {impression}
"""


def _labels(findings: list[Finding]) -> dict[str, str]:
    present = {finding.name for finding in findings}
    row = {name: "" for name in CHEXPERT}
    row |= {name: "1.0" if name.lower() in present else "0.0" for name in CHEXPERT if name.lower() in MIMIC_FINDINGS}
    if not present:
        row["No Finding"] = "1.0"
    return row


def _write_study(task: tuple[Path, int, int, int, str, int, int]) -> tuple[dict, dict, dict]:
    """One study: its image, its report, and its rows in the split, metadata and label tables."""
    root, seed, subject, study, split, size, number = task
    rng = np.random.default_rng([seed, number])
    cv2.setNumThreads(1)
    findings = draw_findings(rng)
    view = str(rng.choice(["PA", "AP"]))
    image = render(draw_body(rng, findings), findings, size, rng, "AP" if view == "AP" else "PA")
    dicom = "-".join(f"{rng.integers(2**32):08x}" for _ in range(5))
    folder = root / "files" / f"p{str(subject)[:2]}" / f"p{subject}"
    (folder / f"s{study}").mkdir(parents=True, exist_ok=True)
    _, data = cv2.imencode(".jpg", (image * 255).round().astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 95])
    (folder / f"s{study}" / f"{dicom}.jpg").write_bytes(data.tobytes())
    text = REPORT.format(view=view, findings=findings_text(findings, rng), impression=impression_text(findings))
    (folder / f"s{study}.txt").write_text(text, encoding="utf-8")
    ids = {"dicom_id": dicom, "subject_id": subject, "study_id": study}
    meta = dict.fromkeys(METADATA, "") | ids | {"ViewPosition": view, "Rows": size, "Columns": size}
    meta |= {"PerformedProcedureStepDescription": f"CHEST ({view})", "StudyDate": 21000101 + number % 28}
    return ids | {"split": split}, meta, {"subject_id": subject, "study_id": study} | _labels(findings)


def _tasks(root: Path, studies: int, size: int, seed: int, validate: int, test: int) -> Iterator[tuple]:
    """Patients have one to three studies; whole patients go to test, then to validate, then to train."""
    rng = np.random.default_rng([seed, 2**32 - 1])
    subject, number = 10_000_031, 0
    while number < studies:
        subject += int(rng.integers(1, 30))
        split = "test" if number < test else "validate" if number < test + validate else "train"
        end = test if split == "test" else test + validate if split == "validate" else studies
        for _ in range(min(int(rng.integers(1, 4)), end - number)):
            yield root, seed, subject, 50_000_000 + number, split, size, number
            number += 1


def _table(path: Path, rows: list[dict]) -> None:
    with gzip.open(path, "wt", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_mimic(root: Path, studies: int, size: int = 160, seed: int = 0, validate: int = 0, test: int = 0,
                workers: int = 1) -> None:  # fmt: skip
    """Write `studies` frontal studies of `size`² pixels under `root`; of them `validate` and `test` go to those splits.

    The same arguments give the same bytes, whatever the number of workers. The split table is written last: a folder
    without it is not a dataset to any reader.
    """
    tasks = list(_tasks(root, studies, size, seed, validate, test))
    with pool(workers) as processes:
        rows = list(track(processes.map(_write_study, tasks, chunksize=32), "Phantoms, MIMIC-CXR-JPG", len(tasks)))
    splits, metadata, labels = ([row[i] for row in rows] for i in range(3))
    _table(root / "mimic-cxr-2.0.0-metadata.csv.gz", metadata)
    _table(root / "mimic-cxr-2.0.0-chexpert.csv.gz", labels)
    _table(root / "mimic-cxr-2.0.0-negbio.csv.gz", labels)
    _table(root / "mimic-cxr-2.0.0-split.csv.gz", splits)
