"""One file a dataset: its layout on disk → `Study`. A new dataset is a new file and a line here.

A reader is `read(root, reject, **options) -> Iterator[Study]`. What it leaves out it names to
`reject` with a stage:

    read      a whole study: `read = kept + rejected` counts these
    image     one image of a study that is kept
    question  one question, or a kind of question
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import importlib
import inspect
import io
import json
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from mavilt_pl.data.records import Label, Split, Study, View
from mavilt_pl.errors import Rejected, UserError

SOURCES = {
    "mimic-cxr-jpg": "mavilt_pl.data.sources.mimic_cxr_jpg",
    "mimic-cxr": "mavilt_pl.data.sources.mimic_cxr",
    "indiana": "mavilt_pl.data.sources.indiana",
    "indiana-kaggle": "mavilt_pl.data.sources.indiana_kaggle",
    "r2gen": "mavilt_pl.data.sources.r2gen",
    "nih": "mavilt_pl.data.sources.nih",
    "chexpert": "mavilt_pl.data.sources.chexpert",
    "rsna": "mavilt_pl.data.sources.rsna",
    "vqa-rad": "mavilt_pl.data.sources.vqa_rad",
}
# Options that some readers take; a reader that is given another's option names its own.
READER_OPTIONS = {
    "reports": "where the reports are, if not in the dataset's folder (mimic-cxr-jpg, mimic-cxr, "
    "indiana)",
    "labels": "chexpert (default) or negbio (mimic-cxr-jpg, mimic-cxr)",
    "tables": "folder of MIMIC-CXR-JPG's tables, for splits, views and labels (mimic-cxr)",
    "valid": "the split of the official validation set: val (default) or test (chexpert)",
}
Reject = Callable[[str, str, str, str], None]  # study, file, stage, reason

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


def read_source(name: str, root: Path, reject: Reject, **options: object) -> Iterator[Study]:
    """Studies of the dataset `name` under `root`, in a fixed order; each id once, each patient in
    one split.

    Raises `UserError` for an unknown source or option, and where the dataset cannot be read at all.
    """
    if name not in SOURCES:
        raise UserError(f"unknown source {name!r}; expected one of {', '.join(SOURCES)}")
    if not root.is_dir():
        raise UserError(f"{root} is not a folder; expected the root of a {name} download")
    known = source_options(name)
    if unknown := [option for option in options if option not in known]:
        raise UserError(
            f"source {name} has no option {', '.join(unknown)}; it has {', '.join(known) or 'none'}"
        )
    return _consistent(importlib.import_module(SOURCES[name]).read(root, reject, **options), reject)


def source_options(name: str) -> tuple[str, ...]:
    """Names of the options of a source's reader; each takes a text."""
    return tuple(inspect.signature(importlib.import_module(SOURCES[name]).read).parameters)[2:]


def _consistent(studies: Iterator[Study], reject: Reject) -> Iterator[Study]:
    """Whatever the tables say: an id names one study and a patient is in one split, that of the
    first study read.
    """
    seen: set[str] = set()
    splits: dict[str, Split] = {}
    for study in studies:
        file = str(study.images[0].path) if study.images else ""
        if not (study.study and study.patient):
            reject(
                study.study,
                file,
                "read",
                "a blank study or patient id; expected both: correct the table",
            )
        elif study.study in seen:
            reject(
                study.study,
                file,
                "read",
                f"a second study with id {study.study}; the first is kept",
            )
        elif splits.setdefault(study.patient, study.split) != study.split:
            reason = f"patient {study.patient} is in {splits[study.patient]} and this study in {study.split}; a patient"
            reject(
                study.study,
                file,
                "read",
                f"{reason} stays in the split of the first study: correct the split table",
            )
        else:
            seen.add(study.study)
            yield study


def find_table(root: Path, stem: str) -> Path | None:
    """`stem`.csv.gz or .csv under `root`."""
    return next((p for p in (root / f"{stem}.csv.gz", root / f"{stem}.csv") if p.exists()), None)


def table(root: Path, stem: str, columns: Sequence[str], key: Sequence[str] = ()) -> pd.DataFrame:
    """The table `stem`.csv or .csv.gz under `root`, by `read_table`. Raises `UserError` where it is
    missing.
    """
    path = find_table(root, stem)
    if path is None:
        raise UserError(
            f"{root}: {stem}.csv.gz (or .csv) is missing; it belongs to the official release, "
            f"download it there"
        )
    return read_table(path, columns, key)


