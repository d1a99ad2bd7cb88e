"""A picture of eight phantoms, alone or above as many radiographs of the user's own."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from mavilt_pl.data.radiograph import read_radiograph, resize
from mavilt_pl.errors import Rejected, UserError
from mavilt_pl.phantom.anatomy import Body, Projection, render, sample_body
from mavilt_pl.phantom.findings import Finding, make_finding

# What the eight phantoms show: view, and findings as name, side, zone, kind.
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
SUFFIXES = (".png", ".jpg", ".jpeg", ".dcm")
COLUMNS = 4  # images a row


def write_sheet(out: Path, radiographs: Path | None = None, size: int = 256, seed: int = 0) -> int:
    """Write the picture; return the number of radiographs below the phantoms.

    Args:
        out: the .png to write.
        radiographs: a folder of the user's own, some of which are shown below.
        size: pixels along each image's side.
        seed: of the phantoms.

    Raises:
        UserError: the folder holds no readable radiographs, or `out` cannot be written.
    """
    images = _phantoms(size, seed)
    real = _radiographs(radiographs, size, len(images)) if radiographs else []
    # Black squares fill the last row.
    padding = [np.zeros((size, size), np.uint8)] * (-len(real) % COLUMNS)
    images = [*images, *real, *padding]
    rows = []
    for start in range(0, len(images), COLUMNS):
        rows.append(np.hstack(images[start : start + COLUMNS]))
    if not cv2.imwrite(str(out), np.vstack(rows)):
        raise UserError(
            f"{out} could not be written: expected the path of a .png in an existing folder"
        )
    return len(real)


def _phantoms(size: int, seed: int) -> list[np.ndarray]:
    """Eight images uint8 [size,size]; entries with the same findings show the same patient."""
    images = []
    patients: dict[object, tuple[list[Finding], Body]] = {}
    for number, (view, described) in enumerate(SHOWN):
        # A stream for each image: two views of a patient differ in noise and vessels.
        rng = np.random.default_rng([seed, number])
        if described not in patients:
            findings = []
            for name, side, zone, kind in described:
                findings.append(make_finding(name, rng, side, zone, kind))
            patients[described] = findings, sample_body(rng, findings)
        findings, body = patients[described]
        image = render(body, findings, size, rng, view)
        images.append((image * 255).round().astype(np.uint8))
    return images


def _radiographs(folder: Path, size: int, count: int) -> list[np.ndarray]:
    """`count` images spread evenly over the folder's files, uint8 [size,size]."""
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not files:
        raise UserError(
            f"{folder}: no radiographs found; expected files ending in {', '.join(SUFFIXES)}"
        )
    # Spread over the folder: neighbouring files are often of one patient.
    chosen = np.linspace(0, len(files) - 1, min(count, len(files))).round().astype(int)
    images = []
    for index in chosen:
        try:
            images.append(resize(read_radiograph(files[index]), size, "crop"))
        except Rejected as error:
            raise UserError(str(error)) from None
    return images
