"""Areas under the ROC curve and mean scores, by group (finding, topic), and free-text answers."""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from torch import Tensor

from mavilt_pl.metrics.bootstrap import (
    Estimate,
    PatientBootstrapMetric,
    Statistics,
    bootstrap,
    bootstrap_all,
    weighted_mean_ci,
)
from mavilt_pl.metrics.intervals import FEW_PATIENTS, auroc_interval, num_patients


def auroc(score: np.ndarray, positive: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Area under the ROC curve, ties counting half; nan without cases of both classes.

    It is the probability that a positive case scores above a negative one. Own code: that of
    scikit-learn, which the tests compare with, warns for a single class and is no dependency.

    Args:
        score: [n].
        positive: 1 or 0, [n].
        weights: how often each case counts, [n].

    >>> auroc(np.array([0.9, 0.4, 0.4]), np.array([1, 1, 0]))
    0.75
    """
    if weights is None:
        weights = np.ones(len(score))
    # Count cases at each distinct score, in ascending order, so that ties are one entry.
    values, index = np.unique(score, return_inverse=True)
    num_values = len(values)
    positives = np.bincount(index, weights * positive, minlength=num_values)
    negatives = np.bincount(index, weights * (1 - positive), minlength=num_values)
    # nan instead of 0.5: a missing figure must not look like chance.
    if positives.sum() == 0 or negatives.sum() == 0:
        return float("nan")
    # A positive case beats all negatives of lower scores, and half of those that tie with it.
    below = np.cumsum(negatives) - negatives
    pairs_won = (positives * (below + 0.5 * negatives)).sum()
    return float(pairs_won / (positives.sum() * negatives.sum()))


class GroupedAUROC(PatientBootstrapMetric):
    """AUROC of each group and their mean, `<prefix>/<group>` and `<prefix>_macro`.

    A group without cases of both classes has no figure and is not part of the mean.

    Args:
        groups: names of the groups.
        prefix: of the figures.
    """

    protocol = "ranks, ties half; mean over groups with both classes"

    def __init__(self, groups: Sequence[str], prefix: str = "auroc"):
        # Group number, truth, score.
        super().__init__(3)
        self.groups, self.prefix = tuple(groups), prefix

    def update(
        self, scores: Tensor, truths: Tensor, groups: Sequence[int], patients: Sequence[str]
    ) -> None:
        """Add cases.

        Args:
            scores: [n].
            truths: 1 or 0, [n]; a case with nan does not count.
            groups: number of the group of each case.
            patients: the patient of each case.
        """
        # Unknown truths are dropped here, so that `compute` and its bootstrap see cases only.
        rows, known_patients = [], []
        cases = zip(groups, truths.tolist(), scores.tolist(), patients)
        for group, truth, score, patient in cases:
            if not np.isnan(truth):
                rows.append([group, truth, score])
                known_patients.append(patient)
        self.add_rows(rows, known_patients)

    def update_columns(self, scores_BF: Tensor, truths_BF: Tensor, patients: Sequence[str]) -> None:
        """Add one score and truth per case and group, [B,F]."""
        for group in range(len(self.groups)):
            scores_B, truths_B = scores_BF[:, group], truths_BF[:, group]
            self.update(scores_B, truths_B, [group] * len(patients), patients)

    def compute(self) -> dict[str, Estimate]:
        """All figures."""
        rows, patients = self.table()
        figures: dict[str, Estimate] = {}
        for name, chosen in self._chosen(rows).items():
            area = _area_of(rows[chosen])
            figure = _with_interval(area, rows[chosen], patients[chosen])
            if figure is not None:
                figures[f"{self.prefix}/{name}"] = figure
        if figures:
            figures |= bootstrap_all(self.statistics(rows), patients)
        return figures

    def _chosen(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """The rows of each group that has any, bool [n]."""
        chosen = {name: rows[:, 0] == number for number, name in enumerate(self.groups)}
        return {name: of_group for name, of_group in chosen.items() if of_group.any()}

    def statistics(self, rows: np.ndarray) -> Statistics:
        """The mean as a function of the weights of the cases."""
        # Sub-tables keep their order, which the bootstrap's sums depend on.
        groups = [(chosen, _area_of(rows[chosen])) for chosen in self._chosen(rows).values()]

        def macro(weights: np.ndarray) -> dict[str, float]:
            """Mean AUROC over the groups that have one."""
            # Weights are of all rows; each area takes those of its group.
            areas = [area(weights[chosen]) for chosen, area in groups]
            # In a resample a group may lack a class.
            defined = [area for area in areas if not np.isnan(area)]
            return {f"{self.prefix}_macro": float(np.mean(defined)) if defined else float("nan")}

        return macro


def _area_of(rows: np.ndarray) -> Callable[[np.ndarray], float]:
    """AUROC of rows (group, truth, score) as a function of their weights."""
    truths, scores = rows[:, 1], rows[:, 2]
    return lambda weights: auroc(scores, truths, weights)


def _with_interval(
    area: Callable[[np.ndarray], float], rows: np.ndarray, patients: np.ndarray
) -> Estimate | None:
    """AUROC of rows (group, truth, score) with its interval; None without both classes."""
    is_positive = rows[:, 1] == 1
    value = area(np.ones(len(rows)))
    if np.isnan(value):
        return None
    counts = num_patients(patients, is_positive), num_patients(patients, ~is_positive)
    if min(counts) < FEW_PATIENTS:
        interval = auroc_interval(value, *counts)
    else:
        interval = bootstrap(area, patients)
    return Estimate(value, *interval, len(rows), int(is_positive.sum()))


class GroupedMean(PatientBootstrapMetric):
    """Mean of a score over all cases and by group, `<name>` and `<name>/<group>`.

    The mean of scores of 0 and 1 is the share of right answers.

    Args:
        name: of the figure.
        groups: names of the groups.
        protocol: how the score is computed.
    """

    def __init__(self, name: str, groups: Sequence[str] = (), protocol: str = ""):
        # Group number, score.
        super().__init__(2)
        self.name, self.protocol = name, protocol
        self.groups = tuple(groups)

    def update(
        self, scores: Sequence[float], groups: Sequence[int], patients: Sequence[str]
    ) -> None:
        """Add cases with the numbers of their groups."""
        rows = [[group, float(score)] for group, score in zip(groups, scores)]
        self.add_rows(rows, patients)

    def statistics(self, rows: np.ndarray) -> Statistics:
        """The mean over all cases as a function of their weights."""
        return lambda weights: {self.name: float(weights @ rows[:, 1] / weights.sum())}

    def compute(self) -> dict[str, Estimate]:
        """All figures."""
        rows, patients = self.table()
        # All cases first, so the overall figure comes first.
        selections = {self.name: np.ones(len(rows), bool)}
        for number, group in enumerate(self.groups):
            selections[f"{self.name}/{group}"] = rows[:, 0] == number
        figures = {}
        for name, chosen in selections.items():
            if not chosen.any():
                continue
            figure = weighted_mean_ci(rows[chosen, 1], patients[chosen])
            if figure is not None:
                figures[name] = figure
        return figures


def _answer_words(answer: str) -> list[str]:
    """Words without case, punctuation and articles, as SQuAD compares them (arXiv 1606.05250)."""
    # Articles and punctuation are style: "The left lung." answers "left lung".
    bare = "".join(letter for letter in answer.lower() if letter not in string.punctuation)
    return [word for word in bare.split() if word not in ("a", "an", "the")]


def exact_match(prediction: str, answer: str) -> float:
    """1 if prediction and answer have the same words in the same order, else 0.

    >>> exact_match("The left lung.", "left lung"), exact_match("lung", "left lung")
    (1.0, 0.0)
    """
    return float(_answer_words(prediction) == _answer_words(answer))


def word_f1(prediction: str, answer: str) -> float:
    """F1 of the words of a free-text answer, 0 to 1, whatever their order.

    A word counts as often as it occurs in both.

    >>> word_f1("in the left lung", "left lung")
    0.8
    """
    # If one side has no words after dropping articles, only an equally empty one is right.
    ours, theirs = _answer_words(prediction), _answer_words(answer)
    if not ours or not theirs:
        return float(ours == theirs)
    shared = (Counter(ours) & Counter(theirs)).total()
    return 2 * shared / (len(ours) + len(theirs))
