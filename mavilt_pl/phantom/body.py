"""One patient's build, which every projection of a study shares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mavilt_pl.phantom.findings import Finding


@dataclass(frozen=True)
class Body:
    """Lengths are in units of about 180 mm, heights are y from -1 (top) to 1, as `frontal.py` has
    them.
    """

    thorax: float  # half width of the rib cage, inside
    depth: float  # half of the chest from sternum to spine
    apex: float  # y of the lungs' tops
    dome: dict[str, float]  # y of each hemidiaphragm's top at full inspiration
    shallow: float  # how much higher the domes stand at the bedside (AP)
    heart_width: float  # cardiothoracic ratio on a PA projection
    heart_slope: float  # how steeply the left heart border descends, 0 to 1
    knob: float  # how far the aortic knob bulges
    wall: float  # soft tissue outside the ribs
    breast: float  # attenuation of the breast shadows, 0 for none
    arm: float  # how far the arms are from the chest
    stomach: float  # attenuation that the gas under the left dome takes away
    exposure: float
    contrast: float
    shift: tuple[float, float]
    rib_phase: float
    texture: float
    place: dict[
        str, tuple[float, float, float]
    ]  # focal findings: across, down, deep, each in [0, 1] of its range
    marker: bool  # a lead letter in the corner, as on films of the Indiana collection


def draw_body(rng: np.random.Generator, findings: Sequence[Finding], marker: bool = False) -> Body:
    """A build that fits the findings: a wide heart for cardiomegaly, low domes for hyperinflation,
    a raised one for atelectasis.
    """
    by_name = {finding.name: finding for finding in findings}
    ratio = rng.uniform(0.40, 0.49)
    if "cardiomegaly" in by_name:
        ratio = 0.56 + 0.12 * by_name["cardiomegaly"].size
    dome = rng.uniform(0.36, 0.46)
    thorax = rng.uniform(0.76, 0.82)
    depth = rng.uniform(0.46, 0.54)
    if "hyperinflation" in by_name:
        dome += 0.14 + 0.08 * by_name["hyperinflation"].size
        thorax += 0.03
        depth += 0.08 + 0.06 * by_name["hyperinflation"].size
        ratio *= 0.92
    domes = {"right": dome - rng.uniform(0.0, 0.04), "left": dome + rng.uniform(0.0, 0.04)}
    if "atelectasis" in by_name:
        domes[by_name["atelectasis"].side] -= 0.14 + 0.10 * by_name["atelectasis"].size
    return Body(
        thorax=thorax,
        depth=depth,
        apex=rng.uniform(-0.78, -0.70),
        dome=domes,
        shallow=rng.uniform(0.04, 0.09),
        heart_width=ratio,
        heart_slope=rng.uniform(0.25, 0.75),
        knob=rng.uniform(0.06, 0.09),
        wall=rng.uniform(0.09, 0.13),
        breast=rng.uniform(0.03, 0.05) if rng.random() < 0.45 else 0.0,
        arm=rng.uniform(0.05, 0.11),
        stomach=rng.uniform(0.0, 0.06),
        exposure=rng.uniform(-0.025, 0.025),
        contrast=rng.uniform(0.95, 1.05),
        shift=(rng.uniform(-0.02, 0.02), rng.uniform(-0.02, 0.02)),
        rib_phase=rng.uniform(0, 1),
        texture=rng.uniform(0.7, 1.3),
        place={
            name: (rng.random(), rng.random(), rng.random())
            for name in ("consolidation", "lung lesion")
        },
        marker=marker,
    )
