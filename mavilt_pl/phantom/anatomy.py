"""Render a chest: attenuating bodies summed along rays and exposed on a detector.

It is a caricature. Findings must be read from their position, shape and size, and that is all it is
for; it is far simpler than a patient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from mavilt_pl.phantom.body import Body, sample_body
from mavilt_pl.phantom.chest import Chest
from mavilt_pl.phantom.findings import Finding
from mavilt_pl.phantom.frontal import Frontal
from mavilt_pl.phantom.lateral import Lateral
from mavilt_pl.phantom.shapes import Array

__all__ = ["Body", "Projection", "render", "sample_body"]

Projection = Literal["PA", "AP", "LATERAL"]
SHOULDER = 0.75  # grey level above which the film's characteristic curve flattens
SHOULDER_RANGE = 0.24  # by which it can rise above that


def render(
    body: Body,
    findings: Sequence[Finding],
    size: int,
    rng: np.random.Generator,
    projection: Projection = "PA",
) -> Array:
    """One projection, float32 [size,size] in [0, 1], air dark and bone bright.

    Args:
        body: the patient's build.
        findings: what is visible.
        size: pixels along each side.
        rng: for vessels, the texture of findings and the quantum noise.
        projection: PA, AP or LATERAL.
    """
    chest: Chest
    if projection == "LATERAL":
        chest = Lateral(body, size, rng)
    else:
        chest = Frontal(body, size, rng, projection)
    # Before the sum: effusions and pneumothoraces change how much air a lung holds.
    for finding in findings:
        chest.add(finding)
    # 0.06 is the base fog of a film; air outside the patient stays just above black.
    image = 0.06 + body.exposure + 0.86 * body.contrast * chest.attenuation()
    # tanh has slope 1 at the shoulder, so the curve bends without a visible edge.
    flattened = SHOULDER + SHOULDER_RANGE * np.tanh((image - SHOULDER) / SHOULDER_RANGE)
    image = np.where(image > SHOULDER, flattened, image)
    # Quantum noise: fewer quanta arrive behind bone, and fewer hit each pixel of a finer grid.
    # Per pixel the noise grows with `size`: after averaging back to 128 pixels it is the same.
    image += rng.normal(0, 0.005 * size / 128, image.shape) * (0.5 + image)
    # Lead is opaque, so it covers noise and anatomy alike.
    if body.marker:
        image[_lead_letter(chest)] = 1.0
    return np.clip(image, 0, 1).astype(np.float32)


def _lead_letter(chest: Chest) -> Array:
    """Pixels of an "L" of lead at the patient's left shoulder, bool [H,W]."""
    across, down = chest.x - 0.80, chest.y + 0.86
    stem = (np.abs(across) < 0.018) & (np.abs(down) < 0.08)
    foot = (np.abs(down - 0.07) < 0.018) & (across > -0.018) & (across < 0.09)
    return stem | foot
