"""MIMIC-CXR-JPG 2.x, with the reports of MIMIC-CXR (unpacked, or mimic-cxr-reports.zip)."""

from __future__ import annotations

import os
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from mavilt_pl.data.links import check_top_links
from mavilt_pl.data.records import Image, Split, Study
from mavilt_pl.data.report_sections import sections
from mavilt_pl.data.sources import Reject
from mavilt_pl.data.sources.demographics import MimicPatients
from mavilt_pl.data.sources.fields import parse_labels, parse_view, path_inside
from mavilt_pl.data.sources.report_files import read_bounded, read_report_file
from mavilt_pl.data.sources.tables import group_rows, load_table
from mavilt_pl.errors import Rejected, UserError

SPLIT: dict[str, Split] = {"train": "train", "validate": "val", "test": "test"}
LABELLERS = ("chexpert", "negbio")
REPORTS_ARCHIVE = "mimic-cxr-reports.zip"
SPLIT_TABLE = "mimic-cxr-2.0.0-split"
METADATA_TABLE = "mimic-cxr-2.0.0-metadata"
_IDENTIFIER = re.compile(r"(?!\.+$)[\w.-]+", re.ASCII)  # of what folder and file names consist
_ZIP_ERRORS = (
    OSError,
    EOFError,
    zipfile.BadZipFile,
    zlib.error,
    NotImplementedError,
    RuntimeError,
)
ReadReport = Callable[[str], str]  # from `files/p10/p…/s….txt` to its text, "" if there is none
Labels = Mapping[tuple[str, str], dict[str, str]]  # (subject_id, study_id) → a row's label columns


@dataclass(frozen=True)
class StudyTables:
    """What a release says of its studies in addition to the list of images.

    Args:
        read_report: from a report's path to its text.
        views: dicom_id → codes of its view, as `parse_view` takes them.
        labels: by subject and study.
        report_paths: by study; default: `files/p10/p…/s….txt`.
        patients: of MIMIC-IV, if they are at hand.
        dates: dicom_id → date of its study, for the patient's age.
    """

    read_report: ReadReport
    views: Mapping[str, tuple[str, ...]]
    labels: Labels
    report_paths: Mapping[str, str] = field(default_factory=dict)
    patients: MimicPatients | None = None
    dates: Mapping[str, str] = field(default_factory=dict)


def read(
    root: Path,
    reject: Reject,
    reports: str | None = None,
    labels: str = "chexpert",
    patients: str | None = None,
    follow_links: bool = False,
) -> Iterator[Study]:
    """Yield the studies in the order of the split table.

    A study without a report is kept: its images train the tokenizer.

    Args:
        root: the folder with the tables and files/.
        reject: called for everything that is not yielded.
        reports: as for `report_reader`.
        labels: the labeller, chexpert or negbio.
        patients: folder hosp of MIMIC-IV, for sex, age and ethnicity.
        follow_links: as for `report_reader`.

    Raises:
        UserError: a table or the archive is missing or damaged, or an option is wrong.
    """
    rows = split_table(root)
    paths = []
    for subject, study, dicom in zip(rows["subject_id"], rows["study_id"], rows["dicom_id"]):
        paths.append(f"{patient_folder(subject)}/s{study}/{dicom}.jpg")
    rows["path"] = paths
    read_report = report_reader(root, reports, follow_links)
    tables = StudyTables(
        read_report,
        view_table(root),
        label_table(root, labels),
        patients=MimicPatients(Path(patients)) if patients else None,
        dates=date_table(root) if patients else {},
    )
    yield from studies(rows, root, reject, tables)


def report_reader(root: Path, reports: str | None, follow_links: bool = False) -> ReadReport:
    """A function from a report's path in the release to its text.

    Args:
        root: the dataset's folder.
        reports: mimic-cxr-reports.zip, or the folder that holds it or `files/`; by default `root`
            and the folder above it are searched.
        follow_links: read also what links in that folder lead to outside of it.

    Raises:
        UserError: `reports` does not exist, or the archive cannot be opened.
    """
    source = Path(reports) if reports else root
    if not source.exists():
        raise UserError(
            f"--reports {reports} does not exist; expected {REPORTS_ARCHIVE} or the folder that "
            "holds files/"
        )
    candidates = [source / REPORTS_ARCHIVE, source.parent / REPORTS_ARCHIVE]
    if source.suffix == ".zip":
        candidates = [source]
    # People keep the archive in the dataset's folder or next to it.
    for archive in candidates:
        if archive.exists():
            return _archive_reader(archive)
    if not source.is_dir():
        raise UserError(
            f"--reports {reports} is neither a folder nor a zip file; expected {REPORTS_ARCHIVE} "
            "or the folder that holds files/"
        )
    return _folder_reader(source, follow_links)


def _folder_reader(folder: Path, follow_links: bool) -> ReadReport:
    if not follow_links:
        check_top_links(folder)
    allowed = None if follow_links else folder.resolve()

    def read_report(name: str) -> str:
        path = path_inside(folder, name)
        # `lexists`: a link to nothing is damage, and not a study without a report.
        if not os.path.lexists(path):
            return ""
        # A stray byte must not cost the report.
        return read_report_file(path, allowed).decode("utf-8", "replace")

    return read_report


