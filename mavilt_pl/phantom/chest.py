"""What all projections share: the grid, where a focal finding lies, and the sum of attenuation that
findings add to.

Coordinates: y in [-1, 1] from top to bottom; x in [-1, 1] from the image's left to its right. One
unit is about 180 mm.
"""

from __future__ import annotations

import numpy as np

from mavilt_pl.phantom.body import Body
from mavilt_pl.phantom.findings import Finding
from mavilt_pl.phantom.shapes import Array

SIDES = ("left", "right")
MM = 1 / 180  # one millimetre in units
# y of the focal findings in each zone. The zones do not touch, so that the words of a report are
# decidable.
ZONES = {
    "consolidation": {"upper": (-0.42, -0.22), "lower": (0.02, 0.22)},
    "lung lesion": {"upper": (-0.50, -0.20), "lower": (-0.02, 0.20)},
}


class Chest:
    """One projection being all_reduce_sum up: the grid, the build, and the attenuation so far."""

    def __init__(self, body: Body, size: int, rng: np.random.Generator):
        axis = (np.arange(size, dtype=np.float32) + 0.5) / size * 2 - 1
        self.y, self.x = (
            (axis - body.shift[1])[:, None],
            (axis - body.shift[0])[None, :],
        )  # [H,1] and [1,W]
        self.body, self.rng = body, rng
        self.extra = np.zeros((size, size), np.float32)  # attenuation that findings add

    def add(self, finding: Finding) -> None:
        draw = getattr(self, "_" + finding.name.replace(" ", "_"), None)
        if draw is not None:  # cardiomegaly, hyperinflation: the build itself is the finding
            draw(finding)

    def attenuation(self) -> Array:
        """The sum along each ray, [H,W]; 0 in air, soft tissue is about 0.7."""
        raise NotImplementedError

    def height(self, finding: Finding) -> float:
        """y of a focal finding: the same on every projection of a study."""
        low, high = ZONES[finding.name]["upper" if finding.zone == "upper" else "lower"]
        return low + self.body.place[finding.name][1] * (high - low)

    def nodule(self, finding: Finding, x: float) -> None:
        """A sphere of soft tissue of 14 to 29 mm (the Fleischner glossary calls a nodule up to 30
        mm).
        """
        radius = (7 + 7.5 * finding.size) * MM
        square = ((self.x - x) ** 2 + (self.y - self.height(finding)) ** 2) / radius**2
        self.extra += (0.42 + 0.12 * finding.size) * np.sqrt(np.clip(1 - square, 0, 1))


def rib(phase: Array, half: float) -> Array:
    """A band around each half-integer of the phase, with its cortex a little brighter than its
    marrow.
    """
    away = np.abs(phase % 1 - 0.5) / half
    return (0.80 + 0.25 * away**2) / (1 + away**6)
