"""MIMIC-CXR 2.x: DICOM files and reports, with MIMIC-CXR-JPG's splits, views and labels."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from mavilt_pl.data.records import Study
from mavilt_pl.data.sources import Reject
from mavilt_pl.data.sources.demographics import MimicPatients
from mavilt_pl.data.sources.fields import hash_split
from mavilt_pl.data.sources.mimic_cxr_jpg import (
    METADATA_TABLE,
    SPLIT,
    SPLIT_TABLE,
    StudyTables,
    check_labeller,
    date_table,
    label_table,
    report_reader,
    split_table,
    studies,
    view_table,
)
from mavilt_pl.data.sources.tables import find_table, load_table
from mavilt_pl.errors import MaviltWarning, UserError

RECORD_COLUMNS = ("subject_id", "study_id", "dicom_id", "path")
STUDY_COLUMNS = ("subject_id", "study_id", "path")
_OFFICIAL_NAME = {split: name for name, split in SPLIT.items()}


def read(
    root: Path,
    reject: Reject,
    reports: str | None = None,
    labels: str = "chexpert",
    tables: str | None = None,
    patients: str | None = None,
    follow_links: bool = False,
) -> Iterator[Study]:
    """Yield the studies in the order of cxr-record-list.

    Studies of cxr-study-list without an image are rejected. Without the split table, patients are
    split 70 / 10 / 20 by hash, with a warning. Without the metadata table every view is UNKNOWN.

    Args:
        root: the folder with the lists and files/.
        reject: called for everything that is not yielded.
        reports: as for mimic-cxr-jpg.
        labels: as for mimic-cxr-jpg.
        tables: folder with the tables of MIMIC-CXR-JPG, each of which may be missing; default:
            `root`.
        patients: as for mimic-cxr-jpg.
        follow_links: as for mimic-cxr-jpg.

    Raises:
        UserError: a list or the archive is missing or damaged, or an option is wrong.
    """
    table_folder = Path(tables) if tables else root
    if tables and find_table(table_folder, SPLIT_TABLE) is None:
        raise UserError(
            f"option tables: {table_folder} holds no {SPLIT_TABLE}.csv.gz; expected "
            "MIMIC-CXR-JPG's tables"
        )
    # Before the long tables are read.
    check_labeller(labels)
    rows = load_table(root, "cxr-record-list", RECORD_COLUMNS, key=("dicom_id",))
    listed = load_table(root, "cxr-study-list", STUDY_COLUMNS, key=("study_id",))
    # The tables of the JPG release come separately, so each of them may be missing.
    rows["split"] = _splits(rows, table_folder)
    # The reports lie next to the DICOM files, or in the archive.
    read_report = report_reader(root, reports, follow_links)
    has_views = find_table(table_folder, METADATA_TABLE) is not None
    has_labels = find_table(table_folder, f"mimic-cxr-2.0.0-{labels}") is not None
    # Each of them may be empty: the DICOM release has neither views nor labels.
    study_tables = StudyTables(
        read_report,
        view_table(table_folder) if has_views else {},
        label_table(table_folder, labels) if has_labels else {},
        dict(zip(listed["study_id"], listed["path"])),
        patients=MimicPatients(Path(patients)) if patients else None,
        dates=date_table(table_folder) if patients and has_views else {},
    )
    yield from studies(rows, root, reject, study_tables)
    # Counted as rejected, so that read = kept + rejected holds for the studies of the release.
    without_image = listed[~listed["study_id"].isin(rows["study_id"])]
    for row in without_image.to_dict("records"):
        reject(row["study_id"], row["path"], "read", "cxr-record-list names no image of this study")


def _splits(rows: pd.DataFrame, table_folder: Path) -> list[str]:
    """The split of each row, under the names of the official table."""
    if find_table(table_folder, SPLIT_TABLE) is not None:
        official = split_table(table_folder)
        by_image = dict(zip(official["dicom_id"], official["split"]))
        # No known split: `_study` rejects it with these words in the message.
        return [by_image.get(dicom, "not in the table") for dicom in rows["dicom_id"]]
    warnings.warn(
        f"{table_folder}: no {SPLIT_TABLE} table; patients are split 70 / 10 / 20 by hash, and "
        "metrics on that split do not compare with published ones. Name the folder of "
        "MIMIC-CXR-JPG's tables with the option tables.",
        MaviltWarning,
        stacklevel=2,
    )
    # One split a patient, as in the official table.
    by_patient = {}
    for subject in rows["subject_id"].unique():
        by_patient[subject] = _OFFICIAL_NAME[hash_split("mimic-cxr", subject)]
    return [by_patient[subject] for subject in rows["subject_id"]]