def _archive_reader(path: Path) -> ReadReport:
    try:
        archive = zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is not a readable zip file ({error}): download it again") from None
    # A set: looking 227,835 reports up in a list would take longer than reading them.
    names = set(archive.namelist())

    def read_report(name: str) -> str:
        if name not in names:
            return ""
        try:
            with archive.open(name) as file:
                return read_bounded(file, f"{path}: report {name}").decode("utf-8", "replace")
        except _ZIP_ERRORS as error:
            raise Rejected(
                f"{path}: report {name} is damaged ({error}): download it again"
            ) from None

    return read_report


def view_table(root: Path) -> dict[str, tuple[str, ...]]:
    """dicom_id → ViewPosition, and the meaning of the view code in case that is blank."""
    rows = load_table(root, METADATA_TABLE, ("dicom_id", "ViewPosition"), key=("dicom_id",))
    # A table without the second column is read as if it said the same as the first.
    meanings = rows.get("ViewCodeSequence_CodeMeaning", rows["ViewPosition"])
    return dict(zip(rows["dicom_id"], zip(rows["ViewPosition"], meanings)))


def date_table(root: Path) -> dict[str, str]:
    """dicom_id → StudyDate, YYYYMMDD, shifted as all of the patient's dates are."""
    rows = load_table(root, METADATA_TABLE, ("dicom_id", "StudyDate"), key=("dicom_id",))
    return dict(zip(rows["dicom_id"], rows["StudyDate"]))


def split_table(root: Path) -> pd.DataFrame:
    """The split table: a row for each image."""
    columns = ("dicom_id", "study_id", "subject_id", "split")
    return load_table(root, SPLIT_TABLE, columns, key=("dicom_id",))


def label_table(root: Path, labeller: str) -> Labels:
    """The labels of one labeller, by subject and study.

    Raises:
        UserError: the table is missing or damaged, or there is no such labeller.
    """
    check_labeller(labeller)
    key = ["subject_id", "study_id"]
    rows = load_table(root, f"mimic-cxr-2.0.0-{labeller}", key, key=key)
    # All columns but the key are labels.
    names = rows.columns.difference(key, sort=False)
    labels = {}
    for subject, study, row in zip(
        rows["subject_id"], rows["study_id"], rows[names].to_dict("records")
    ):
        labels[subject, study] = {str(name): value for name, value in row.items()}
    return labels


def check_labeller(labeller: str) -> None:
    """Refuse a labeller that the release does not have.

    Raises:
        UserError: there is no such labeller.
    """
    if labeller not in LABELLERS:
        raise UserError(f"option labels is {labeller!r}; expected one of {', '.join(LABELLERS)}")


def patient_folder(subject: str) -> str:
    """The folder of a patient in the release.

    >>> patient_folder("10000032")
    'files/p10/p10000032'
    """
    return f"files/p{subject[:2]}/p{subject}"


def studies(rows: pd.DataFrame, root: Path, reject: Reject, tables: StudyTables) -> Iterator[Study]:
    """Yield the studies in the order of `rows`.

    Args:
        rows: one an image, with dicom_id, study_id, subject_id, split and path.
        root: the folder that the paths are relative to.
        reject: called for each study that is not yielded.
        tables: what else is known of the studies.
    """
    for group in group_rows(rows, "subject_id", "study_id"):
        try:
            study = _study(group, root, tables)
        except Rejected as reason:
            reject(group[0]["study_id"], group[0]["path"], "read", str(reason))
            continue
        yield study


def _study(group: list[dict[str, str]], root: Path, tables: StudyTables) -> Study:
    """The study of one group of rows; each row is an image."""
    subject, study = group[0]["subject_id"], group[0]["study_id"]
    # Joined, so that a study in two splits is rejected with both of them named.
    split = "/".join(dict.fromkeys(row["split"] for row in group))
    if split not in SPLIT:
        raise Rejected(
            f"split {split!r}; expected one of {', '.join(SPLIT)}: correct the split table"
        )
    _check_identifiers(subject, study, *(row["dicom_id"] for row in group))
    images = []
    for row in group:
        view = parse_view(*tables.views.get(row["dicom_id"], ()))
        images.append(Image(path_inside(root, row["path"]), view, row["dicom_id"]))
    # A study without a report has the text "" and is kept: its images train the tokenizer.
    default_path = f"{patient_folder(subject)}/s{study}.txt"
    report = sections(tables.read_report(tables.report_paths.get(study, default_path)))
    label_row = tables.labels.get((subject, study), {})
    attributes: dict[str, str] = {}
    if tables.patients is not None:
        date = tables.dates.get(group[0]["dicom_id"], "")
        attributes = tables.patients.attributes(subject, date)
    return Study(
        source="mimic-cxr",
        patient=subject,
        study=study,
        split=SPLIT[split],
        images=tuple(images),
        findings=report["findings"],
        impression=report["impression"],
        report=report["whole"],
        labels=parse_labels(label_row, list(label_row)),
        attributes=attributes,
    )


def _check_identifiers(*names: str) -> None:
    for name in names:
        # They become parts of paths.
        if not _IDENTIFIER.fullmatch(name):
            raise Rejected(
                f"identifier {name!r}; expected letters, digits, dots and dashes: correct the table"
            )
