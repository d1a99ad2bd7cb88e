"""The lateral projection: build and findings from the side, the patient's front at the left.

Coordinates: x from front to back, y as on the frontal projections, one unit about 180 mm. The two
lungs lie one behind the other, so each weighs half. As on patients, a side can be identified only
by its hemidiaphragm.
"""

from __future__ import annotations

import numpy as np

from mavilt_pl.phantom.body import Body
from mavilt_pl.phantom.chest import SIDES, Chest, rib_bands
from mavilt_pl.phantom.findings import Finding
from mavilt_pl.phantom.shapes import (
    Array,
    blob,
    bump,
    half_chord,
    smooth_curve,
    smooth_step,
    squared_distance,
    tube,
)

# On a true lateral the posterior recesses overlap the spine.
BACK = 0.12  # how much further the lungs reach behind the middle of the vertebral bodies
CENTRAL_LINE = ((-0.02, -0.95), (-0.06, -0.70), (0.02, -0.45), (0.03, 0.02))
ENDOTRACHEAL_TUBE = ((-0.02, -1.0), (0.08, -0.30))
PACEMAKER_LEAD = ((-0.20, -0.64), (0.02, -0.47), (0.03, 0.0), (-0.12, 0.20), (-0.28, 0.30))
AORTA = ((0.02, -0.36), (0.14, -0.42), (0.24, -0.30), (0.30, 0.2))
TRACHEA = ((-0.02, -1.0), (0.09, -0.22))


