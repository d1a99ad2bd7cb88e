"""Intervals of single findings: against scipy, their definition, and the promise in simulation."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from mavilt_pl.metrics.intervals import auroc_interval, f1_interval

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "coverage.py"


@pytest.mark.parametrize(("right", "cases"), [(0, 5), (3, 7), (7, 7), (40, 90)])
def test_f1_is_wilsons_interval_of_a_proportion(right: int, cases: int) -> None:
    f1 = 2 * right / (right + cases)  # cases: right, missed and invented ones
    expected = stats.binomtest(right, cases).proportion_ci(method="wilson")
    low, high = f1_interval(f1, cases)
    assert low == pytest.approx(2 * expected.low / (1 + expected.low), abs=1e-9)
    assert high == pytest.approx(2 * expected.high / (1 + expected.high), abs=1e-9)


@pytest.mark.parametrize("auroc", [0.5, 0.76, 0.97, 1.0, 0.0])
@pytest.mark.parametrize(("positives", "negatives"), [(2, 30), (5, 395), (120, 80)])
def test_auroc_limits_are_one_and_a_half_percent_away(
    auroc: float, positives: int, negatives: int
) -> None:
    """The found value is 1.96 standard errors of each limit away from it (Newcombe, method 5)."""
    low, high = auroc_interval(auroc, positives, negatives)
    assert 0 <= low <= auroc <= high <= 1 and low < high
    for limit in (low, high):
        if limit in (0.0, 1.0):
            continue
        q1, q2 = limit / (2 - limit), 2 * limit**2 / (1 + limit)
        # Hanley and McNeil, with both counts replaced by their mean, less one.
        middle = (positives + negatives) / 2 - 1
        variance = limit * (1 - limit) + middle * (q1 - limit**2 + q2 - limit**2)
        error = np.sqrt(variance / (positives * negatives))
        assert abs(auroc - limit) / error == pytest.approx(1.959964, rel=1e-4)


def test_no_interval_of_one_patient() -> None:
    assert auroc_interval(0.7, 1, 30) == f1_interval(0.5, 1) == (None, None)


@pytest.mark.parametrize("positives", [5, 20, 60])
def test_coverage(positives: int) -> None:
    """1,500 simulated tests each; benchmarks/coverage.py has more."""
    spec = importlib.util.spec_from_file_location("coverage_of_intervals", SCRIPT)
    simulation = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(simulation)
    random = np.random.default_rng(positives)
    for shift in simulation.SHIFTS:
        ours, _ = simulation.auroc_coverage(positives, shift, 1500, random, percentiles=False)
        assert 0.92 < ours < 0.995, shift
    for claims in simulation.CLAIMS:
        ours, _ = simulation.f1_coverage(positives, *claims, 1500, random, percentiles=False)
        assert 0.92 < ours < 0.98, claims
