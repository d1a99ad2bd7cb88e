"""Parse what tables hold: paths, views, labels; and split patients without an official table."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from mavilt_pl.data.records import Label, Split, View
from mavilt_pl.errors import Rejected

LONGEST_NAME = 255  # bytes of a file name that common file systems allow
# ViewPosition and view code meanings as the DICOM headers of the datasets spell them. Oblique,
# decubitus, lordotic and swimmer's views stay UNKNOWN: none of the four names is true of them.
_VIEWS: dict[str, View] = {
    "pa": "PA",
    "postero-anterior": "PA",
    "ap": "AP",
    "antero-posterior": "AP",
    "ll": "LATERAL",
    "rl": "LATERAL",
    "lateral": "LATERAL",
    "left lateral": "LATERAL",
    "right lateral": "LATERAL",
    "large lateral": "LATERAL",
    "xtable lateral": "LATERAL",
    "frontal": "FRONTAL",
}
# The value of a label in the tables of MIMIC-CXR-JPG and CheXpert; blank is not mentioned.
_LABELS: dict[str, Label | None] = {"": None, "1": "present", "0": "absent", "-1": "uncertain"}


def path_inside(root: Path, name: str) -> Path:
    """The file that a table names, under `root`.

    Raises:
        Rejected: the name is absolute, leads out of `root`, or no file system can hold it.

    >>> path_inside(Path("nih"), "images/a.png").as_posix()
    'nih/images/a.png'
    """
    # Both separators: tables may come from Windows, and there a backslash leads out of the folder
    # too.
    parts = re.split(r"[/\\]", name)
    absolute = not parts[0] or re.match(r"[A-Za-z]:", name) is not None
    longest = max(len(part.encode("utf-8", "replace")) for part in parts)
    if absolute or ".." in parts or "\0" in name or longest > LONGEST_NAME:
        raise Rejected(
            f"path {name[:300]!r} leaves the dataset's folder; expected a relative path under "
            f"{root}: correct the table"
        )
    return root / name


def parse_view(*codes: str) -> View:
    """The view that the first code with a known meaning names.

    >>> parse_view("", "Left Lateral"), parse_view("oblique")
    ('LATERAL', 'UNKNOWN')
    """
    for code in codes:
        view = _VIEWS.get(code.strip().lower())
        if view is not None:
            return view
    return "UNKNOWN"


def parse_labels(row: Mapping[str, str], columns: Sequence[str]) -> dict[str, Label]:
    """Labels of a row of a MIMIC-CXR-JPG or CheXpert table, by lower-case name.

    Raises:
        Rejected: a value is not 1, 0, -1 or blank.

    >>> parse_labels({"Edema": "1.0", "Fracture": ""}, ["Edema", "Fracture"])
    {'edema': 'present'}
    """
    labels = {}
    for column in columns:
        value = row[column].strip().removesuffix(".0")
        if value not in _LABELS:
            raise Rejected(
                f"label {column} is {row[column]!r}; expected 1, 0, -1 or blank: download the "
                "table again"
            )
        label = _LABELS[value]
        if label is not None:
            labels[column.lower()] = label
    return labels


def hash_split(source: str, patient: str, test: float = 0.2, val: float = 0.1) -> Split:
    """The split of a patient, from a hash of the id; it never changes as files come and go.

    Args:
        source: name of the dataset.
        patient: the dataset's identifier.
        test: share of patients.
        val: share of patients.

    >>> hash_split("indiana", "CXR1")
    'train'
    """
    name = f"{source}:{patient}".encode("utf-8", "replace")
    # The source is part of the name, so the same number in two datasets is hashed apart.
    digest = hashlib.blake2b(name, digest_size=8).digest()
    position = int.from_bytes(digest, "big") / 2**64  # in [0, 1)
    if position < test:
        return "test"
    return "val" if position < test + val else "train"