class Lateral(Chest):
    """A lateral projection.

    Args:
        body: the patient's build.
        size: pixels along each side.
        rng: for textures.
    """

    def __init__(self, body: Body, size: int, rng: np.random.Generator):
        super().__init__(body, size, rng)
        below = np.clip((self.y - body.apex) / 0.62, 0, 1)
        # x of the inner sternum, of the vertebrae with their kyphosis, and of the lungs' back.
        self.front = 0.02 - (body.depth + 0.02) * np.sqrt(1 - (1 - below) ** 2) ** 1.2
        self.spine = body.depth - 0.16 * np.clip((-self.y - 0.15) / 0.7, 0, 1) ** 1.5
        self.back = self.spine + BACK + 0.06 * bump((self.y + 0.05) / 0.5)
        self.base = {side: self._diaphragm(side) for side in SIDES}
        self.air = {side: self._lung(side) for side in SIDES}

    def _diaphragm(self, side: str) -> Array:
        """Y of the diaphragm under each x.

        It is highest in front of the middle and deepest in the posterior angle.
        """
        behind = np.clip((self.x + 0.12) / (self.body.depth + BACK), 0, 1.2)
        in_front = np.clip((-0.12 - self.x) / self.body.depth, 0, 1.2)
        return self.body.dome[side] + 0.34 * behind**2 + 0.10 * in_front**2

    def _lung(self, side: str) -> Array:
        """Thickness of one lung, of which each weighs half."""
        # The floor keeps the division finite.
        half = np.maximum((self.back - self.front) / 2, 0.02)
        across = (self.x - (self.back + self.front) / 2) / half
        edge = smooth_step(1 - np.abs(across), 0.12)
        thickness = np.clip(1 - across**4, 0, 1) ** 0.4 * edge
        # The shoulders lie over the apices.
        thin = 0.45 + 0.55 * np.clip((self.y - self.body.apex - 0.10) / 0.45, 0, 1)
        above_diaphragm = smooth_step(self.base[side] - self.y, 0.035)
        below_apex = smooth_step(self.y - self.body.apex, 0.08)
        return 0.5 * thickness * thin * above_diaphragm * below_apex

    def within(self) -> Array:
        """How much a ray passes through the lungs, 0 to 1."""
        return np.clip(1.3 * (self.air["left"] + self.air["right"]), 0, 1)

    def _across(self, finding: Finding) -> float:
        """X of a focal finding, between the retrosternal and the retrocardiac air."""
        return -0.24 + 0.52 * self.body.focal_position[finding.name][2]

    def _pleural_effusion(self, finding: Finding) -> None:
        for side in SIDES if finding.side == "both" else (finding.side,):
            level = self.body.dome[side] + 0.10 - 0.34 * finding.size
            meniscus = level - 0.18 * np.clip((self.x - 0.10) / 0.45, 0, 1.2) ** 2
            meniscus -= 0.05 * np.clip((-0.25 - self.x) / 0.25, 0, 1.2) ** 2
            # From the side the other lung's air still lies in the ray, so one effusion only veils.
            fluid = smooth_step(self.y - meniscus, 0.05)
            self.air[side] = self.air[side] * (1 - 0.92 * fluid)

    def _pneumothorax(self, finding: Finding) -> None:
        gap = 0.10 + 0.14 * finding.size
        edge = self.front + gap + 0.5 * gap * np.clip((-self.y - 0.15) / 0.6, 0, 1)
        free_air = smooth_step(edge - self.x, 0.02) * self.within()
        self.air[finding.side] = self.air[finding.side] * (1 + 0.60 * free_air)
        pleural_line = bump((self.x - edge) / 0.014)
        self.extra += 0.13 * pleural_line * self.within()

    def _consolidation(self, finding: Finding) -> None:
        cx, cy = self._across(finding), self.height(finding)
        radius = 0.15 + 0.08 * finding.size
        patch = np.zeros_like(self.extra)
        for _ in range(5):
            dx, dy = self.rng.normal(0, 0.40 * radius, 2)
            rx, ry = radius * self.rng.uniform(0.5, 0.8, 2)
            patch += blob(self.x, self.y, cx + dx, cy + dy, rx, ry)
        self.extra += 0.30 * np.clip(patch, 0, 1) * self.within()

    def _edema(self, finding: Finding) -> None:
        haze = blob(self.x, self.y, 0.06, -0.02, 0.30, 0.42)
        self.extra += (0.20 + 0.12 * finding.size) * haze * self.within()

    def _atelectasis(self, finding: Finding) -> None:
        y = self.body.dome[finding.side] - 0.05
        plate = tube(self.x, self.y, [(-0.10, y), (0.34, y + 0.02)], 0.022)
        self.extra += 0.20 * plate * self.within()

    def _lung_lesion(self, finding: Finding) -> None:
        self.add_nodule(finding, self._across(finding))

    def _support_devices(self, finding: Finding) -> None:
        x, y, front = self.x, self.y, -self.body.depth
        if finding.kind == "pacemaker":
            # The can lies under the skin and is seen on its narrow side.
            across, down = np.abs((x - front - 0.02) / 0.035), np.abs((y + 0.50) / 0.085)
            can = (across**4 + down**4) ** 0.25
            lead = smooth_curve([(front + 0.02, -0.56), *PACEMAKER_LEAD])
            self.extra += 0.75 * smooth_step(1 - can, 0.25) + 0.36 * tube(x, y, lead, 0.012)
        elif finding.kind == "central line":
            self.extra += 0.43 * tube(x, y, smooth_curve(CENTRAL_LINE), 0.017)
        else:  # a tube: its wall is dense, its lumen is air
            square = squared_distance(x, y, ENDOTRACHEAL_TUBE)
            wall = np.exp(-square / 0.045**2)
            lumen = np.exp(-square / 0.020**2)
            self.extra += 0.52 * wall - 0.36 * lumen

    def attenuation(self) -> Array:
        """The sum along each ray, [H,W]."""
        x, y = self.x, self.y
        torso = self._torso()
        air = self.air["left"] + self.air["right"]
        under = {side: smooth_step(y - self.base[side] - 0.02, 0.06) for side in SIDES}
        # Each dome adds its part, so that two edges show one above the other.
        total = 0.72 * torso - 0.50 * air + 0.085 * (under["left"] + under["right"]) * torso
        # As on the frontal projection, the heart shows against air and hardly in soft tissue.
        total += self._heart() * (0.31 * np.clip(air * 1.2, 0, 1) + 0.04 * torso)
        # Great vessels above the heart, and the hila where they cross.
        vessels = blob(x, y, 0.0, -0.30, 0.13, 0.22)
        vessels = vessels + 0.7 * tube(x, y, smooth_curve(AORTA), 0.06)
        hila = blob(x, y, 0.05, -0.06, 0.09, 0.13)
        total += 0.10 * vessels * self.within() + 0.12 * hila * self.within()
        total -= 0.10 * tube(x, y, TRACHEA, 0.038) * torso
        return total + self._bones() * torso + self.extra

    def _torso(self) -> Array:
        """Thickness of the soft tissue, 1 in the middle."""
        body, x, y = self.body, self.x, self.y
        front = -(body.depth + 0.06 + body.wall) + 0.20 * np.clip((-0.45 - y) / 0.5, 0, 1)
        # `breast` is an attenuation; 2.2 turns it into a depth of 12 to 20 mm.
        front = front - 2.2 * body.breast * bump((y - 0.12) / 0.28)
        back = body.depth + 0.22 + body.wall - 0.12 * np.clip((-0.35 - y) / 0.6, 0, 1)
        half = (back - front) / 2
        trunk = half_chord(((x - (back + front) / 2) / half) ** 6)
        # Raised arms put more tissue over the apices.
        shoulder = 0.18 * blob(x, y, 0.10, -0.85, 0.45, 0.26)
        return trunk + shoulder * trunk

    def _heart(self) -> Array:
        """The heart against the sternum and on the diaphragm, its long axis down and forward.

        Retrosternal and retrocardiac air stay free.
        """
        body = self.body
        half = 0.30 + 0.85 * (body.heart_width - 0.45)
        cx, cy = -body.depth + 0.10 + half, max(body.dome.values()) - 0.17
        dx, dy = self.x - cx, self.y - cy
        # A rotation by 37 degrees: 0.6 and 0.8 are its sine and cosine.
        along, across = dx * 0.80 - dy * 0.60, dx * 0.60 + dy * 0.80
        square = (along / (half * 1.15)) ** 2 + (across / (half * 0.88)) ** 2
        thickness = 0.45 + 0.55 * half_chord(square)
        return smooth_step(1 - square, 0.50) * thickness

    def _bones(self) -> Array:
        body, x, y = self.body, self.x, self.y
        bones = self._vertebrae() + self._ribs()
        sternum = 0.14 * bump((x - self.front + 0.03) / 0.025)
        sternum = sternum * smooth_step(y + 0.52, 0.08) * smooth_step(0.18 - y, 0.1)
        # Scapula, and the humerus of the raised arm.
        shoulder = 0.06 * tube(x, y, [(0.30, -0.80), (body.depth + 0.10, -0.22)], 0.05)
        shoulder += 0.05 * tube(x, y, [(0.05, -1.0), (0.16, -0.74)], 0.09)
        return bones + sternum + shoulder

    def _vertebrae(self) -> Array:
        disc = 0.5 + 0.5 * np.cos(2 * np.pi * (self.y / 0.135 + self.body.rib_phase))
        column = bump((self.x - self.spine) / 0.085, 4) * (0.13 - 0.07 * disc)
        return column * (1 - 0.4 * smooth_step(self.y - 0.55, 0.4))

    def _ribs(self) -> Array:
        """Two sets of ribs, of either side, running down and forward."""
        body, x, y = self.body, self.x, self.y
        cage = smooth_step(x - self.front + 0.02, 0.05)
        cage = cage * smooth_step(self.back + 0.03 - x, 0.05)
        cage = cage * smooth_step(y - body.apex - 0.05, 0.1) * smooth_step(0.70 - y, 0.25)
        near = rib_bands((y + 0.55 * x - 0.25 * x**2) / 0.165 + body.rib_phase, 0.18)
        # The other side, projected a little differently, so that its ribs fall between.
        far_phase = (y + 0.62 * x - 0.25 * x**2) / 0.160 + body.rib_phase + 0.35
        ribs = 0.04 * near + 0.03 * rib_bands(far_phase, 0.18)
        return ribs * cage
