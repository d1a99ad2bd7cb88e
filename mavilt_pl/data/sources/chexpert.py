"""CheXpert: images and labels, no reports."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from mavilt_pl.data.records import Image, Split, Study
from mavilt_pl.data.sources import Reject, certainties, groups, inside, table, view
from mavilt_pl.errors import Rejected, UserError

FINDINGS = (
    "No Finding",
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
)
_PATH = re.compile(r"(?:CheXpert[^/]*/)?((?:train|valid)/(patient\d+)/(study\d+)/([^/]+)\.\w+)")


def _studies(
    rows: pd.DataFrame, stem: str, split: Split, root: Path, reject: Reject
) -> Iterator[Study]:
    matches = {path: match for path in rows["Path"] if (match := _PATH.fullmatch(path))}
    for path in rows["Path"]:
        if path not in matches:
            try:
                inside(root, path)
                raise Rejected(
                    f"Path {path[:300]!r}; expected …/train/patient00001/study1/view1_frontal.jpg"
                )
            except Rejected as reason:
                reject("", path, "read", f"{stem}: {reason}")
    rows = rows[rows["Path"].isin(matches)]
    for group in groups(
        rows.assign(study=[f"{m[2]}_{m[3]}" for m in map(matches.__getitem__, rows["Path"])]),
        "study",
    ):
        study, images = group[0]["study"], []
        try:
            labels = [certainties(row, FINDINGS) for row in group]
            if any(label != labels[0] for label in labels):
                raise Rejected(
                    f"{stem} gives the images of this study different labels; expected one set a "
                    f"study"
                )
            for row in group:
                match, side = matches[row["Path"]], row["Frontal/Lateral"]
                codes = (side,) if side == "Lateral" else (row["AP/PA"], side)
                images.append(Image(inside(root, match[1]), view(*codes), f"{study}_{match[4]}"))
        except Rejected as reason:
            reject(study, group[0]["Path"], "read", str(reason))
            continue
        yield Study("chexpert", study.split("_")[0], study, split, tuple(images), labels=labels[0])


def read(root: Path, reject: Reject, valid: str = "val") -> Iterator[Study]:
    """Studies of train.csv, then those of valid.csv; the patient is read from the path. `root`
    holds the two tables.

    `valid` says which split the official validation set is: val, or test where CheXpert only
    evaluates.
    """
    if valid not in ("val", "test"):
        raise UserError(f"option valid is {valid!r}; expected val or test")
    columns = ("Path", "Frontal/Lateral", "AP/PA", *FINDINGS)
    for stem, split in (("train", "train"), ("valid", valid)):
        yield from _studies(table(root, stem, columns, key=("Path",)), stem, split, root, reject)  # type: ignore[arg-type]
