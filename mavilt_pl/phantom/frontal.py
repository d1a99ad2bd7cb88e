"""The frontal projection: thorax, lungs, heart, mediastinum, diaphragm, bones and findings.

Coordinates: x in [-1, 1] from the image's left to its right (the patient's left has x > 0), y in
[-1, 1] from top to bottom; one unit is about 180 mm. Every body adds its thickness times its
attenuation along the rays. The sum is windowed as a digital radiograph is, so air is dark and bone
bright.

PA: full inspiration, scapulae turned off the lungs. AP, as at the bedside: a shallower breath, the
heart magnified because it lies further from the detector, scapulae over the lungs, clavicles
higher.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from mavilt_pl.phantom.body import Body
from mavilt_pl.phantom.chest import Chest, rib_bands
from mavilt_pl.phantom.findings import Finding
from mavilt_pl.phantom.shapes import (
    Array,
    blob,
    bump,
    convex_polygon,
    half_chord,
    smooth_curve,
    smooth_step,
    squared_distance,
    tube,
)

SIGN = {"left": 1.0, "right": -1.0}  # of x
# At the bedside the tube is nearer and the heart further from the detector. A normal heart stays
# below a ratio of 0.53.
MAGNIFICATION = 1.07  # of the heart on an AP projection against a PA one
PACEMAKER = (0.52, -0.50)  # x and y of its can
PACEMAKER_LEAD = (
    (0.52, -0.56),
    (0.30, -0.60),
    (-0.04, -0.47),
    (-0.10, 0.0),
    (0.05, 0.22),
    (0.22, 0.30),
)
CENTRAL_LINE = ((-0.42, -0.95), (-0.30, -0.66), (-0.10, -0.50), (-0.09, 0.02))
ENDOTRACHEAL_TUBE = ((0.0, -1.0), (0.0, -0.30))
BRANCHES = 8  # of the vessels of each lung


class Frontal(Chest):
    """A PA or AP projection.

    Args:
        body: the patient's build.
        size: pixels along each side.
        rng: for vessels and textures.
        projection: PA or AP.
    """

    def __init__(
        self,
        body: Body,
        size: int,
        rng: np.random.Generator,
        projection: Literal["PA", "AP"] = "PA",
    ):
        super().__init__(body, size, rng)
        self.bedside = projection == "AP"
        self.dome = {side: y - body.shallow * self.bedside for side, y in body.dome.items()}
        # Before the lungs, which end at it.
        self.base = {side: self._diaphragm(side) for side in SIGN}
        self.air = {side: self._lung(side) for side in SIGN}  # thickness of aerated lung, in units

    def _diaphragm(self, side: str) -> Array:
        """Y of the diaphragm under each x: a dome with a deep angle at the side."""
        across = (SIGN[side] * self.x - 0.40) / 0.42
        return self.dome[side] + 0.20 * np.clip(across, -1.2, 1.6) ** 2

    def _rib_cage(self) -> Array:
        """X of the rib cage's inner side at each height: a quarter ellipse from the apex down."""
        down = np.clip((self.y - self.body.apex) / 0.95, 0, 1)
        return 0.28 + (self.body.thorax - 0.28) * np.sqrt(1 - (1 - down) ** 2)

    def _lung(self, side: str) -> Array:
        """Thickness of one lung between mediastinum, ribs, apex and diaphragm."""
        below = self.y - self.body.apex
        outer = self._rib_cage()
        # The lungs' tops are apart, at the width of the neck, and close in below it.
        inner = 0.28 - 0.18 * np.sqrt(1 - (1 - np.clip(below / 0.30, 0, 1)) ** 2)
        half = np.maximum((outer - inner) / 2, 0.02)
        across = (SIGN[side] * self.x - (outer + inner) / 2) / half
        edge = smooth_step(1 - np.abs(across), 0.14)
        # A superellipse: the lung is nearly as deep at its side as in the middle.
        thickness = half_chord(across**4) * edge
        thin = 0.80 + 0.20 * np.clip(below / 0.40, 0, 1)  # less lung lies behind the clavicles
        above_diaphragm = smooth_step(self.base[side] - self.y, 0.035)
        below_apex = smooth_step(below - 0.03, 0.06)
        return thickness * thin * above_diaphragm * below_apex

    def within(self, side: str) -> Array:
        """How much a ray passes through a lung, 0 to 1."""
        return np.clip(self.air[side] * 1.3, 0, 1)

    def _pleural_effusion(self, finding: Finding) -> None:
        sides = ("left", "right") if finding.side == "both" else (finding.side,)
        for side in sides:
            # From a blunted angle at the dome to a level a quarter of the lung above it.
            level = self.dome[side] + 0.05 - 0.34 * finding.size
            rise = np.clip((SIGN[side] * self.x - 0.35) / 0.45, 0, 1.2)
            meniscus = level - 0.22 * rise**2
            fluid = smooth_step(self.y - meniscus, 0.05)
            # Fluid takes the place of air. A little air stays: in front of and behind the fluid
            # there is lung.
            self.air[side] = self.air[side] * (1 - 0.92 * fluid)

    def _pneumothorax(self, finding: Finding) -> None:
        side = finding.side
        x = SIGN[side] * self.x
        up = np.clip((-self.y - 0.15) / 0.6, 0, 1)
        # Air rises, so the rim is widest at the apex of a patient who stands.
        gap = 0.13 + 0.16 * finding.size + 0.10 * up
        edge = self._rib_cage() - gap  # x of the visceral pleura
        edge = np.minimum(edge, self.body.thorax - gap - 0.30 * up**1.5)
        # Between pleura and ribs there is only air, darker than lung.
        outside = smooth_step(x - edge, 0.02) * self.within(side)
        self.air[side] = self.air[side] * (1 + 0.42 * outside)
        pleural_line = bump((x - edge) / 0.014)
        self.extra += 0.10 * pleural_line * self.within(side)
        # The collapsed lung is denser.
        self.extra += 0.05 * smooth_step(edge - x, 0.05) * self.within(side) * finding.size

    def _consolidation(self, finding: Finding) -> None:
        across = self.body.focal_position[finding.name][0]
        cx = SIGN[finding.side] * (0.34 + 0.18 * across)
        cy = self.height(finding)
        radius = 0.15 + 0.08 * finding.size
        patch = np.zeros_like(self.extra)
        # Overlapping blobs at random: a consolidation has no sharp or regular outline.
        for _ in range(5):
            dx, dy = self.rng.normal(0, 0.45 * radius, 2)
            rx, ry = radius * self.rng.uniform(0.5, 0.8, 2)
            patch += blob(self.x, self.y, cx + dx, cy + dy, rx, ry)
        # Clipped, so that overlapping blobs are no denser than one, and limited to the lung.
        self.extra += 0.36 * np.clip(patch, 0, 1) * self.within(finding.side)

    def _edema(self, finding: Finding) -> None:
        for side, sign in SIGN.items():
            haze = blob(self.x, self.y, sign * 0.30, -0.02, 0.24, 0.42)
            self.extra += (0.20 + 0.12 * finding.size) * haze * self.within(side)
            # Kerley's lines: short, parallel, at the side and near the base.
            septa = np.sin(38 * (self.y + 0.4 * sign * self.x))
            septa = septa * blob(self.x, self.y, sign * 0.6, 0.2, 0.15, 0.25)
            self.extra += 0.05 * np.clip(septa, 0, 1) * self.within(side)

    def _atelectasis(self, finding: Finding) -> None:
        sign, y = SIGN[finding.side], self.dome[finding.side] - 0.07
        # A plate just above the dome; the dome itself is raised by the build.
        plate = tube(self.x, self.y, [(sign * 0.22, y + 0.03), (sign * 0.58, y - 0.03)], 0.022)
        self.extra += 0.22 * plate * self.within(finding.side)

    def _lung_lesion(self, finding: Finding) -> None:
        across = self.body.focal_position[finding.name][0]
        self.add_nodule(finding, SIGN[finding.side] * (0.30 + 0.28 * across))

    def _support_devices(self, finding: Finding) -> None:
        x, y = self.x, self.y
        if finding.kind == "pacemaker":
            cx, cy = PACEMAKER
            # A rectangle of 38 × 31 mm with round corners: the norm of the fourth power.
            across, down = np.abs((x - cx) / 0.105), np.abs((y - cy) / 0.085)
            can = (across**4 + down**4) ** 0.25
            lead = tube(x, y, smooth_curve(PACEMAKER_LEAD), 0.012)
            self.extra += 0.75 * smooth_step(1 - can, 0.15) + 0.36 * lead
        elif finding.kind == "central line":
            self.extra += 0.43 * tube(x, y, smooth_curve(CENTRAL_LINE), 0.017)
        else:  # a tube: its wall is dense, its lumen is air
            square = squared_distance(x, y, ENDOTRACHEAL_TUBE)
            wall = np.exp(-square / 0.045**2)
            lumen = np.exp(-square / 0.020**2)
            self.extra += 0.52 * wall - 0.36 * lumen

    def attenuation(self) -> Array:
        """The sum along each ray, [H,W]."""
        torso = self._torso()
        air = self.air["left"] + self.air["right"]
        # Air replaces soft tissue along the ray, so it is subtracted.
        total = 0.68 * torso - 0.52 * air
        shadow = self._silhouette()
        highest = np.minimum(self.base["left"], self.base["right"])
        under = smooth_step(self.y - highest - 0.02, 0.10)  # under the diaphragm
        # The heart shows against air. Over the abdomen, soft tissue against soft tissue, it does
        # not.
        total += shadow * (0.40 * np.clip(air * 1.2, 0, 1) + 0.11 * torso * (1 - under))
        total += self._spine() * torso
        total += 0.20 * under * torso
        if self.body.stomach:
            gas = blob(self.x, self.y, 0.36, self.dome["left"] + 0.15, 0.15, 0.07)
            total -= self.body.stomach * gas * under
        if self.body.breast:
            total += self.body.breast * self._breasts() * torso
        return total + self._bones() * torso + self._vessels() * (1 - 0.8 * shadow) + self.extra

    def _torso(self) -> Array:
        """Thickness of the soft tissue, 1 in the middle: trunk, shoulders, neck, upper arms."""
        body, x, y = self.body, np.abs(self.x), self.y
        width = body.thorax + body.wall + 0.10 * smooth_step(y - 0.75, 0.4) * (body.wall > 0.11)
        trunk = half_chord((x / width) ** 8)
        # Skin above the shoulder: the neck's side falls into the slope of the trapezius.
        trapezius = 0.16 * np.clip((x - 0.30) / 0.6, 0, 1.5) ** 2
        neck = 0.26 * bump(x / 0.34, 4)
        skin = -0.80 + trapezius - neck
        arms = [(0.88, -0.52), (1.02 + body.arm, 1.0)]
        # A round limb: its thickness along the ray is that of a circle.
        limb = half_chord(squared_distance(x, y, arms) / 0.19**2)
        # Deltoid, pectoral muscle and axilla.
        girdle = smooth_step(x - 0.3, 0.1) * smooth_step(1.03 - x, 0.10)
        girdle = girdle * smooth_step(-0.05 - y, 0.45)
        # The maximum and not the sum: the parts are one body, not one in front of another.
        thickest = np.maximum(trunk, np.maximum(0.86 * limb, 0.9 * girdle))
        return np.clip(thickest, 0, 1) * smooth_step(y - skin, 0.10)

    def _silhouette(self) -> Array:
        """The central shadow, 0 to 1: mediastinum, aortic knob, pulmonary trunk and heart.

        Its greatest width over the rib cage's is the cardiothoracic ratio.
        """
        body, x, y = self.body, self.x, self.y
        width = 2 * body.thorax * body.heart_width * (MAGNIFICATION if self.bedside else 1.0)
        floor = max(self.dome.values())
        tip, middle = floor - 0.08, floor - 0.17
        rise = 0.58 + 0.5 * (body.heart_width - 0.45)
        upper = np.clip((tip - y) / rise, 0, 1)
        ventricle = (1 - upper ** (1.3 + 0.6 * body.heart_slope)) ** 1.1
        below_tip = np.clip(y - tip, 0, None) / 0.26
        ventricle = ventricle * half_chord(below_tip**2)
        atrium = np.clip(1 - ((y - middle) / 0.40) ** 2, 0, 1) ** 0.9
        vessels = 0.115 + 0.02 * smooth_step(-0.45 - y, 0.2)  # half width above the heart
        knob = body.knob * bump((y + 0.36) / 0.10)
        pulmonary_trunk = 0.055 * bump((y + 0.14) / 0.13)
        left = vessels + knob + pulmonary_trunk
        # Two thirds of the heart lie left of the midline. The widest points of both sides add up to
        # `width`, which makes the cardiothoracic ratio exact.
        left = np.maximum(left, vessels + (0.68 * width - vessels) * ventricle)
        right = np.maximum(vessels, vessels + (0.32 * width - vessels) * atrium)
        # From two borders to one shape, symmetric about its own centre at each height.
        centre, half = (left - right) / 2, (left + right) / 2
        across = np.abs(x - centre) / half
        thickness = 0.62 + 0.38 * half_chord(across**2)
        return smooth_step(1 - across, 0.065 / half) * thickness

    def _spine(self) -> Array:
        """Vertebral bodies and discs, less the air of the trachea down to the carina."""
        # 0.135 units are 24 mm, about the height of a thoracic vertebra with its disc.
        disc = 0.5 + 0.5 * np.cos(2 * np.pi * (self.y / 0.135 + self.body.rib_phase))
        column = bump(self.x / 0.080, 4) * (0.06 + 0.035 * disc)
        trachea = 0.11 * bump(self.x / 0.038) * smooth_step(-0.22 - self.y, 0.1)
        return column - trachea

    def _breasts(self) -> Array:
        square = ((np.abs(self.x) - 0.44) / 0.36) ** 2 + ((self.y - 0.18) / 0.36) ** 2
        return np.clip(1 - square, 0, 1) ** 0.35 * smooth_step(self.y + 0.05, 0.5)

    def _bones(self) -> Array:
        lift = -0.09 if self.bedside else 0.0
        clavicle = [(0.07, -0.50 + lift / 2), (0.24, -0.60 + lift), (0.48, -0.63 + lift)]
        clavicle = smooth_curve([*clavicle, (0.80, -0.75)], 3)
        bones = self._ribs() + 0.15 * tube(np.abs(self.x), self.y, clavicle, 0.034)
        return self._add_shoulder(bones)

    def _ribs(self) -> Array:
        body, x, y = self.body, np.abs(self.x), self.y
        out = x / body.thorax
        cage = smooth_step(self._rib_cage() + 0.05 - x, 0.06)
        cage = cage * smooth_step(y - body.apex - 0.02, 0.08)
        cage = cage * smooth_step(0.72 - y, 0.25)
        # Behind, a rib leaves the spine and bends down along the wall. In front it comes back, down
        # and inwards.
        bend = 0.05 * out
        drop = 0.26 * np.clip(out, 0, 1.1) ** 4
        # 0.165 units are 30 mm from rib to rib. The phase grows by 1 from each to the next.
        behind = (y - bend - drop) / 0.165 + body.rib_phase
        in_front = (y + 0.50 * x - 0.22 * x**2) / 0.205 + body.rib_phase
        ribs = 0.085 * rib_bands(behind, 0.20) * smooth_step(x - 0.09, 0.05)
        front_ribs = 0.045 * rib_bands(in_front, 0.18) * smooth_step(x - 0.34, 0.10)
        ribs += front_ribs * smooth_step(y + 0.62, 0.15)
        # Along the wall the ribs turn and are seen end on.
        wall = bump((self._rib_cage() + 0.01 - x) / 0.03)
        ribs += 0.05 * wall * smooth_step(y + 0.50, 0.2)
        return ribs * cage

    def _add_shoulder(self, bones: Array) -> Array:
        """Add scapula and humerus: the scapula is a thin blade with a thick lateral border."""
        x, y = np.abs(self.x), self.y
        turn = 0.0 if self.bedside else 0.13  # PA turns the scapulae outwards
        corners = [(0.55 + turn, -0.60), (0.93, -0.56), (0.70 + turn, 0.02)]
        blade = convex_polygon(x, y, corners, 0.05)
        border = tube(x, y, [(0.90, -0.54), (0.71 + turn, 0.0)], 0.025)
        humerus = tube(x, y, [(0.94, -0.56), (1.03 + self.body.arm, 1.0)], 0.055)
        head = blob(x, y, 0.93, -0.60, 0.09, 0.09)
        bones = bones + (0.07 if self.bedside else 0.05) * blade
        return bones + 0.07 * border + 0.10 * np.maximum(humerus, head)

    def _vessels(self) -> Array:
        """Hila, and branches that bend, thin out and fade towards the rim."""
        tree = np.zeros_like(self.extra)
        for side, sign in SIGN.items():
            cx, cy = sign * 0.18, -0.06 if side == "left" else -0.02  # the left hilum is higher
            nearest = np.full_like(tree, np.inf)
            # Evenly fanned and shaken a little: trees of two patients differ, none has a gap.
            angles = np.linspace(-1.3, 1.4, BRANCHES) + self.rng.normal(0, 0.10, BRANCHES)
            for angle in angles:
                path = self._branch(cx, cy, sign, angle)
                nearest = np.minimum(nearest, squared_distance(self.x, self.y, path))
            # Vessels are thick and dense near the hilum and fade before they reach the ribs.
            fade = blob(self.x, self.y, cx, cy, 0.36, 0.44)
            branch = np.exp(-nearest / (0.006 + 0.012 * fade) ** 2) * (0.35 + 0.65 * fade)
            hilum = blob(self.x, self.y, cx, cy + 0.02, 0.08, 0.15)
            tree += (0.055 * self.body.texture * branch + 0.09 * hilum) * self.within(side)
        return tree

    def _branch(self, cx: float, cy: float, sign: float, angle: float) -> list[tuple[float, float]]:
        """The path of one branch from the hilum outwards, bending on its way."""
        length, bend = self.rng.uniform(0.30, 0.55), self.rng.normal(0.15, 0.25)
        path = []
        for reach, turn in ((0.15, angle), (0.45, angle + 0.4 * bend), (1.0, angle + bend)):
            x = cx + sign * reach * length * np.cos(turn)
            y = cy + (reach * length + 0.05) * np.sin(turn)
            path.append((x, y))
        return path
