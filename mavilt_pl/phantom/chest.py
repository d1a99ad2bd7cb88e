"""What all projections share: the grid, focal findings, and the sum of attenuation.

Coordinates: y in [-1, 1] from top to bottom; x in [-1, 1] from the image's left to its right. One
unit is about 180 mm. Arrays over the image are [H,W], x is [1,W], y is [H,1].
"""

from __future__ import annotations

import numpy as np

from mavilt_pl.phantom.body import Body
from mavilt_pl.phantom.findings import Finding
from mavilt_pl.phantom.shapes import Array, half_chord

SIDES = ("left", "right")
MM = 1 / 180  # one millimetre in units
# y of the focal findings in each zone. The zones do not touch, so a report's words are decidable.
ZONES = {
    "consolidation": {"upper": (-0.42, -0.22), "lower": (0.02, 0.22)},
    "lung lesion": {"upper": (-0.50, -0.20), "lower": (-0.02, 0.20)},
}


class Chest:
    """One projection while it is summed up: the grid, the build, and the findings' attenuation.

    A subclass draws a finding in a method of its name, such as `_pleural_effusion`.

    Args:
        body: the patient's build.
        size: pixels along each side.
        rng: for textures.
    """

    def __init__(self, body: Body, size: int, rng: np.random.Generator):
        # Centres of pixels, so that a phantom of another size is the same picture, only finer.
        axis = (np.arange(size, dtype=np.float32) + 0.5) / size * 2 - 1
        # x as a row and y as a column: what depends on one of them stays small until both meet.
        self.x = (axis - body.shift[0])[None, :]
        self.y = (axis - body.shift[1])[:, None]
        self.body, self.rng = body, rng
        self.extra = np.zeros((size, size), np.float32)  # attenuation that findings add

    def add(self, finding: Finding) -> None:
        """Draw a finding."""
        draw = getattr(self, "_" + finding.name.replace(" ", "_"), None)
        # Cardiomegaly and hyperinflation have no method: the build itself is the finding.
        if draw is not None:
            draw(finding)

    def attenuation(self) -> Array:
        """The sum along each ray, [H,W]; 0 in air, about 0.7 in soft tissue."""
        raise NotImplementedError

    def height(self, finding: Finding) -> float:
        """Y of a focal finding: the same on every projection of a study."""
        low, high = ZONES[finding.name]["upper" if finding.zone == "upper" else "lower"]
        return low + self.body.focal_position[finding.name][1] * (high - low)

    def add_nodule(self, finding: Finding, x: float) -> None:
        """Add a sphere of soft tissue of 14 to 29 mm.

        The Fleischner glossary calls a lesion of up to 30 mm a nodule.

        Args:
            finding: with its size and zone.
            x: of the centre.
        """
        radius = (7 + 7.5 * finding.size) * MM
        square = ((self.x - x) ** 2 + (self.y - self.height(finding)) ** 2) / radius**2
        self.extra += (0.42 + 0.12 * finding.size) * half_chord(square)


def rib_bands(phase: Array, half_width: float) -> Array:
    """A band around each half-integer of the phase, its cortex a little brighter than its marrow.

    Args:
        phase: [H,W], grows by 1 from rib to rib.
        half_width: of a band, in units of the phase.
    """
    # 0 on the rib's axis, 1 at its edge; the sixth power makes the edge steep and still smooth.
    away = np.abs(phase % 1 - 0.5) / half_width
    return (0.80 + 0.25 * away**2) / (1 + away**6)
