"""Areas under the ROC curve and accuracy, by group (finding, topic) and over groups."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from mavilt_pl.metrics.estimate import Estimate, PatientRows, estimate


def auroc(score: np.ndarray, positive: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Area under the ROC curve: the probability that a positive case scores above a negative one, ties counting half.

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


class GroupedAUROC(PatientRows):
    """AUROC of each group and their mean (`<prefix>_macro`, `<prefix>/<group>`).

    Groups that lack one of the classes are left out of the mean. Update with scores, truths (1, 0; nan does not count)
    and group numbers, one a case."""

    protocol = "ranks, ties half; mean over groups with both classes"

    def __init__(self, groups: Sequence[str], prefix: str = "auroc"):
        super().__init__(3)
        self.groups, self.prefix = tuple(groups), prefix

    def update(self, scores: Tensor, truths: Tensor, groups: Sequence[int], patients: Sequence[str]) -> None:
        self.add_rows([[g, t, s] for g, t, s in zip(groups, truths.tolist(), scores.tolist()) if t == t],
                      [p for p, t in zip(patients, truths.tolist()) if t == t])  # fmt: skip

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
                found = estimate(lambda w, c=chosen: auroc(rows[c, 2], rows[c, 1], w), patients[chosen])  # type: ignore[misc]
                if found is not None:
                    figures[f"{self.prefix}/{name}"] = found
        present = [n for n, name in enumerate(self.groups) if f"{self.prefix}/{name}" in figures]
        if present:
            mean = estimate(
                lambda w: float(np.mean([a for n in present if (a := area(w, n)) == a] or [np.nan])), patients
            )
            if mean is not None:
                figures[f"{self.prefix}_macro"] = mean
        return figures


class Accuracy(PatientRows):
    """Share of cases that are right, over all and by group (`accuracy`, `accuracy/<group>`)."""

    protocol = "likeliest candidate, likelihood per token"

    def __init__(self, groups: Sequence[str]):
        super().__init__(2)
        self.groups = tuple(groups)

    def update(self, right: Sequence[bool], groups: Sequence[int], patients: Sequence[str]) -> None:
        self.add_rows([[g, float(r)] for g, r in zip(groups, right)], patients)

    def compute(self) -> dict[str, Estimate]:
        rows, patients = self.table()
        figures = {}
        for number, name in [(-1, ""), *enumerate(self.groups)]:
            chosen = np.ones(len(rows), bool) if number < 0 else rows[:, 0] == number
            if chosen.any():
                right = rows[chosen, 1]
                found = estimate(lambda w, r=right: float(w @ r / w.sum()), patients[chosen])  # type: ignore[misc]
                if found is not None:
                    figures["accuracy" if number < 0 else f"accuracy/{name}"] = found
        return figures
