"""Areas under the ROC curve and means of scores, by group (finding, topic) and over groups; answers
in free text.
"""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from mavilt_pl.metrics.bootstrap import Estimate, PatientBootstrapMetric, estimate


def auroc(score: np.ndarray, positive: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Area under the ROC curve: the probability that a positive case scores above a negative one,
    ties counting half.

    Weights count cases. nan where one of the classes is empty.
    """
    weights = np.ones(len(score)) if weights is None else weights
    values, index = np.unique(score, return_inverse=True)
    up = np.bincount(index, weights * positive, minlength=len(values))
    down = np.bincount(index, weights * (1 - positive), minlength=len(values))
    if up.sum() == 0 or down.sum() == 0:
        return float("nan")
    below = np.cumsum(down) - down
    return float((up * (below + 0.5 * down)).sum() / (up.sum() * down.sum()))


class GroupedAUROC(PatientBootstrapMetric):
    """AUROC of each group and their mean (`<prefix>_macro`, `<prefix>/<group>`).

    Groups that lack one of the classes are left out of the mean. Update with scores, truths (1, 0;
    nan does not count) and group numbers, one a case.
    """

    protocol = "ranks, ties half; mean over groups with both classes"

    def __init__(self, groups: Sequence[str], prefix: str = "auroc"):
        super().__init__(3)
        self.groups, self.prefix = tuple(groups), prefix

    def update(
        self, scores: Tensor, truths: Tensor, groups: Sequence[int], patients: Sequence[str]
    ) -> None:
        self.add_rows(
            [[g, t, s] for g, t, s in zip(groups, truths.tolist(), scores.tolist()) if t == t],
            [p for p, t in zip(patients, truths.tolist()) if t == t],
        )

    def update_columns(self, scores_BF: Tensor, truths_BF: Tensor, patients: Sequence[str]) -> None:
        """One score and truth a case and group, [B,F]."""
        for group in range(len(self.groups)):
            self.update(scores_BF[:, group], truths_BF[:, group], [group] * len(patients), patients)

    def compute(self) -> dict[str, Estimate]:
        rows, patients = self.table()
        figures: dict[str, Estimate] = {}

        def area(weights: np.ndarray, number: int) -> float:
            chosen = rows[:, 0] == number
            return auroc(rows[chosen, 2], rows[chosen, 1], weights[chosen])

        for number, name in enumerate(self.groups):
            chosen = rows[:, 0] == number
            if chosen.any():
                found = estimate(
                    lambda w, c=chosen: auroc(rows[c, 2], rows[c, 1], w), patients[chosen]
                )  # type: ignore[misc]
                if found is not None:
                    figures[f"{self.prefix}/{name}"] = found
        present = [n for n, name in enumerate(self.groups) if f"{self.prefix}/{name}" in figures]
        if present:
            mean = estimate(
                lambda w: float(
                    np.mean([a for n in present if (a := area(w, n)) == a] or [np.nan])
                ),
                patients,
            )
            if mean is not None:
                figures[f"{self.prefix}_macro"] = mean
        return figures


class GroupedMean(PatientBootstrapMetric):
    """The mean of a score over all cases and by group (`<name>`, `<name>/<group>`); of 0 and 1, the
    share that is right.
    """

    def __init__(self, name: str, groups: Sequence[str] = (), protocol: str = ""):
        super().__init__(2)
        self.name, self.groups, self.protocol = name, tuple(groups), protocol

    def update(
        self, scores: Sequence[float], groups: Sequence[int], patients: Sequence[str]
    ) -> None:
        self.add_rows([[group, float(score)] for group, score in zip(groups, scores)], patients)

    def compute(self) -> dict[str, Estimate]:
        rows, patients = self.table()
        figures = {}
        for number, name in [
            (-1, self.name),
            *enumerate(f"{self.name}/{group}" for group in self.groups),
        ]:
            chosen = np.ones(len(rows), bool) if number < 0 else rows[:, 0] == number
            if chosen.any():
                scores = rows[chosen, 1]
                found = estimate(lambda w, s=scores: float(w @ s / w.sum()), patients[chosen])  # type: ignore[misc]
                if found is not None:
                    figures[name] = found
        return figures


def _answer_words(answer: str) -> list[str]:
    """As SQuAD compares answers: lower case, without punctuation and articles (Rajpurkar et al.,
    arXiv 1606.05250).
    """
    bare = "".join(letter for letter in answer.lower() if letter not in string.punctuation)
    return [word for word in bare.split() if word not in ("a", "an", "the")]


def exact_match(said: str, answer: str) -> float:
    """1 where the words are the same in the same order, else 0."""
    return float(_answer_words(said) == _answer_words(answer))


def word_f1(said: str, answer: str) -> float:
    """F1 of the words of an answer in free text, 0 to 1, each counted as often as it is there;
    their order does not count.
    """
    ours, theirs = _answer_words(said), _answer_words(answer)
    if not ours or not theirs:
        return float(ours == theirs)
    return 2 * (Counter(ours) & Counter(theirs)).total() / (len(ours) + len(theirs))
