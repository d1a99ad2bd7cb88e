"""The frontal projections: what AP changes against PA, and what it must not hide."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from mavilt_pl.phantom.anatomy import draw_body, render
from mavilt_pl.phantom.findings import make_finding
from mavilt_pl.phantom.frontal import Frontal


def cardiothoracic_ratio(projection: str, enlarged: bool, seed: int) -> float:
    """Greatest width of the central shadow over that of the rib cage, measured on the shadow
    itself.
    """
    random = np.random.default_rng(seed)
    findings = [make_finding("cardiomegaly", random)] if enlarged else []
    body = dataclasses.replace(draw_body(random, findings), shift=(0.0, 0.0))
    chest = Frontal(body, 256, random, projection)  # type: ignore[arg-type]
    return float((chest._silhouette() > 0.3).sum(1).max() / (256 * body.thorax))


@pytest.mark.parametrize("projection", ["PA", "AP"])
def test_an_enlarged_heart_is_wider_than_any_normal_one(projection: str) -> None:
    normal = [cardiothoracic_ratio(projection, False, seed) for seed in range(30)]
    enlarged = [cardiothoracic_ratio(projection, True, seed) for seed in range(30)]
    assert max(normal) < min(enlarged) - 0.02


def test_ap_magnifies_the_heart_but_never_into_cardiomegaly() -> None:
    pa = [cardiothoracic_ratio("PA", False, seed) for seed in range(30)]
    ap = [cardiothoracic_ratio("AP", False, seed) for seed in range(30)]
    assert all(1.03 < wide / narrow < 1.12 for wide, narrow in zip(ap, pa))
    assert max(ap) < min(cardiothoracic_ratio("PA", True, seed) for seed in range(30))


def test_ap_is_a_shallower_breath() -> None:
    body = draw_body(np.random.default_rng(0), [])
    lungs = [
        sum(a.sum() for a in Frontal(body, 64, np.random.default_rng(1), p).air.values())
        for p in ("PA", "AP")
    ]  # type: ignore[arg-type]
    assert 0.80 < lungs[1] / lungs[0] < 0.97


def test_ap_lays_the_scapulae_over_the_lungs() -> None:
    body = dataclasses.replace(draw_body(np.random.default_rng(0), []), shift=(0.0, 0.0))
    pa, ap = (render(body, [], 128, np.random.default_rng(1), p) for p in ("PA", "AP"))  # type: ignore[arg-type]
    upper_outer = (
        slice(38, 50),
        slice(106, 112),
    )  # the left lung beside the rib cage, below the clavicle
    assert ap[upper_outer].mean() > pa[upper_outer].mean() + 0.02
