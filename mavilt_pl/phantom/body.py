"""One patient's build, which every projection of a study shares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mavilt_pl.phantom.findings import Finding

FOCAL_FINDINGS = ("consolidation", "lung lesion")


@dataclass(frozen=True)
class Body:
    """A build of some twenty numbers.

    Lengths are in units of about 180 mm; heights are y from -1 (top) to 1, as in `frontal.py`.

    Args:
        thorax: half width of the rib cage, inside.
        depth: half of the chest from sternum to spine.
        apex: y of the lungs' tops.
        dome: y of each hemidiaphragm's top at full inspiration.
        shallow: how much higher the domes stand at the bedside (AP).
        heart_width: cardiothoracic ratio on a PA projection.
        heart_slope: how steeply the left heart border descends, 0 to 1.
        knob: how far the aortic knob bulges.
        wall: soft tissue outside the ribs.
        breast: attenuation of the breast shadows, 0 for none.
        arm: how far the arms are from the chest.
        stomach: attenuation that the gas under the left dome takes away.
        exposure: added to the grey level.
        contrast: factor of the grey level.
        shift: of the patient on the detector, x and y.
        rib_phase: where the first rib lies, in [0, 1] of the ribs' distance.
        texture: strength of the vessels.
        focal_position: of each focal finding across, down and deep, in [0, 1] of its range.
        marker: a lead letter in the corner, as on films of the Indiana collection.
    """

    thorax: float
    depth: float
    apex: float
    dome: dict[str, float]
    shallow: float
    heart_width: float
    heart_slope: float
    knob: float
    wall: float
    breast: float
    arm: float
    stomach: float
    exposure: float
    contrast: float
    shift: tuple[float, float]
    rib_phase: float
    texture: float
    focal_position: dict[str, tuple[float, float, float]]
    marker: bool


def sample_body(
    rng: np.random.Generator, findings: Sequence[Finding], marker: bool = False
) -> Body:
    """Sample a build that fits the findings.

    Cardiomegaly has a wide heart, hyperinflation low domes, atelectasis a raised one.

    Args:
        rng: the order of its calls determines every phantom of a seed.
        findings: of the study.
        marker: as of `Body`.
    """
    by_name = {finding.name: finding for finding in findings}
    # Normal and enlarged hearts do not overlap, so that the label is decidable from the image.
    ratio = rng.uniform(0.40, 0.49)
    # 0.50 is the radiologist's limit on a PA projection.
    if "cardiomegaly" in by_name:
        ratio = 0.56 + 0.12 * by_name["cardiomegaly"].size
    dome = rng.uniform(0.36, 0.46)
    thorax = rng.uniform(0.76, 0.82)
    depth = rng.uniform(0.46, 0.54)
    # Domes pushed down, a barrel chest, and a heart that looks narrow between long lungs.
    if "hyperinflation" in by_name:
        size = by_name["hyperinflation"].size
        dome += 0.14 + 0.08 * size
        thorax += 0.03
        depth += 0.08 + 0.06 * size
        ratio *= 0.92
    # The right dome stands higher, with the liver under it. y grows downwards.
    domes = {"right": dome - rng.uniform(0.0, 0.04), "left": dome + rng.uniform(0.0, 0.04)}
    if "atelectasis" in by_name:
        finding = by_name["atelectasis"]
        # Volume loss pulls the dome up by more than the two sides ever differ, so that it can be
        # seen.
        domes[finding.side] -= 0.14 + 0.10 * finding.size
    # The arguments below are sampled in this order.
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
        focal_position=_sample_positions(rng),
        marker=marker,
    )


def _sample_positions(rng: np.random.Generator) -> dict[str, tuple[float, float, float]]:
    # For all focal findings, present or not: the numbers that follow then do not depend on them.
    positions = {}
    for name in FOCAL_FINDINGS:
        positions[name] = (rng.random(), rng.random(), rng.random())
    return positions
