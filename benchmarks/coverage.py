"""How often the 95 % intervals contain the true value, in simulation.

python benchmarks/coverage.py               # 2,000 tests of 400 studies for each row
python benchmarks/coverage.py --tests 300

A study is positive with a fixed probability. Its score is normal, `shift` higher if positive
(AUROC); or it is claimed with a sensitivity and a false-positive rate (F1). Next to the intervals
as they are shipped are the percentiles of the bootstrap alone. Means over eight such findings have
bootstrap intervals; their true value is the mean over many tests.
"""

from __future__ import annotations

import argparse
from functools import partial

import numpy as np
from scipy import stats

from mavilt_pl.metrics.bootstrap import bootstrap
from mavilt_pl.metrics.decisions import YesNoScores
from mavilt_pl.metrics.intervals import (
    FEW_PATIENTS,
    auroc_interval,
    f1_interval,
    wilson_interval,
)
from mavilt_pl.metrics.vqa import auroc

STUDIES = 400
POSITIVES = (5, 10, 20, 40, 100, 300)
SHIFTS = (1.0, 2.5)  # of the scores of positive studies: AUROC .760 and .961
CLAIMS = ((0.7, 0.02), (0.5, 0.1), (0.95, 0.01))  # sensitivity, false-positive rate
FINDINGS = 8  # of a mean
PATIENTS = np.arange(STUDIES)


def f1(positive: np.ndarray, claimed: np.ndarray, weights: np.ndarray) -> float:
    """F1 of claims under weights of the studies."""
    right, labelled, asserted = (
        weights @ (positive & claimed),
        weights @ positive,
        weights @ claimed,
    )
    return float(2 * right / (labelled + asserted)) if labelled else float("nan")


def contains(interval: tuple[float | None, float | None], true: float) -> bool:
    """Whether an interval contains the true value."""
    low, high = interval
    return low is not None and high is not None and low <= true <= high


def auroc_coverage(
    positives: int, shift: float, tests: int, random: np.random.Generator, percentiles: bool = True
) -> tuple[float, float]:
    """Share of tests whose interval contains the true AUROC: ours, and the bootstrap's."""
    true = float(stats.norm.cdf(shift / np.sqrt(2)))
    ours = theirs = done = 0
    while done < tests:
        positive = random.random(STUDIES) < positives / STUDIES
        count = int(positive.sum())
        if count < 2:
            continue
        done += 1
        scores = random.normal(size=STUDIES) + shift * positive
        area = partial(auroc, scores, positive.astype(float))
        resampled = None
        if percentiles or count >= FEW_PATIENTS:
            resampled = bootstrap(area, PATIENTS)
            theirs += contains(resampled, true)
        if count < FEW_PATIENTS:
            ours += contains(auroc_interval(area(), count, STUDIES - count), true)
        elif resampled is not None:
            ours += contains(resampled, true)
    return ours / tests, theirs / tests


def f1_coverage(
    positives: int,
    sensitivity: float,
    false_positives: float,
    tests: int,
    random: np.random.Generator,
    percentiles: bool = True,
) -> tuple[float, float]:
    """Share of tests whose interval contains the true F1: ours, and the bootstrap's."""
    share = positives / STUDIES
    right = share * sensitivity
    true = 2 * right / (share + right + (1 - share) * false_positives)
    ours = theirs = done = 0
    while done < tests:
        positive = random.random(STUDIES) < share
        if not positive.any():
            continue
        done += 1
        rate = np.where(positive, sensitivity, false_positives)
        claimed = random.random(STUDIES) < rate
        found = f1(positive, claimed, np.ones(STUDIES))
        ours += contains(f1_interval(found, int((positive | claimed).sum())), true)
        if percentiles:
            score = partial(f1, positive, claimed)
            theirs += contains(bootstrap(score, PATIENTS), true)
    return ours / tests, theirs / tests


def sensitivity_coverage(
    positives: int, sensitivity: float, tests: int, random: np.random.Generator
) -> tuple[float, float]:
    """Share of tests whose interval contains the true sensitivity: ours, and the bootstrap's."""
    ours = theirs = done = 0
    while done < tests:
        count = random.binomial(STUDIES, positives / STUDIES)
        if count < 2:
            continue
        done += 1
        right = (random.random(count) < sensitivity).astype(float)
        ours += contains(wilson_interval(right.mean(), count), sensitivity)
        # Bound now: the function is called within this turn of the loop.
        share = partial(lambda right, weights: weights @ right / weights.sum(), right)
        theirs += contains(bootstrap(share, np.arange(count)), sensitivity)
    return ours / tests, theirs / tests


def macro_coverage(positives: int, tests: int, random: np.random.Generator) -> dict[str, float]:
    """Share of tests whose interval contains the true mean over findings, by figure."""
    expected: dict[str, list[float]] = {}
    found = []
    for _ in range(tests):
        metric = YesNoScores([f"finding {number}" for number in range(FINDINGS)])
        for number in range(FINDINGS):
            positive = random.random(STUDIES) < positives / STUDIES
            score = stats.norm.cdf(random.normal(size=STUDIES) + SHIFTS[0] * (2 * positive - 1))
            truth, decision = positive.astype(float), (score > 0.5).astype(float)
            patients = [str(study) for study in range(STUDIES)]
            metric.update(score, truth, decision, [number] * STUDIES, patients)
        figures = {k: v for k, v in metric.compute().items() if k.endswith("_macro")}
        found.append(figures)
        for name, figure in figures.items():
            expected.setdefault(name, []).append(figure.value)
    coverage = {}
    for name, values in expected.items():
        # What the figure is on average: that of a test of so many studies.
        true = float(np.mean(values))
        inside = [contains((one[name].low, one[name].high), true) for one in found]
        coverage[name] = float(np.mean(inside))
    return coverage


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tests", type=int, default=2000)
    tests = parser.parse_args().tests
    random = np.random.default_rng(0)
    print("| figure | positives | coverage | of bootstrap percentiles |")
    print("| --- | --- | --- | --- |")
    for positives in POSITIVES:
        for shift in SHIFTS:
            ours, theirs = auroc_coverage(positives, shift, tests, random)
            true = stats.norm.cdf(shift / np.sqrt(2))
            print(f"| AUROC {true:.3f} | {positives} | {ours:.3f} | {theirs:.3f} |", flush=True)
    for positives in POSITIVES:
        for sensitivity, rate in CLAIMS:
            ours, theirs = f1_coverage(positives, sensitivity, rate, tests, random)
            name = f"F1, sensitivity {sensitivity}, false positives {rate}"
            print(f"| {name} | {positives} | {ours:.3f} | {theirs:.3f} |", flush=True)
    for positives in POSITIVES:
        for sensitivity in (0.7, 0.95):
            ours, theirs = sensitivity_coverage(positives, sensitivity, tests, random)
            name = f"sensitivity {sensitivity}"
            print(f"| {name} | {positives} | {ours:.3f} | {theirs:.3f} |", flush=True)
    for positives in POSITIVES:
        # A test of eight findings takes a second.
        for name, share in macro_coverage(positives, max(tests // 5, 20), random).items():
            print(f"| {name}, eight findings | {positives} each | {share:.3f} | |", flush=True)


if __name__ == "__main__":
    main()
