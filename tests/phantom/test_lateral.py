"""The lateral projection: the same patient from the side."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from mavilt_pl.phantom.anatomy import Body, Projection, render, sample_body
from mavilt_pl.phantom.findings import FINDINGS, Finding, make_finding

SIZE = 96


def patient(*findings: Finding) -> Body:
    return dataclasses.replace(sample_body(np.random.default_rng(1), findings), shift=(0.0, 0.0))


def change(finding: Finding, projection: Projection = "LATERAL") -> np.ndarray:
    """What the finding adds to the image of one and the same patient, [H,W]."""
    body = patient(finding)
    with_finding = render(body, [finding], SIZE, np.random.default_rng(2), projection)
    without = render(body, [], SIZE, np.random.default_rng(2), projection)
    return with_finding - without


@pytest.mark.parametrize("name", FINDINGS)
def test_each_finding_shows_from_the_side(name: str) -> None:
    finding = make_finding(name, np.random.default_rng(3))
    image = render(patient(finding), [finding], SIZE, np.random.default_rng(2), "LATERAL")
    without = render(patient(), [], SIZE, np.random.default_rng(2), "LATERAL")
    assert image.dtype == np.float32
    assert image.min() >= 0
    assert image.max() <= 1
    assert np.abs(image - without).max() > 0.08


def centre_of_height(finding: Finding, projection: Projection) -> float:
    """The row in which the centre of a finding's shadow lies."""
    brighter = np.clip(change(finding, projection) - 0.05, 0, None)
    return float(np.average(np.arange(SIZE), weights=brighter.sum(1)))


@pytest.mark.parametrize("zone", ["upper", "lower"])
def test_a_nodule_is_as_high_on_the_lateral_as_on_the_frontal_projection(zone: str) -> None:
    finding = make_finding("lung lesion", np.random.default_rng(0), "right", zone)
    assert abs(centre_of_height(finding, "PA") - centre_of_height(finding, "LATERAL")) < 2


def test_an_effusion_fills_the_posterior_angle() -> None:
    brighter = np.clip(change(Finding("pleural effusion", "right", size=0.6)) - 0.05, 0, None)
    assert np.average(np.arange(SIZE), weights=brighter.sum(0)) > 0.55 * SIZE  # behind
    assert np.average(np.arange(SIZE), weights=brighter.sum(1)) > 0.60 * SIZE  # and below


def test_the_heart_lies_in_front_with_air_on_either_side() -> None:
    image = render(patient(), [], SIZE, np.random.default_rng(2), "LATERAL")

    def mean_around(y: float, x: float) -> float:
        row, column = int(y * SIZE), int(x * SIZE)
        return float(image[row - 2 : row + 3, column - 2 : column + 3].mean())

    heart = mean_around(0.62, 0.36)
    retrosternal, retrocardiac = mean_around(0.36, 0.32), mean_around(0.60, 0.62)
    assert heart > retrosternal + 0.15
    assert heart > retrocardiac + 0.15
