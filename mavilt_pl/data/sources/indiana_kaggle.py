"""Indiana University collection as Kaggle hosts it: two tables and PNG images."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mavilt_pl.data.records import Image, Study
from mavilt_pl.data.sources import Reject, hash_split, inside, table
from mavilt_pl.data.sources.indiana import mesh_labels, view_lookup, whole
from mavilt_pl.data.sources.indiana import stem as short
from mavilt_pl.errors import Rejected

SECTIONS = ("comparison", "indication", "findings", "impression")


def read(root: Path, reject: Reject) -> Iterator[Study]:
    """Studies in the order of indiana_reports; uid 1 is the study `CXR1` of the Open-i layout, and
    in the same split: 70 / 10 / 20 by patient (each report is one patient).
    """
    reports = table(root, "indiana_reports", ("uid", "MeSH", *SECTIONS), key=("uid",))
    projections = table(
        root, "indiana_projections", ("uid", "filename", "projection"), key=("filename",)
    )
    views = view_lookup(root)
    images: dict[str, list[Image]] = {}
    known = set(reports["uid"])
    for uid, name in zip(projections["uid"], projections["filename"]):
        if uid not in known:
            reject(
                f"CXR{uid}",
                name,
                "image",
                f"indiana_reports has no uid {uid}; expected each uid of the projections",
            )
            continue
        try:
            path = inside(root / "images" / "images_normalized", name)
        except Rejected as reason:
            reject(f"CXR{uid}", name, "image", str(reason))
            continue
        images.setdefault(uid, []).append(Image(path, views[short(name)], short(name)))
    for row in reports.to_dict("records"):
        identity = f"CXR{row['uid']}" if row["uid"].strip() else ""
        texts = {name: row[name].strip() for name in SECTIONS}
        yield Study(
            source="indiana",
            patient=identity,
            study=identity,
            split=hash_split("indiana", identity),
            images=tuple(images.get(row["uid"], ())),
            findings=texts["findings"],
            impression=texts["impression"],
            report=whole(texts),
            labels=mesh_labels(row["MeSH"].split(";")),
        )
