"""One file a dataset: its layout on disk → `Study`. A new dataset is a new file and a line here."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd

from mavilt_pl.data.study import DataError, Split, Study

SOURCES = {
    "mimic-cxr-jpg": "mavilt_pl.data.sources.mimic_cxr_jpg",
    "indiana": "mavilt_pl.data.sources.indiana",
    "nih": "mavilt_pl.data.sources.nih",
}
Reject = Callable[[str, str, str, str], None]  # study, file, stage, reason


def read_source(name: str, root: Path, reject: Reject, **options: object) -> Iterator[Study]:
    """Studies of the dataset `name` under `root`, in a fixed order."""
    if name not in SOURCES:
        raise DataError(f"unknown source {name!r}; expected one of {', '.join(SOURCES)}")
    if not root.is_dir():
        raise DataError(f"{root} is not a folder; expected the root of a {name} download")
    return importlib.import_module(SOURCES[name]).read(root, reject, **options)


def table(root: Path, stem: str, columns: tuple[str, ...]) -> pd.DataFrame:
    """The table `stem`.csv or .csv.gz under `root`, all text, its needed columns checked."""
    path = next((p for p in (root / f"{stem}.csv.gz", root / f"{stem}.csv") if p.exists()), None)
    if path is None:
        raise DataError(
            f"{root}: {stem}.csv.gz (or .csv) is missing; it belongs to the official release, download it there"
        )
    try:
        rows = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except Exception as error:
        raise DataError(f"{path} is not a readable table ({str(error)[:120]}): download it again") from None
    missing = [column for column in columns if column not in rows.columns]
    if missing:
        raise DataError(
            f"{path} has no column {', '.join(missing)} (found {', '.join(rows.columns[:12])}): is it the official table?"
        )
    return rows


def hash_split(source: str, patient: str, test: float = 0.2, val: float = 0.1) -> Split:
    """70 / 10 / 20 by patient; a patient's split never changes as files come and go."""
    digest = hashlib.blake2b(f"{source}:{patient}".encode(), digest_size=8).digest()
    place = int.from_bytes(digest, "big") / 2**64
    return "test" if place < test else "val" if place < test + val else "train"
