"""Answers of yes or no: precision–recall, decisions at a threshold, and calibration.

Shape legend: n answers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from mavilt_pl.metrics.bootstrap import (
    Estimate,
    PatientBootstrapMetric,
    Statistics,
    bootstrap_all,
)
from mavilt_pl.metrics.intervals import num_patients, wilson_interval

BINS = 10  # of the calibration error, as in arXiv 1706.04599
# With fewer, resamples of patients say too little: with 5 of each finding the interval of a mean
# holds the true value 88 times in 100 (benchmarks/coverage.py).
FEWEST_POSITIVES = 20
NAN = float("nan")


def average_precision(
    score: np.ndarray, positive: np.ndarray, weights: np.ndarray | None = None
) -> float:
    """Area under the precision–recall curve by steps, as scikit-learn's `average_precision_score`.

    Its value at chance is the share of positives. nan without a positive case.

    Args:
        score: [n].
        positive: 1 or 0, [n].
        weights: how often each case counts, [n].

    >>> round(average_precision(np.array([0.9, 0.8, 0.1]), np.array([1, 0, 1])), 4)
    0.8333
    """
    if weights is None:
        weights = np.ones(len(score))
    # From the highest score down, equal scores at once.
    values, index = np.unique(-score, return_inverse=True)
    right = np.cumsum(np.bincount(index, weights * positive, minlength=len(values)))
    called = np.cumsum(np.bincount(index, weights, minlength=len(values)))
    # Without a positive case nothing can be found.
    if not len(right) or right[-1] == 0:
        return NAN
    # Where a resample leaves a score out, nothing is called there.
    precision = np.divide(right, called, out=np.zeros(len(called)), where=called > 0)
    recall = right / right[-1]
    return float((np.diff(recall, prepend=0.0) * precision).sum())


def youden_threshold(score: np.ndarray, positive: np.ndarray) -> float | None:
    """The threshold of the largest sensitivity + specificity; None without both classes.

    It lies in the middle between two scores, so that it is no answer's own. Of equally good ones
    it is the lowest.

    >>> youden_threshold(np.array([0.1, 0.3, 0.7]), np.array([0, 0, 1]))
    0.5
    """
    positives, negatives = positive.sum(), (1 - positive).sum()
    if positives == 0 or negatives == 0:
        return None
    order = np.argsort(score, kind="stable")
    scores, truths = score[order], positive[order]
    # Below the threshold lie the first k: their positives are missed, their negatives right.
    missed = np.cumsum(truths) / positives
    spared = np.cumsum(1 - truths) / negatives
    gain = (spared - missed)[:-1]
    # A threshold cannot part equal scores.
    gain[scores[1:] == scores[:-1]] = -1.0
    # Scores that say nothing: any threshold is as good, and none is at the edge.
    if not len(gain) or gain.max() <= 0:
        return 0.5
    best = int(gain.argmax())
    return float((scores[best] + scores[best + 1]) / 2)


def calibration_error(
    score: np.ndarray, positive: np.ndarray, weights: np.ndarray | None = None
) -> float:
    """Expected calibration error of probabilities of yes, in ten bins of equal width, 0 to 1.

    >>> round(calibration_error(np.array([0.8, 0.8]), np.array([1, 0])), 3)
    0.3
    """
    if weights is None:
        weights = np.ones(len(score))
    error = 0.0
    for _, mean, share, weight in reliability(score, positive, weights):
        error += abs(mean - share) * weight
    return float(error / weights.sum())


def reliability(
    score: np.ndarray, positive: np.ndarray, weights: np.ndarray
) -> list[tuple[int, float, float, float]]:
    """Bin, mean probability, share of positives and weight of each bin that has cases."""
    # A probability of 1 belongs to the last bin.
    bins = np.minimum((score * BINS).astype(int), BINS - 1)
    rows = []
    for number in range(BINS):
        of_bin = weights * (bins == number)
        weight = of_bin.sum()
        if weight > 0:
            mean, share = of_bin @ score / weight, of_bin @ positive / weight
            rows.append((number, float(mean), float(share), float(weight)))
    return rows


class YesNoScores(PatientBootstrapMetric):
    """Figures of answers of yes or no by finding, beyond the AUROC.

    `auprc/…` and `auprc_macro`; `ece`, over all answers; and where a threshold is known
    `sensitivity/…`, `specificity/…`, `balanced_accuracy/…` and `balanced_accuracy_macro`. The
    positives of a mean are those of the finding that has the fewest.

    Args:
        groups: names of the findings.
    """

    def __init__(self, groups: Sequence[str]):
        # Group number, truth, probability of yes, decision (nan without a threshold).
        super().__init__(4)
        self.groups = tuple(groups)

    def protocol_of(self, name: str) -> str:
        """How the figure of this name is computed."""
        what = "of studies whose label says present or absent"
        if name.startswith("auprc"):
            return f"average precision by steps, {what}; chance is the share of positives"
        if name == "ece":
            return f"expected calibration error of the probability of yes, {BINS} equal bins"
        return f"at the threshold of the largest sensitivity + specificity in validation, {what}"

    def update(
        self,
        scores: Sequence[float],
        truths: Sequence[float],
        decisions: Sequence[float],
        groups: Sequence[int],
        patients: Sequence[str],
    ) -> None:
        """Add answers.

        Args:
            scores: probability of yes.
            truths: 1 or 0.
            decisions: 1 or 0, or nan without a threshold.
            groups: number of the finding of each answer.
            patients: the patient of each answer.
        """
        # The order that `statistics` and `_rates` read the columns in.
        rows = [[*row] for row in zip(groups, truths, scores, decisions)]
        self.add_rows([list(map(float, row)) for row in rows], patients)

    def compute(self) -> dict[str, Estimate]:
        """All figures."""
        rows, patients = self.table()
        if not len(rows):
            return {}
        figures: dict[str, Estimate] = {}
        for name, chosen in self._chosen(rows).items():
            for figure, value in _of_finding(rows[chosen], patients[chosen]).items():
                figures[f"{figure}/{name}"] = value
        figures |= self._means(rows, patients)
        ece = calibration_error(rows[:, 2], rows[:, 1])
        # A resample moves it away from 0, as it does a distance.
        figures["ece"] = Estimate(ece, None, None, len(rows))
        return figures

    def _means(self, rows: np.ndarray, patients: np.ndarray) -> dict[str, Estimate]:
        """The means over findings; with an interval if every finding has positives enough."""
        means = bootstrap_all(self.statistics(rows), patients)
        counts = []
        for chosen in self._chosen(rows).values():
            counts.append(num_patients(patients, chosen & (rows[:, 1] == 1)))
        fewest = min(counts, default=0)
        found = {}
        for name, figure in means.items():
            if fewest < FEWEST_POSITIVES:
                figure = figure._replace(low=None, high=None)
            found[name] = figure._replace(positives=fewest)
        return found

    def _chosen(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """The rows of each finding with answers of both kinds, bool [n]."""
        chosen = {}
        for number, name in enumerate(self.groups):
            # A finding that all or no patients have has neither areas nor rates.
            of_group = rows[:, 0] == number
            if of_group.any() and len(np.unique(rows[of_group, 1])) == 2:
                chosen[name] = of_group
        return chosen

    def statistics(self, rows: np.ndarray) -> Statistics:
        """The means over findings as a function of the weights of the answers."""
        groups = [(chosen, rows[chosen]) for chosen in self._chosen(rows).values()]
        means: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
            "auprc_macro": lambda table, weights: average_precision(
                table[:, 2], table[:, 1], weights
            ),
            "balanced_accuracy_macro": _balanced_accuracy,
        }

        def macro(weights: np.ndarray) -> dict[str, float]:
            """Means over the findings that have a figure."""
            found = {}
            for name, figure in means.items():
                values = [figure(table, weights[chosen]) for chosen, table in groups]
                defined = [value for value in values if not np.isnan(value)]
                found[name] = float(np.mean(defined)) if defined else NAN
            return found

        return macro


def _rates(rows: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
    """Sensitivity and specificity of decisions; nan without a class."""
    truth, decision = rows[:, 1], rows[:, 3]
    positives, negatives = weights @ truth, weights @ (1 - truth)
    sensitivity = float((weights * truth) @ decision / positives) if positives else NAN
    specificity = float((weights * (1 - truth)) @ (1 - decision) / negatives) if negatives else NAN
    return sensitivity, specificity


def _balanced_accuracy(rows: np.ndarray, weights: np.ndarray) -> float:
    return sum(_rates(rows, weights)) / 2


def _of_finding(rows: np.ndarray, patients: np.ndarray) -> dict[str, Estimate]:
    """Figures of one finding; intervals of proportions only, which hold with few positives too."""
    is_positive = rows[:, 1] == 1
    positives, cases = int(is_positive.sum()), len(rows)
    area = average_precision(rows[:, 2], rows[:, 1])
    figures = {"auprc": Estimate(area, None, None, cases, positives)}
    sensitivity, specificity = _rates(rows, np.ones(cases))
    # Without a threshold the decisions are nan, and so are both.
    if np.isnan(sensitivity) or np.isnan(specificity):
        return figures
    for name, value, chosen in (
        ("sensitivity", sensitivity, is_positive),
        ("specificity", specificity, ~is_positive),
    ):
        # Each is a share of the patients of one class.
        interval = wilson_interval(value, num_patients(patients, chosen))
        figures[name] = Estimate(value, *interval, int(chosen.sum()), positives)
    balanced = (sensitivity + specificity) / 2
    figures["balanced_accuracy"] = Estimate(balanced, None, None, cases, positives)
    return figures
