"""A picture of eight phantoms, alone or above as many radiographs of the user's own."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from mavilt_pl.data.radiograph import read_radiograph, resize
from mavilt_pl.errors import Rejected, UserError
from mavilt_pl.phantom.anatomy import Projection, draw_body, render
from mavilt_pl.phantom.findings import make_finding

# What the eight show: view, and findings as name, side, zone, kind.
SHOWN: tuple[tuple[Projection, tuple[tuple[str, str, str, str], ...]], ...] = (
    ("PA", ()),
    ("AP", (("support devices", "", "", "endotracheal tube"), ("edema", "", "", ""))),
    ("PA", (("cardiomegaly", "", "", ""), ("support devices", "", "", "pacemaker"))),
    ("LATERAL", (("cardiomegaly", "", "", ""), ("support devices", "", "", "pacemaker"))),
    ("PA", (("pleural effusion", "right", "", ""), ("lung lesion", "left", "upper", ""))),
    ("LATERAL", (("pleural effusion", "right", "", ""), ("lung lesion", "left", "upper", ""))),
    ("AP", (("pneumothorax", "right", "", ""), ("support devices", "", "", "central line"))),
    ("PA", (("consolidation", "left", "lower", ""), ("atelectasis", "right", "", ""))),
)
PICTURES = (".png", ".jpg", ".jpeg", ".dcm")


def _phantoms(size: int, seed: int) -> list[np.ndarray]:
    """Eight images uint8 [size,size]; entries of SHOWN with the same findings show the same
    patient.
    """
    images, patients = [], {}
    for number, (view, named) in enumerate(SHOWN):
        rng = np.random.default_rng([seed, number])
        if named not in patients:
            findings = [
                make_finding(name, rng, side, zone, kind) for name, side, zone, kind in named
            ]
            patients[named] = findings, draw_body(rng, findings)
        findings, body = patients[named]
        images.append((render(body, findings, size, rng, view) * 255).round().astype(np.uint8))
    return images


def _radiographs(folder: Path, size: int, count: int) -> list[np.ndarray]:
    """`count` images spread evenly over the folder's files, uint8 [size,size]."""
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in PICTURES)
    if not files:
        raise UserError(
            f"{folder}: no radiographs found; expected files ending in {', '.join(PICTURES)}"
        )
    images = []
    for path in (
        files[i] for i in np.linspace(0, len(files) - 1, min(count, len(files))).round().astype(int)
    ):
        try:
            images.append(resize(read_radiograph(path), size, "crop"))
        except Rejected as error:
            raise UserError(str(error)) from None
    return images


def write_sheet(out: Path, beside: Path | None = None, size: int = 256, seed: int = 0) -> int:
    """Write the picture, four images a row; gives how many radiographs stand below the phantoms."""
    images = _phantoms(size, seed)
    real = _radiographs(beside, size, len(images)) if beside else []
    images += real + [np.zeros((size, size), np.uint8)] * (-len(real) % 4)
    rows = [np.hstack(images[i : i + 4]) for i in range(0, len(images), 4)]
    if not cv2.imwrite(str(out), np.vstack(rows)):
        raise UserError(
            f"{out} could not be written: expected the path of a .png in an existing folder"
        )
    return len(real)
