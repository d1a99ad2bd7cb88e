"""A chest as attenuating bodies summed along rays: thorax, lungs, heart, mediastinum, diaphragm, bones, and findings.

Coordinates: x in [-1, 1] from the image's left to its right (the patient's left has x > 0), y in [-1, 1] from top to
bottom; one unit is about 180 mm. Every body adds its thickness times its attenuation; the sum is windowed as a
digital radiograph is, so air is dark and bone bright. It is a caricature: good enough that findings must be read
from their place, shape and size, and far simpler than a patient.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mavilt_pl.phantom.findings import Finding

Array = np.ndarray
SIGN = {"left": 1.0, "right": -1.0}
MM = 1 / 180  # one millimetre in units


@dataclass
class Body:
    """One patient's build. Lengths are in units, centres in image coordinates."""

    thorax: float  # half width of the rib cage
    apex: float  # y of the lungs' tops
    dome: dict[str, float]  # y of each hemidiaphragm's top
    heart_width: float  # half width over the thorax's half width: the cardiothoracic ratio
    heart_tilt: float
    exposure: float
    contrast: float
    shift: tuple[float, float]
    rib_phase: float
    texture: float
    marker: bool  # a lead letter in the corner, as on films of the Indiana collection


def draw_body(rng: np.random.Generator, findings: Sequence[Finding], marker: bool = False) -> Body:
    """A build that fits the findings: a wide heart for cardiomegaly, low domes for hyperinflation, a raised one for
    atelectasis."""
    by_name = {finding.name: finding for finding in findings}
    ratio = rng.uniform(0.40, 0.49)
    if "cardiomegaly" in by_name:
        ratio = 0.56 + 0.12 * by_name["cardiomegaly"].size
    dome = rng.uniform(0.36, 0.46)
    thorax = rng.uniform(0.76, 0.86)
    if "hyperinflation" in by_name:
        dome += 0.14 + 0.08 * by_name["hyperinflation"].size
        thorax += 0.03
        ratio *= 0.92
    domes = {"right": dome - rng.uniform(0.0, 0.04), "left": dome + rng.uniform(0.0, 0.04)}
    if "atelectasis" in by_name:
        domes[by_name["atelectasis"].side] -= 0.14 + 0.10 * by_name["atelectasis"].size
    return Body(
        thorax=thorax,
        apex=rng.uniform(-0.78, -0.70),
        dome=domes,
        heart_width=ratio,
        heart_tilt=rng.uniform(0.25, 0.45),
        exposure=rng.uniform(-0.04, 0.04),
        contrast=rng.uniform(0.92, 1.08),
        shift=(rng.uniform(-0.03, 0.03), rng.uniform(-0.03, 0.03)),
        rib_phase=rng.uniform(0, 1),
        texture=rng.uniform(0.7, 1.3),
        marker=marker,
    )


def _step(value: Array, width: float) -> Array:
    """0 below, 1 above, a smooth edge of that width in units."""
    return 1 / (1 + np.exp(np.clip(-4 * value / width, -30, 30)))


def _blob(x: Array, y: Array, cx: float, cy: float, rx: float, ry: float) -> Array:
    return np.exp(-(((x - cx) / rx) ** 2) - ((y - cy) / ry) ** 2)


def _segment(x: Array, y: Array, points: Sequence[tuple[float, float]], width: float) -> Array:
    """A soft tube of that width along a polyline."""
    nearest = np.full_like(x, np.inf)
    for (ax, ay), (bx, by) in itertools.pairwise(points):
        dx, dy = bx - ax, by - ay
        t = np.clip(((x - ax) * dx + (y - ay) * dy) / (dx * dx + dy * dy), 0, 1)
        nearest = np.minimum(nearest, (x - ax - t * dx) ** 2 + (y - ay - t * dy) ** 2)
    return np.exp(-nearest / width**2)


