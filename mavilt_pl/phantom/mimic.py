"""Phantoms in the layouts of MIMIC-CXR-JPG 2.x (pictures and tables) and MIMIC-CXR 2.x (DICOM)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from rich.progress import track

from mavilt_pl.parallel.process_pool import process_pool
from mavilt_pl.phantom.anatomy import Projection, render, sample_body
from mavilt_pl.phantom.demographics import write_demographics
from mavilt_pl.phantom.files import encode_picture, write_archive, write_table
from mavilt_pl.phantom.findings import Finding, sample_findings
from mavilt_pl.phantom.shapes import Array
from mavilt_pl.phantom.wording import findings_text, impression_text, worded_findings

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
# As MIMIC-CXR numbers them: patients p10… to p19…, studies s50… on.
FIRST_SUBJECT, FIRST_STUDY = 10_000_031, 50_000_000
YEAR = 2100  # of all studies
STUDIES_PER_TASK = 32  # tasks sent to a worker at a time


@dataclass(frozen=True)
class MimicOptions:
    """What to write; the same options give the same bytes.

    Args:
        root: an existing folder.
        studies: number of studies.
        size: pixels along each side.
        seed: of everything random.
        validate: number of studies in that split.
        test: number of studies in that split.
        laterals: share of studies with a lateral as well as a frontal image.
        pixels: jpg with the tables of labels and splits, or dicom with the lists of records.
        zipped: put the reports into mimic-cxr-reports.zip.
    """

    root: Path
    studies: int
    size: int = 160
    seed: int = 0
    validate: int = 0
    test: int = 0
    laterals: float = 0.0
    pixels: Literal["jpg", "dicom"] = "jpg"
    zipped: bool = False


@dataclass(frozen=True)
class StudyTask:
    """One study to write.

    Args:
        options: of the dataset.
        subject: identifier of the patient.
        study: identifier of the study.
        split: under its name in the split table.
        number: of the study, from 0; it determines the images.
    """

    options: MimicOptions
    subject: int
    study: int
    split: str
    number: int

    @property
    def patient_folder(self) -> str:
        """Relative to the root."""
        return f"files/p{str(self.subject)[:2]}/p{self.subject}"


@dataclass(frozen=True)
class RenderedStudy:
    """Images as name, projection and pixels [H,W]; findings; texts."""

    images: list[tuple[str, Projection, Array]]
    findings: list[Finding]
    examination: str
    report: str

    @property
    def bedside(self) -> bool:
        """Whether the patient could not stand: an AP image, and no lateral is taken."""
        return len(self.images) == 1 and self.images[0][1] == "AP"


@dataclass
class StudyRows:
    """What a study adds to the tables: a split, metadata and record row an image, and labels.

    `report` is its path under the root and, if it goes into the archive, its text.
    """

    labels: dict[str, Any]
    report: tuple[str, str]
    splits: list[dict[str, Any]] = field(default_factory=list)
    metadata: list[dict[str, Any]] = field(default_factory=list)
    records: list[dict[str, Any]] = field(default_factory=list)


def write_mimic(options: MimicOptions, workers: int = 1) -> None:
    """Write a dataset; the bytes do not depend on the number of workers.

    The split table or record list is written last: a folder without it is not a dataset to any
    reader.
    """
    tasks = list(study_tasks(options))
    title = "Phantoms, MIMIC-CXR-JPG" if options.pixels == "jpg" else "Phantoms, MIMIC-CXR"
    with process_pool(workers) as processes:
        results = processes.map(_write_study, tasks, chunksize=STUDIES_PER_TASK)
        studies = list(track(results, title, len(tasks)))
    if options.zipped:
        reports = dict(study.report for study in studies)
        write_archive(options.root / "mimic-cxr-reports.zip", reports)
    # MIMIC-IV is a download of its own, of the same patients.
    write_demographics(options.root, [task.subject for task in tasks], YEAR, options.seed)
    if options.pixels == "jpg":
        _write_jpg_tables(options.root, studies)
    else:
        _write_dicom_lists(options.root, studies)


def study_tasks(options: MimicOptions) -> Iterator[StudyTask]:
    """Yield the studies in order; a patient has one to three.

    Whole patients go to test, then to validate, then to train.
    """
    # A stream that no study number reaches.
    rng = np.random.default_rng([options.seed, 2**32 - 1])
    ends = {
        "test": options.test,
        "validate": options.test + options.validate,
        "train": options.studies,
    }
    subject, number = FIRST_SUBJECT, 0
    while number < options.studies:
        # Gaps, as in the real numbering: a reader must not take identifiers for positions.
        subject += int(rng.integers(1, 30))
        # Of the first split that is not full; the patient's studies below are cut to what it still
        # takes.
        split = next(name for name, end in ends.items() if number < end)
        for _ in range(min(int(rng.integers(1, 4)), ends[split] - number)):
            yield StudyTask(options, subject, FIRST_STUDY + number, split, number)
            number += 1


def render_study(task: StudyTask) -> RenderedStudy:
    """Sample and render a study.

    Laterals have a random stream of their own: the frontal images and the reports' sentences are
    the same with and without them.
    """
    options = task.options
    rng = np.random.default_rng([options.seed, task.number])
    lateral_rng = np.random.default_rng([options.seed, task.number, 1])
    findings = sample_findings(rng)
    # rng.choice returns numpy's own text type.
    view: Projection = "AP" if rng.choice(["PA", "AP"]) == "AP" else "PA"
    body = sample_body(rng, findings)
    frontal = render(body, findings, options.size, rng, view)
    images: list[tuple[str, Projection, Array]] = [(_random_name(rng), view, frontal)]
    examination = f"CHEST ({view})"
    if lateral_rng.random() < options.laterals:
        name = _random_name(lateral_rng)
        lateral = render(body, findings, options.size, lateral_rng, "LATERAL")
        images.append((name, "LATERAL", lateral))
        examination = f"CHEST ({view} AND LAT)"
    report = REPORT.format(
        examination=examination,
        findings=findings_text(findings, rng),
        impression=impression_text(findings),
    )
    return RenderedStudy(images, findings, examination, report)


def _random_name(rng: np.random.Generator) -> str:
    return "-".join(f"{rng.integers(2**32):08x}" for _ in range(5))


def _write_study(task: StudyTask) -> StudyRows:
    """Write a study's images and, unless it is zipped, its report."""
    cv2.setNumThreads(1)  # one process runs on each core
    options = task.options
    study = render_study(task)
    folder = options.root / task.patient_folder / f"s{task.study}"
    folder.mkdir(parents=True, exist_ok=True)
    report = f"{task.patient_folder}/s{task.study}.txt"
    if not options.zipped:
        (options.root / report).write_text(study.report, encoding="utf-8")
    ids = {"subject_id": task.subject, "study_id": task.study}
    rows = StudyRows(
        labels=ids | _labels(study.findings),
        # The text goes back to the parent only for the archive: otherwise memory would grow with
        # the studies.
        report=(report, study.report if options.zipped else ""),
    )
    # MIMIC's dates are shifted to the years 2100 and later.
    date = YEAR * 10_000 + 101 + task.number % 28
    for name, view, image in study.images:
        path = folder / f"{name}.{'jpg' if options.pixels == 'jpg' else 'dcm'}"
        path.write_bytes(_encode(task, image, name, view, date))
        rows.splits.append(
            {
                "dicom_id": name,
                "study_id": task.study,
                "subject_id": task.subject,
                "split": task.split,
            }
        )
        record = f"{task.patient_folder}/s{task.study}/{name}.dcm"
        rows.records.append(ids | {"dicom_id": name, "path": record})
        rows.metadata.append(_metadata(task, study, name, view, date))
    return rows


