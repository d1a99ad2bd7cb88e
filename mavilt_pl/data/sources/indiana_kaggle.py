"""Indiana University collection as Kaggle hosts it: two tables and PNG images."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from mavilt_pl.data.records import Image, Study
from mavilt_pl.data.sources import Reject
from mavilt_pl.data.sources.fields import hash_split, path_inside
from mavilt_pl.data.sources.indiana import image_stem, join_sections, mesh_labels, view_lookup
from mavilt_pl.data.sources.tables import load_table
from mavilt_pl.errors import Rejected

SECTIONS = ("comparison", "indication", "findings", "impression")
PROJECTION_COLUMNS = ("uid", "filename", "projection")


def read(root: Path, reject: Reject) -> Iterator[Study]:
    """Yield the studies in the order of indiana_reports; each report is one patient.

    uid 1 is the study `CXR1` of the Open-i layout, and in the same split: 70 / 10 / 20 by hash.

    Args:
        root: the folder with the two tables and images/.
        reject: called for everything that is not yielded.

    Raises:
        UserError: a table is missing or damaged.
    """
    reports = load_table(root, "indiana_reports", ("uid", "MeSH", *SECTIONS), key=("uid",))
    images = _read_images(root, set(reports["uid"]), reject)
    for row in reports.to_dict("records"):
        name = f"CXR{row['uid']}" if row["uid"].strip() else ""
        texts = {section: row[section].strip() for section in SECTIONS}
        yield Study(
            source="indiana",
            patient=name,
            study=name,
            split=hash_split("indiana", name),
            # A report whose images are not in the projections is kept here and rejected by
            # `prepare`.
            images=tuple(images.get(row["uid"], ())),
            findings=texts["findings"],
            impression=texts["impression"],
            report=join_sections(texts),
            labels=mesh_labels(row["MeSH"].split(";")),
        )


def _read_images(root: Path, known: set[str], reject: Reject) -> dict[str, list[Image]]:
    """Images by uid, for the uids that have a report."""
    projections: pd.DataFrame = load_table(
        root, "indiana_projections", PROJECTION_COLUMNS, key=("filename",)
    )
    # From the projections, and from the DICOM headers if that table is there.
    views = view_lookup(root)
    images: dict[str, list[Image]] = {}
    for uid, name in zip(projections["uid"], projections["filename"]):
        try:
            # Never seen in the published tables; a truncated report table would show here.
            if uid not in known:
                raise Rejected(
                    f"indiana_reports has no uid {uid}; expected each uid of the projections"
                )
            path = path_inside(root / "images" / "images_normalized", name)
        except Rejected as reason:
            reject(f"CXR{uid}", name, "image", str(reason))
            continue
        stem = image_stem(name)
        images.setdefault(uid, []).append(Image(path, views[stem], stem))
    return images