class Chest:
    """One projection being summed up: the grid, the build, and the attenuation so far."""

    def __init__(self, body: Body, size: int, rng: np.random.Generator):
        axis = (np.arange(size, dtype=np.float32) + 0.5) / size * 2 - 1
        self.y, self.x = np.meshgrid(axis - body.shift[1], axis - body.shift[0], indexing="ij")
        self.body, self.rng = body, rng
        self.base = {side: self._dome(side) for side in SIGN}
        self.air = {side: self._lung(side) for side in SIGN}  # thickness of aerated lung, in units
        self.extra = np.zeros_like(self.x)  # attenuation that findings add

    def _dome(self, side: str) -> Array:
        """y of the diaphragm under each x: a dome with a deep angle at the side."""
        across = (SIGN[side] * self.x - 0.40) / 0.42
        return self.body.dome[side] + 0.20 * np.clip(across, -1.2, 1.6) ** 2

    def _lung(self, side: str) -> Array:
        body, x = self.body, SIGN[side] * self.x
        up = np.clip((0.62 - self.y) / (0.62 - body.apex), 0, 1)  # 0 at the base, 1 at the apex
        half = 0.5 * (body.thorax - 0.10) * np.sqrt(np.clip(1 - up**3, 0, 1)) * (1 - 0.18 * up)
        centre = 0.10 + 0.5 * (body.thorax - 0.10) * (1 - 0.12 * up)
        across = (x - centre) / np.maximum(half, 1e-3)
        thickness = np.sqrt(np.clip(1 - across**4, 0, 1)) * _step(1 - np.abs(across), 0.10)
        return thickness * _step(self.base[side] - self.y, 0.035) * _step(self.y - body.apex, 0.05)

    def within(self, side: str) -> Array:
        return np.clip(self.air[side] * 1.3, 0, 1)

    def add(self, finding: Finding) -> None:
        draw = getattr(self, "_" + finding.name.replace(" ", "_"), None)
        if draw is not None:  # cardiomegaly, hyperinflation: the build itself is the finding
            draw(finding)

    def _pleural_effusion(self, finding: Finding) -> None:
        for side in ("left", "right") if finding.side == "both" else (finding.side,):
            level = self.body.dome[side] + 0.06 - 0.34 * finding.size
            meniscus = level - 0.22 * np.clip((SIGN[side] * self.x - 0.35) / 0.45, 0, 1.2) ** 2
            fluid = _step(self.y - meniscus, 0.05)
            self.air[side] = self.air[side] * (1 - 0.92 * fluid)

    def _pneumothorax(self, finding: Finding) -> None:
        side, x = finding.side, SIGN[finding.side] * self.x
        gap = 0.12 + 0.16 * finding.size
        edge = self.body.thorax - gap - 0.30 * np.clip((-self.y - 0.15) / 0.6, 0, 1) ** 1.5  # the visceral pleura's x
        outside = _step(x - edge, 0.02) * self.within(side)
        self.air[side] = self.air[side] * (1 + 0.42 * outside)
        self.extra += 0.10 * np.exp(-(((x - edge) / 0.014) ** 2)) * self.within(side)
        self.extra += 0.05 * _step(edge - x, 0.05) * self.within(side) * finding.size

    def _consolidation(self, finding: Finding) -> None:
        cx = SIGN[finding.side] * self.rng.uniform(0.34, 0.52)
        cy = self.rng.uniform(-0.42, -0.22) if finding.zone == "upper" else self.rng.uniform(0.02, 0.22)
        radius = 0.15 + 0.08 * finding.size
        patch = np.zeros_like(self.x)
        for _ in range(5):
            ox, oy = self.rng.normal(0, 0.45 * radius, 2)
            rx, ry = radius * self.rng.uniform(0.5, 0.8, 2)
            patch += _blob(self.x, self.y, cx + ox, cy + oy, rx, ry)
        self.extra += 0.34 * np.clip(patch, 0, 1) * self.within(finding.side)

    def _edema(self, finding: Finding) -> None:
        for side, sign in SIGN.items():
            haze = _blob(self.x, self.y, sign * 0.30, -0.02, 0.24, 0.42)
            self.extra += (0.20 + 0.12 * finding.size) * haze * self.within(side)
            lines = np.sin(38 * (self.y + 0.4 * sign * self.x)) * _blob(self.x, self.y, sign * 0.6, 0.2, 0.15, 0.25)
            self.extra += 0.05 * np.clip(lines, 0, 1) * self.within(side)

    def _atelectasis(self, finding: Finding) -> None:
        sign, y = SIGN[finding.side], self.body.dome[finding.side] - 0.07
        plate = _segment(self.x, self.y, [(sign * 0.22, y + 0.03), (sign * 0.58, y - 0.03)], 0.022)
        self.extra += 0.22 * plate * self.within(finding.side)

    def _lung_lesion(self, finding: Finding) -> None:
        """A nodule: a sphere of soft tissue of 14 to 29 mm (the Fleischner glossary calls a nodule up to 30 mm)."""
        cx = SIGN[finding.side] * self.rng.uniform(0.30, 0.58)
        cy = self.rng.uniform(-0.50, -0.20) if finding.zone == "upper" else self.rng.uniform(-0.02, 0.20)
        radius = (7 + 7.5 * finding.size) * MM
        square = ((self.x - cx) ** 2 + (self.y - cy) ** 2) / radius**2
        self.extra += (0.30 + 0.10 * finding.size) * np.sqrt(np.clip(1 - square, 0, 1))

    def _support_devices(self, finding: Finding) -> None:
        x, y = self.x, self.y
        if finding.kind == "pacemaker":
            cx, cy = 0.52, -0.50
            box = _step(0.105 - np.abs(x - cx), 0.02) * _step(0.085 - np.abs(y - cy), 0.02)
            lead = [(cx, cy), (0.30, -0.60), (-0.06, -0.45), (-0.10, 0.0), (0.05, 0.22), (0.22, 0.30)]
            self.extra += 0.75 * box + 0.35 * _segment(x, y, lead, 0.012)
        elif finding.kind == "central line":
            line = [(-0.42, -0.95), (-0.30, -0.66), (-0.10, -0.50), (-0.09, 0.02)]
            self.extra += 0.42 * _segment(x, y, line, 0.017)
        else:
            tube = _segment(x, y, [(0.0, -1.0), (0.0, -0.30)], 0.045)
            lumen = _segment(x, y, [(0.0, -1.0), (0.0, -0.30)], 0.020)
            self.extra += 0.50 * tube - 0.35 * lumen

    def attenuation(self) -> Array:
        body, x, y = self.body, self.x, self.y
        width = body.thorax + 0.12 + 0.20 * np.exp(-(((y + 0.55) / 0.28) ** 2))  # shoulders
        shoulder = y + 1.05 - 0.42 * np.clip(np.abs(x) - 0.16, 0, 1)
        torso = np.clip(1 - np.abs(x / width) ** 8, 0, 1) ** 0.5 * _step(shoulder, 0.16)
        air = self.air["left"] + self.air["right"]
        total = 0.62 * torso - 0.52 * air
        # The heart displaces lung, tilted, two thirds of it left of the midline.
        half = body.heart_width * body.thorax
        cx, cy = 0.10 + 0.25 * (body.heart_width - 0.45), max(body.dome.values()) - 0.14
        dx, dy = x - cx, y - cy
        along, across = dx + body.heart_tilt * dy, dy - 0.3 * body.heart_tilt * dx
        heart = np.clip(1 - (along / half) ** 2 - (across / (0.30 + 0.35 * (half - 0.35))) ** 2, 0, 1) ** 0.5
        total += 0.42 * heart * np.clip(air * 1.2, 0, 1) + 0.10 * heart
        mediastinum = np.exp(-((x / 0.13) ** 4)) * torso + 0.6 * _blob(
            x, y, 0.12, -0.36, 0.10, 0.12
        )  # with the aortic knob
        total += 0.20 * mediastinum - 0.10 * np.exp(-((x / 0.035) ** 2)) * _step(-0.25 - y, 0.1)  # and the trachea
        vertebrae = 0.5 + 0.5 * np.cos(2 * np.pi * (y / 0.135))
        total += np.exp(-((x / 0.085) ** 4)) * (0.08 + 0.035 * vertebrae)
        total += 0.20 * _step(y - np.minimum(self.base["left"], self.base["right"]) - 0.02, 0.1) * torso  # abdomen
        total += self._bones() * torso + self._vessels() + self.extra
        return total

    def _bones(self) -> Array:
        body, x, y = self.body, np.abs(self.x), self.y
        cage = _step(body.thorax + 0.03 - x, 0.05) * _step(y + 0.80, 0.08) * _step(0.62 - y, 0.15)
        behind = (y - 0.28 * np.sin(1.9 * x) + 0.20 * x**2) / 0.165 + body.rib_phase
        before = (y - 0.75 * x) / 0.21 + body.rib_phase
        ribs = 0.085 * np.exp(-(((behind % 1 - 0.5) / 0.17) ** 2)) * _step(x - 0.08, 0.05)
        ribs += 0.05 * np.exp(-(((before % 1 - 0.5) / 0.15) ** 2)) * _step(x - 0.40, 0.10)
        clavicle = _segment(x, y, [(0.06, -0.62), (0.35, -0.70), (0.74, -0.74)], 0.035)
        return ribs * cage + 0.12 * clavicle

    def _vessels(self) -> Array:
        """Hila, and branches that fade towards the rim."""
        tree = np.zeros_like(self.x)
        for side, sign in SIGN.items():
            hilum = (sign * 0.17, -0.04)
            tree += 0.10 * _blob(self.x, self.y, *hilum, 0.08, 0.13) * self.within(side)
            for angle in np.linspace(-1.15, 1.15, 6) + self.rng.normal(0, 0.12, 6):
                length = self.rng.uniform(0.25, 0.45)
                end = (hilum[0] + sign * length * np.cos(angle), hilum[1] + length * np.sin(angle))
                branch = _segment(self.x, self.y, [hilum, end], 0.014)
                tree += 0.055 * self.body.texture * branch * self.within(side)
        return tree


def render(body: Body, findings: Sequence[Finding], size: int, rng: np.random.Generator) -> Array:
    """One frontal projection, float32 [size, size] in [0, 1], air dark and bone bright, quantum noise on top."""
    chest = Chest(body, size, rng)
    for finding in findings:
        chest.add(finding)
    image = 0.04 + body.exposure + 0.86 * body.contrast * chest.attenuation()
    image = np.where(image > 0.75, 0.75 + 0.24 * np.tanh((image - 0.75) / 0.24), image)  # the film's shoulder
    image += rng.normal(0, 0.008 * size / 128, image.shape) * (0.5 + image)
    if body.marker:  # an "L" of lead at the patient's left shoulder
        across, down = chest.x - 0.80, chest.y + 0.86
        letter = (np.abs(across) < 0.018) & (np.abs(down) < 0.08)
        letter |= (np.abs(down - 0.07) < 0.018) & (across > -0.018) & (across < 0.09)
        image[letter] = 1.0
    return np.clip(image, 0, 1).astype(np.float32)
