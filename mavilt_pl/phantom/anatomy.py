"""A chest as attenuating bodies all_reduce_sum along rays, exposed on a detector: from a build and its
findings to pixels.

It is a caricature: good enough that findings must be read from their place, shape and size, and far
simpler than a patient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from mavilt_pl.phantom.body import Body, draw_body
from mavilt_pl.phantom.findings import Finding
from mavilt_pl.phantom.frontal import Frontal
from mavilt_pl.phantom.lateral import Lateral
from mavilt_pl.phantom.shapes import Array

__all__ = ["Body", "Projection", "draw_body", "render"]

Projection = Literal["PA", "AP", "LATERAL"]


def render(
    body: Body,
    findings: Sequence[Finding],
    size: int,
    rng: np.random.Generator,
    projection: Projection = "PA",
) -> Array:
    """One projection, float32 [size, size] in [0, 1], air dark and bone bright, quantum noise on
    top.
    """
    chest = (
        Lateral(body, size, rng)
        if projection == "LATERAL"
        else Frontal(body, size, rng, projection)
    )
    for finding in findings:
        chest.add(finding)
    image = 0.06 + body.exposure + 0.86 * body.contrast * chest.attenuation()
    image = np.where(
        image > 0.75, 0.75 + 0.24 * np.tanh((image - 0.75) / 0.24), image
    )  # the film's shoulder
    image += rng.normal(0, 0.005 * size / 128, image.shape) * (0.5 + image)
    if body.marker:  # an "L" of lead at the patient's left shoulder
        across, down = chest.x - 0.80, chest.y + 0.86
        letter = (np.abs(across) < 0.018) & (np.abs(down) < 0.08)
        letter |= (np.abs(down - 0.07) < 0.018) & (across > -0.018) & (across < 0.09)
        image[letter] = 1.0
    return np.clip(image, 0, 1).astype(np.float32)
