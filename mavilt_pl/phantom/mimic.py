"""Phantoms in the layouts of MIMIC-CXR-JPG 2.x (pictures, reports, tables) and MIMIC-CXR 2.x
(DICOM, reports, lists).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import cv2
import numpy as np
from rich.progress import track

from mavilt_pl.parallel.process_pool import process_pool
from mavilt_pl.phantom.anatomy import Projection, draw_body, render
from mavilt_pl.phantom.files import picture, write_archive, write_table
from mavilt_pl.phantom.findings import MIMIC_FINDINGS, Finding, draw_findings
from mavilt_pl.phantom.shapes import Array
from mavilt_pl.phantom.wording import findings_text, impression_text

CHEXPERT = (
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
METADATA = (
    "dicom_id",
    "subject_id",
    "study_id",
    "PerformedProcedureStepDescription",
    "ViewPosition",
    "Rows",
    "Columns",
    "StudyDate",
    "StudyTime",
    "ProcedureCodeSequence_CodeMeaning",
    "ViewCodeSequence_CodeMeaning",
    "PatientOrientationCodeSequence_CodeMeaning",
)
VIEW_CODE = {"PA": "postero-anterior", "AP": "antero-posterior", "LATERAL": "lateral"}
REPORT = """                                 FINAL REPORT
 EXAMINATION:  {examination}

 INDICATION:  ___ year old patient, phantom.

 COMPARISON:  None.

 FINDINGS:

 {findings}

 IMPRESSION:

 {impression}