def _encode(task: StudyTask, image: Array, name: str, view: Projection, date: int) -> bytes:
    if task.options.pixels == "jpg":
        return encode_picture(image, ".jpg")
    from mavilt_pl.phantom.dicom import encode_dicom, variety

    # The two images of a study are of different varieties.
    kind = variety(task.number + (view == "LATERAL"))
    return encode_dicom(image, kind, task.subject, task.study, name, view, date)


def _metadata(
    task: StudyTask, study: RenderedStudy, name: str, view: Projection, date: int
) -> dict[str, Any]:
    """The metadata row of one image, in the columns' order."""
    # An AP image with a lateral was taken of a patient who could stand.
    procedure = "CHEST (PORTABLE AP)" if study.bedside else study.examination
    values = {
        "dicom_id": name,
        "subject_id": task.subject,
        "study_id": task.study,
        "PerformedProcedureStepDescription": study.examination,
        "ViewPosition": view,
        "Rows": task.options.size,
        "Columns": task.options.size,
        "StudyDate": date,
        # Hours of a working day; nothing depends on them.
        "StudyTime": f"{7 + task.number % 12:02d}{task.number % 60:02d}00.000",
        "ProcedureCodeSequence_CodeMeaning": procedure,
        "ViewCodeSequence_CodeMeaning": VIEW_CODE[view],
        "PatientOrientationCodeSequence_CodeMeaning": "Recumbent" if study.bedside else "Erect",
    }
    return {column: values[column] for column in METADATA}


def _labels(findings: list[Finding]) -> dict[str, str]:
    """The label row of a study: 1.0 for what its report describes, 0.0 for what it denies.

    Blank is what the report is silent on, as in the tables that a labeller makes of reports.
    """
    present = {finding.name for finding in findings}
    worded = worded_findings(findings)
    row = {}
    for column in CHEXPERT:
        name = column.lower()
        row[column] = ""
        if name in worded:
            row[column] = "1.0" if name in present else "0.0"
    # As the labellers do: "No Finding" is 1.0 or blank, never 0.0.
    if not present:
        row["No Finding"] = "1.0"
    return row


def _write_jpg_tables(root: Path, studies: list[StudyRows]) -> None:
    """Write the tables of MIMIC-CXR-JPG."""
    metadata, splits = [], []
    for study in studies:
        metadata += study.metadata
        splits += study.splits
    # Both labellers agree on a phantom's wording.
    labels = [study.labels for study in studies]
    write_table(root / "mimic-cxr-2.0.0-metadata.csv.gz", metadata)
    write_table(root / "mimic-cxr-2.0.0-chexpert.csv.gz", labels)
    write_table(root / "mimic-cxr-2.0.0-negbio.csv.gz", labels)
    tested = {row["study_id"] for row in splits if row["split"] == "test"}
    # On the test set radiologists labelled the reports.
    test_labels = [row for row in labels if row["study_id"] in tested]
    if test_labels:
        path = root / "mimic-cxr-2.1.0-test-set-labeled.csv"
        write_table(path, test_labels, ("study_id", *CHEXPERT))
    write_table(root / "mimic-cxr-2.0.0-split.csv.gz", splits)


def _write_dicom_lists(root: Path, studies: list[StudyRows]) -> None:
    """Write the lists of MIMIC-CXR."""
    listed, records = [], []
    for study in studies:
        listed.append(study.labels | {"path": study.report[0]})
        records += study.records
    write_table(root / "cxr-study-list.csv.gz", listed, ("subject_id", "study_id", "path"))
    write_table(root / "cxr-record-list.csv.gz", records)
