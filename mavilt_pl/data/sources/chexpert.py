"""CheXpert: images and labels, no reports."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import pandas as pd

from mavilt_pl.data.records import Image, Split, Study
from mavilt_pl.data.sources import Reject
from mavilt_pl.data.sources.demographics import known, parse_age, parse_sex
from mavilt_pl.data.sources.fields import parse_labels, parse_view, path_inside
from mavilt_pl.data.sources.tables import find_table, group_rows, load_table
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
COLUMNS = ("Path", "Frontal/Lateral", "AP/PA", *FINDINGS)
_PATH = re.compile(
    r"""
    (?:CheXpert[^/]*/)?
    (?P<file>(?:train|valid)/(?P<patient>patient\d+)/(?P<study>study\d+)/(?P<image>[^/]+)\.\w+)
    """,
    re.VERBOSE,
)

LocateImage = Callable[[re.Match[str]], Path]


def read(root: Path, reject: Reject, valid: str = "val") -> Iterator[Study]:
    """Yield the studies of train.csv, then those of valid.csv; the path names the patient.

    Args:
        root: the folder with the two tables, or that of the download in batches, in which the first
            batch has them.
        reject: called for everything that is not yielded.
        valid: split of the official validation set: val, or test if CheXpert only evaluates.

    Raises:
        UserError: a table is missing or damaged, or `valid` is another split.
    """
    # Checked before the long tables are read.
    if valid not in ("val", "test"):
        raise UserError(f"option valid is {valid!r}; expected val or test")
    batches = sorted(path for path in root.glob("CheXpert*batch*") if path.is_dir())
    # The official test set is distributed apart from these two.
    for stem, split in (("train", "train"), ("valid", valid)):
        table_folder = root
        for batch in batches:
            # A table next to the batches takes precedence: somebody has put it there.
            if find_table(root, stem) is None and find_table(batch, stem) is not None:
                table_folder = batch
        rows = load_table(table_folder, stem, COLUMNS, key=("Path",))
        locate = _image_locator(root, stem, batches)
        yield from _read_studies(rows, stem, cast(Split, split), root, locate, reject)


def _image_locator(root: Path, stem: str, batches: list[Path]) -> LocateImage:
    """A function from a match of `_PATH` to the image's file.

    In the download in batches, patients lie in `CheXpert-v1.0 batch 2 (train 1)/patient00001`, and
    the tables name them as if they lay in one folder.
    """
    folders: dict[str, Path] = {}
    for batch in batches:
        for folder in (batch, batch / stem):
            for patient in folder.glob("patient*"):
                # A patient is in one batch only.
                folders[patient.name] = patient.parent

    def locate(match: re.Match[str]) -> Path:
        if match["patient"] in folders:
            # Batches of the training set have no folder `train`.
            file = match["file"].removeprefix(f"{stem}/")
            return path_inside(folders[match["patient"]], file)
        return path_inside(root, match["file"])

    return locate


def _read_studies(
    rows: pd.DataFrame,
    stem: str,
    split: Split,
    root: Path,
    locate: LocateImage,
    reject: Reject,
) -> Iterator[Study]:
    matches: dict[str, re.Match[str]] = {}
    for path in rows["Path"]:
        match = _PATH.fullmatch(path)
        if match is None:
            reject("", path, "read", f"{stem}: {_wrong_path(root, path)}")
        else:
            matches[path] = match
    # Without rows that no study can be made of, before rows are grouped by study.
    rows = rows[rows["Path"].isin(matches)]
    names = []
    for path in rows["Path"]:
        names.append(f"{matches[path]['patient']}_{matches[path]['study']}")
    for group in group_rows(rows.assign(study=names), "study"):
        try:
            study = _study(group, matches, stem, split, locate)
        except Rejected as reason:
            reject(group[0]["study"], group[0]["Path"], "read", str(reason))
            continue
        yield study


def _wrong_path(root: Path, path: str) -> str:
    """What is wrong with a path that is not of the official layout."""
    try:
        path_inside(root, path)
    except Rejected as reason:
        return str(reason)
    return f"Path {path[:300]!r}; expected …/train/patient00001/study1/view1_frontal.jpg"


def _study(
    group: list[dict[str, str]],
    matches: dict[str, re.Match[str]],
    stem: str,
    split: Split,
    locate: LocateImage,
) -> Study:
    """The study of one group of rows; each row is an image."""
    name = group[0]["study"]
    labels = [parse_labels(row, FINDINGS) for row in group]
    # CheXpert labels reports, of which a study has one.
    if any(of_row != labels[0] for of_row in labels):
        raise Rejected(
            f"{stem} gives the images of this study different labels; expected one set a study"
        )
    images = []
    for row in group:
        match, side = matches[row["Path"]], row["Frontal/Lateral"]
        # AP/PA is blank on laterals and on frontal images of unknown projection.
        codes = (side,) if side == "Lateral" else (row["AP/PA"], side)
        path = locate(match)
        # The key contains the study: "view1_frontal" alone is in every study.
        images.append(Image(path, parse_view(*codes), f"{name}_{match['image']}"))
    # `name` is patient and study joined, since study1 is in every patient's folder.
    patient = name.split("_")[0]
    sex, age = group[0].get("Sex", ""), group[0].get("Age", "")
    attributes = known(sex=parse_sex(sex), age=parse_age(age))
    return Study(
        "chexpert", patient, name, split, tuple(images), labels=labels[0], attributes=attributes
    )