"""


class Task(NamedTuple):
    root: Path
    seed: int
    subject: int
    study: int
    split: str
    size: int
    number: int  # of the study, from 0
    laterals: float
    pixels: Literal["jpg", "dicom"]
    zipped: bool


class Row(NamedTuple):
    """What a study adds to the tables: a split, a metadata and a record row an image, a row of
    labels, and its report.
    """

    splits: list[dict]
    metadata: list[dict]
    labels: dict
    report: tuple[str, str]  # path under the root; text, where it goes into the archive
    records: list[dict]


def _labels(findings: list[Finding]) -> dict[str, str]:
    present = {finding.name for finding in findings}
    row = {name: "" for name in CHEXPERT}
    row |= {
        name: "1.0" if name.lower() in present else "0.0"
        for name in CHEXPERT
        if name.lower() in MIMIC_FINDINGS
    }
    if not present:
        row["No Finding"] = "1.0"
    return row


def _name(rng: np.random.Generator) -> str:
    return "-".join(f"{rng.integers(2**32):08x}" for _ in range(5))


def _draw(task: Task) -> tuple[list[tuple[str, Projection, Array]], list[Finding], str, str]:
    """Images as name, view and pixels; findings; the examination's name; the report's text.
    Laterals have a random stream of their own, so that the frontal images and the reports'
    sentences are the same with and without them.
    """
    rng, beside = (np.random.default_rng([task.seed, task.number, *more]) for more in ((), (1,)))
    findings = draw_findings(rng)
    view: Projection = "AP" if rng.choice(["PA", "AP"]) == "AP" else "PA"
    body = draw_body(rng, findings)
    image = render(body, findings, task.size, rng, view)
    images: list[tuple[str, Projection, Array]] = [(_name(rng), view, image)]
    examination = f"CHEST ({view})"
    if beside.random() < task.laterals:
        images.append(
            (_name(beside), "LATERAL", render(body, findings, task.size, beside, "LATERAL"))
        )
        examination = f"CHEST ({view} AND LAT)"
    text = REPORT.format(
        examination=examination,
        findings=findings_text(findings, rng),
        impression=impression_text(findings),
    )
    return images, findings, examination, text


def _write_study(task: Task) -> Row:
    cv2.setNumThreads(1)
    images, findings, examination, text = _draw(task)
    bedside = (
        len(images) == 1 and images[0][1] == "AP"
    )  # a patient who cannot stand has no lateral taken
    date = 21000101 + task.number % 28
    patient = f"files/p{str(task.subject)[:2]}/p{task.subject}"
    folder = task.root / patient / f"s{task.study}"
    folder.mkdir(parents=True, exist_ok=True)
    ids = {"subject_id": task.subject, "study_id": task.study}
    splits, metadata, records = [], [], []
    for name, view, image in images:
        if task.pixels == "jpg":
            (folder / f"{name}.jpg").write_bytes(picture(image, ".jpg"))
        else:
            from mavilt_pl.phantom.dicom import dicom, variety

            kind = variety(task.number + (view == "LATERAL"))
            (folder / f"{name}.dcm").write_bytes(
                dicom(image, kind, task.subject, task.study, name, view, date)
            )
        splits.append(
            {
                "dicom_id": name,
                "study_id": task.study,
                "subject_id": task.subject,
                "split": task.split,
            }
        )
        records.append(ids | {"dicom_id": name, "path": f"{patient}/s{task.study}/{name}.dcm"})
        meta = dict.fromkeys(METADATA, "") | {"dicom_id": name} | ids
        meta |= {"ViewPosition": view, "Rows": task.size, "Columns": task.size, "StudyDate": date}
        meta |= {
            "PerformedProcedureStepDescription": examination,
            "StudyTime": f"{7 + task.number % 12:02d}{task.number % 60:02d}00.000",
            "ProcedureCodeSequence_CodeMeaning": "CHEST (PORTABLE AP)" if bedside else examination,
            "ViewCodeSequence_CodeMeaning": VIEW_CODE[view],
            "PatientOrientationCodeSequence_CodeMeaning": "Recumbent" if bedside else "Erect",
        }
        metadata.append(meta)
    report = f"{patient}/s{task.study}.txt"
    if not task.zipped:
        (task.root / report).write_text(text, encoding="utf-8")
    return Row(
        splits, metadata, ids | _labels(findings), (report, text if task.zipped else ""), records
    )


def _tasks(
    root: Path,
    studies: int,
    size: int,
    seed: int,
    validate: int,
    test: int,
    laterals: float,
    pixels: Literal["jpg", "dicom"],
    zipped: bool = False,
) -> Iterator[Task]:
    """Patients have one to three studies; whole patients go to test, then to validate, then to
    train.
    """
    rng = np.random.default_rng([seed, 2**32 - 1])
    subject, number = 10_000_031, 0
    while number < studies:
        subject += int(rng.integers(1, 30))
        split = "test" if number < test else "validate" if number < test + validate else "train"
        end = test if split == "test" else test + validate if split == "validate" else studies
        for _ in range(min(int(rng.integers(1, 4)), end - number)):
            yield Task(
                root,
                seed,
                subject,
                50_000_000 + number,
                split,
                size,
                number,
                laterals,
                pixels,
                zipped,
            )
            number += 1


def write_mimic(
    root: Path,
    studies: int,
    size: int = 160,
    seed: int = 0,
    validate: int = 0,
    test: int = 0,
    workers: int = 1,
    laterals: float = 0.0,
    pixels: Literal["jpg", "dicom"] = "jpg",
    zipped: bool = False,
) -> None:
    """Write `studies` studies of `size`² pixels under `root`; of them `validate` and `test` go to
    those splits, and the share `laterals` has a lateral beside its frontal image. `pixels` chooses
    between the two releases: JPEG with the tables of labels and splits, or DICOM with the lists of
    records; `zipped` puts reports into mimic-cxr-reports.zip.

    The same arguments give the same bytes, whatever the number of workers. The split table or
    record list is written last: a folder without it is not a dataset to any reader.
    """
    tasks = list(_tasks(root, studies, size, seed, validate, test, laterals, pixels, zipped))
    title = "Phantoms, MIMIC-CXR-JPG" if pixels == "jpg" else "Phantoms, MIMIC-CXR"
    with process_pool(workers) as processes:
        rows = list(track(processes.map(_write_study, tasks, chunksize=32), title, len(tasks)))
    if zipped:
        write_archive(root / "mimic-cxr-reports.zip", dict(row.report for row in rows))
    splits = [split for row in rows for split in row.splits]
    if pixels == "jpg":
        labels = [row.labels for row in rows]
        write_table(
            root / "mimic-cxr-2.0.0-metadata.csv.gz",
            [meta for row in rows for meta in row.metadata],
        )
        write_table(root / "mimic-cxr-2.0.0-chexpert.csv.gz", labels)
        write_table(root / "mimic-cxr-2.0.0-negbio.csv.gz", labels)
        tested = {split["study_id"] for split in splits if split["split"] == "test"}
        read = [row for row in labels if row["study_id"] in tested]
        if read:  # on the test set radiologists labelled what was there
            write_table(
                root / "mimic-cxr-2.1.0-test-set-labeled.csv", read, ("study_id", *CHEXPERT)
            )
        write_table(root / "mimic-cxr-2.0.0-split.csv.gz", splits)
    else:
        studies_listed = [row.labels | {"path": row.report[0]} for row in rows]
        write_table(
            root / "cxr-study-list.csv.gz", studies_listed, ("subject_id", "study_id", "path")
        )
        write_table(
            root / "cxr-record-list.csv.gz", [record for row in rows for record in row.records]
        )