def read_table(path: Path, columns: Sequence[str], key: Sequence[str] = ()) -> pd.DataFrame:
    """A table, all text, with `columns` in any order and no two rows with the same `key`.

    Raises `UserError` for a table that is truncated, ragged, without rows or a needed column, or
    with a key twice.
    """
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            lines = csv.reader(io.TextIOWrapper(file, "utf-8-sig", newline=""), strict=True)
            header = [name.strip() for name in next(lines, [])]
            fields = [line for line in lines if line]
    except (OSError, EOFError, UnicodeError, csv.Error, zlib.error) as error:
        raise UserError(
            f"{path} is not a readable table ({str(error)[:120]}): download it again"
        ) from None
    for number, line in enumerate(fields, 2):
        if len(line) != len(header):  # pandas would fill or cut such a row without a word
            raise UserError(
                f"{path}, row {number}: {len(line)} fields under {len(header)} columns: download "
                f"the table again"
            )
    if twice := [name for name in header if header.count(name) > 1]:
        raise UserError(
            f"{path} has column {twice[0]!r} twice; expected each once: is it the official table?"
        )
    rows = pd.DataFrame(fields, columns=header, dtype=object)
    if missing := [column for column in columns if column not in rows.columns]:
        raise UserError(
            f"{path} has no column {', '.join(missing)} (found {', '.join(rows.columns[:12])}): is "
            f"it the official "
            "table?"
        )
    if rows.empty:
        raise UserError(f"{path} has no rows: the table is empty, download it again")
    doubled = rows.duplicated(list(key)) if key else None
    if doubled is not None and doubled.any():
        row = int(doubled.idxmax())
        values = ", ".join(f"{column} {rows.at[row, column]}" for column in key)
        raise UserError(
            f"{path}, row {row + 2}: {values} is there twice; expected once: download the table "
            f"again"
        )
    return rows


def groups(rows: pd.DataFrame, *key: str) -> Iterator[list[dict[str, str]]]:
    """The rows that share a key, as dicts, in the order in which the keys come. (An order of
    magnitude faster than iterating over pandas' groupby, which makes a frame of each group.)
    """
    places: dict[tuple[str, ...], list[int]] = {}
    for place, values in enumerate(zip(*(rows[column] for column in key))):
        places.setdefault(values, []).append(place)
    columns, cells = list(rows.columns), rows.to_numpy()
    for found in places.values():
        yield [dict(zip(columns, cells[place])) for place in found]


def read_json(path: Path, kind: type) -> Any:
    """A JSON file whose outermost value is a `kind` (list or dict). Raises `UserError` for anything
    else.
    """
    try:
        value = json.loads(path.read_bytes().decode("utf-8-sig"))
    except FileNotFoundError:
        raise UserError(
            f"{path} is missing; it belongs to the official release, download it there"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path} is not readable JSON ({str(error)[:120]}): download it again"
        ) from None
    if not isinstance(value, kind):
        raise UserError(
            f"{path} holds a JSON {type(value).__name__}; expected a {kind.__name__}: is it the "
            f"official file?"
        )
    return value


def inside(root: Path, name: str) -> Path:
    """The file that a table names, under `root`. Raises `Rejected` for a name that leads out of it."""
    parts = re.split(r"[/\\]", name)
    absolute = not parts[0] or re.match(r"[A-Za-z]:", name)
    if (
        absolute
        or ".." in parts
        or "\0" in name
        or any(len(part.encode("utf-8", "replace")) > 255 for part in parts)
    ):
        raise Rejected(
            f"path {name[:300]!r} leaves the dataset's folder; expected a relative path under "
            f"{root}: correct the table"
        )
    return root / name


def view(*codes: str) -> View:
    """The view that the first code with a meaning names."""
    return next(
        (_VIEWS[code] for code in (c.strip().lower() for c in codes) if code in _VIEWS), "UNKNOWN"
    )


def certainties(row: Mapping[str, str], columns: Sequence[str]) -> dict[str, Label]:
    """Labels of a row of a MIMIC-CXR-JPG or CheXpert table, by lower-case name. Raises `Rejected`
    for a value that is not 1, 0, -1 or blank.
    """
    labels = {}
    for column in columns:
        value = row[column].strip().removesuffix(".0")
        if value not in _LABELS:
            raise Rejected(
                f"label {column} is {row[column]!r}; expected 1, 0, -1 or blank: download the "
                f"table again"
            )
        if label := _LABELS[value]:
            labels[column.lower()] = label
    return labels


def hash_split(source: str, patient: str, test: float = 0.2, val: float = 0.1) -> Split:
    """70 / 10 / 20 by patient; a patient's split never changes as files come and go."""
    digest = hashlib.blake2b(
        f"{source}:{patient}".encode("utf-8", "replace"), digest_size=8
    ).digest()
    place = int.from_bytes(digest, "big") / 2**64
    return "test" if place < test else "val" if place < test + val else "train"
