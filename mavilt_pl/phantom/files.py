"""Pictures, tables and archives as bytes that do not change from one run to the next."""

from __future__ import annotations

import csv
import gzip
import io
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

from mavilt_pl.phantom.shapes import Array

JPEG_QUALITY = 95


def encode_picture(image: Array, suffix: str) -> bytes:
    """An image [H,W] in [0, 1] as the bytes of an 8-bit `.jpg` or `.png`."""
    options = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY] if suffix == ".jpg" else []
    _, data = cv2.imencode(suffix, (image * 255).round().astype(np.uint8), options)
    return data.tobytes()


def write_table(path: Path, rows: Sequence[Mapping], columns: Sequence[str] = ()) -> None:
    """Write rows as .csv, or as .csv.gz without the time of day in its header.

    Args:
        path: its suffix chooses the format.
        rows: each with the same keys.
        columns: a choice of the keys (default: all of the first row's).
    """
    text = io.StringIO(newline="")
    # Line ends and the gzip header are fixed, so that the bytes do not depend on the platform.
    writer = csv.DictWriter(
        text,
        list(columns or rows[0]),
        # A choice of columns drops the others on purpose; without one, an extra key is a defect.
        extrasaction="ignore" if columns else "raise",
        lineterminator="\n",
    )
    writer.writeheader()
    writer.writerows(rows)
    data = text.getvalue().encode()
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)


def write_archive(path: Path, members: Mapping[str, str]) -> None:
    """Write texts by name as a .zip, every member dated 1980."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in members.items():
            # ZipInfo's default date is 1980; the file's own time would change the bytes.
            archive.writestr(zipfile.ZipInfo(name), text, zipfile.ZIP_DEFLATED)
