"""The lateral projection: the same patient from the side."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from mavilt_pl.phantom.anatomy import Body, Projection, draw_body, render
from mavilt_pl.phantom.findings import FINDINGS, Finding, make_finding

SIZE = 96


def patient(*findings: Finding) -> Body:
    return dataclasses.replace(draw_body(np.random.default_rng(1), findings), shift=(0.0, 0.0))


def change(finding: Finding, projection: Projection = "LATERAL") -> np.ndarray:
    """What the finding adds to the image of one and the same patient, [H,W]."""
    body = patient(finding)
    with_it, without = (
        render(body, f, SIZE, np.random.default_rng(2), projection) for f in ([finding], [])
    )
    return with_it - without


@pytest.mark.parametrize("name", FINDINGS)
def test_each_finding_shows_from_the_side(name: str) -> None:
    finding = make_finding(name, np.random.default_rng(3))
    with_it = render(patient(finding), [finding], SIZE, np.random.default_rng(2), "LATERAL")
    without = render(patient(), [], SIZE, np.random.default_rng(2), "LATERAL")
    assert with_it.dtype == np.float32 and with_it.min() >= 0 and with_it.max() <= 1
    assert np.abs(with_it - without).max() > 0.08


@pytest.mark.parametrize("zone", ["upper", "lower"])
def test_a_nodule_is_as_high_on_the_lateral_as_on_the_frontal_projection(zone: str) -> None:
    finding = make_finding("lung lesion", np.random.default_rng(0), "right", zone)
    rows = []
    for projection in ("PA", "LATERAL"):
        brighter = np.clip(change(finding, projection) - 0.05, 0, None)  # type: ignore[arg-type]
        rows.append(np.average(np.arange(SIZE), weights=brighter.sum(1)))
    assert abs(rows[0] - rows[1]) < 2


def test_an_effusion_fills_the_posterior_angle() -> None:
    brighter = np.clip(change(Finding("pleural effusion", "right", size=0.6)) - 0.05, 0, None)
    assert np.average(np.arange(SIZE), weights=brighter.sum(0)) > 0.55 * SIZE  # behind
    assert np.average(np.arange(SIZE), weights=brighter.sum(1)) > 0.60 * SIZE  # and below


def test_the_heart_lies_in_front_and_air_before_and_behind_it() -> None:
    image = render(patient(), [], SIZE, np.random.default_rng(2), "LATERAL")
    rows = {"retrosternal": (0.36, 0.32), "heart": (0.62, 0.36), "retrocardiac": (0.60, 0.62)}
    at = {
        name: image[
            int(y * SIZE) - 2 : int(y * SIZE) + 3, int(x * SIZE) - 2 : int(x * SIZE) + 3
        ].mean()
        for name, (y, x) in rows.items()
    }
    assert at["heart"] > at["retrosternal"] + 0.15 and at["heart"] > at["retrocardiac"] + 0.15
