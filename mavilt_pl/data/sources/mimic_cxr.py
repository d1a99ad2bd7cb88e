"""MIMIC-CXR 2.x: the DICOM files and the reports. Splits, views and labels come from the tables of
MIMIC-CXR-JPG.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

from mavilt_pl.data.records import Study
from mavilt_pl.data.sources import Reject, find_table, hash_split, table
from mavilt_pl.data.sources.mimic_cxr_jpg import (
    LABELLERS,
    SPLIT,
    label_table,
    report_reader,
    split_table,
    studies,
    view_table,
)
from mavilt_pl.errors import UserError

_OFFICIAL = {split: name for name, split in SPLIT.items()}


def read(
    root: Path,
    reject: Reject,
    reports: str | None = None,
    labels: str = "chexpert",
    tables: str | None = None,
) -> Iterator[Study]:
    """Studies in the order of cxr-record-list; after them, those of cxr-study-list that have no
    image.

    `tables` is the folder with the tables of MIMIC-CXR-JPG, by default `root`; of these, what is
    there is used. Without the split table, patients are split 70 / 10 / 20 by hash, with a warning;
    without the metadata table every view is UNKNOWN. `reports` and `labels` are as for
    mimic-cxr-jpg.
    """
    place = Path(tables) if tables else root
    if tables and find_table(place, "mimic-cxr-2.0.0-split") is None:
        raise UserError(
            f"option tables: {place} holds no mimic-cxr-2.0.0-split.csv.gz; expected "
            f"MIMIC-CXR-JPG's tables"
        )
    if labels not in LABELLERS:
        raise UserError(f"option labels is {labels!r}; expected one of {', '.join(LABELLERS)}")
    rows = table(
        root, "cxr-record-list", ("subject_id", "study_id", "dicom_id", "path"), key=("dicom_id",)
    )
    listed = table(root, "cxr-study-list", ("subject_id", "study_id", "path"), key=("study_id",))
    if find_table(place, "mimic-cxr-2.0.0-split"):
        official = split_table(place)
        splits = dict(zip(official["dicom_id"], official["split"]))
        rows["split"] = [splits.get(dicom, "not in the table") for dicom in rows["dicom_id"]]
    else:
        warnings.warn(
            f"{place}: no mimic-cxr-2.0.0-split table; patients are split 70 / 10 / 20 by hash, "
            f"and figures on that "
            "split compare with no published ones. Name the folder of MIMIC-CXR-JPG's tables with "
            "the option tables.",
            stacklevel=2,
        )
        by_hash = {
            subject: _OFFICIAL[hash_split("mimic-cxr", subject)]
            for subject in rows["subject_id"].unique()
        }
        rows["split"] = rows["subject_id"].map(by_hash)
    text = report_reader(root, reports)
    yield from studies(
        rows,
        root,
        reject,
        text=text,
        report_paths=dict(zip(listed["study_id"], listed["path"])),
        views=view_table(place) if find_table(place, "mimic-cxr-2.0.0-metadata") else {},
        labels=label_table(place, labels) if find_table(place, f"mimic-cxr-2.0.0-{labels}") else {},
    )
    for row in listed[~listed["study_id"].isin(rows["study_id"])].to_dict("records"):
        reject(row["study_id"], row["path"], "read", "cxr-record-list names no image of this study")
