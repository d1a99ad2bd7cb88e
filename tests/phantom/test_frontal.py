"""The frontal projections: what AP changes against PA, and what it must not hide."""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np
import pytest

from mavilt_pl.phantom.anatomy import render, sample_body
from mavilt_pl.phantom.findings import make_finding
from mavilt_pl.phantom.frontal import Frontal

Projection = Literal["PA", "AP"]


def cardiothoracic_ratio(projection: Projection, enlarged: bool, seed: int) -> float:
    """Greatest width of the central shadow over that of the rib cage, measured on the shadow."""
    rng = np.random.default_rng(seed)
    findings = [make_finding("cardiomegaly", rng)] if enlarged else []
    body = dataclasses.replace(sample_body(rng, findings), shift=(0.0, 0.0))
    chest = Frontal(body, 256, rng, projection)
    return float((chest._silhouette() > 0.3).sum(1).max() / (256 * body.thorax))


@pytest.mark.parametrize("projection", ["PA", "AP"])
def test_an_enlarged_heart_is_wider_than_any_normal_one(projection: Projection) -> None:
    normal = [cardiothoracic_ratio(projection, False, seed) for seed in range(30)]
    enlarged = [cardiothoracic_ratio(projection, True, seed) for seed in range(30)]
    assert max(normal) < min(enlarged) - 0.02


def test_ap_magnifies_the_heart_but_never_into_cardiomegaly() -> None:
    pa = [cardiothoracic_ratio("PA", False, seed) for seed in range(30)]
    ap = [cardiothoracic_ratio("AP", False, seed) for seed in range(30)]
    for narrow, wide in zip(pa, ap):
        assert 1.03 < wide / narrow < 1.12
    assert max(ap) < min(cardiothoracic_ratio("PA", True, seed) for seed in range(30))


def lung_volume(projection: Projection) -> float:
    body = sample_body(np.random.default_rng(0), [])
    chest = Frontal(body, 64, np.random.default_rng(1), projection)
    return float(sum(air.sum() for air in chest.air.values()))


def test_ap_is_a_shallower_breath() -> None:
    assert 0.80 < lung_volume("AP") / lung_volume("PA") < 0.97


def test_ap_lays_the_scapulae_over_the_lungs() -> None:
    body = dataclasses.replace(sample_body(np.random.default_rng(0), []), shift=(0.0, 0.0))
    pa = render(body, [], 128, np.random.default_rng(1), "PA")
    ap = render(body, [], 128, np.random.default_rng(1), "AP")
    # The left lung next to the rib cage, below the clavicle.
    upper_outer = (slice(38, 50), slice(106, 112))
    assert ap[upper_outer].mean() > pa[upper_outer].mean() + 0.02
