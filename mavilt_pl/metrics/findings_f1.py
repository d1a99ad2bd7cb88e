"""F1 of the findings that generated reports assert, against the labels of the corpus.

Letters in shapes: n reports, F findings.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mavilt_pl.errors import MaviltWarning
from mavilt_pl.metrics.bootstrap import (
    Estimate,
    PatientBootstrapMetric,
    Statistics,
    bootstrap_all,
)
from mavilt_pl.metrics.intervals import f1_interval, num_patients
from mavilt_pl.metrics.labellers import RULES, Labeller

# The five findings of the CheXpert competition (arXiv 1901.07031), which papers average apart.
FIVE = ("atelectasis", "cardiomegaly", "consolidation", "edema", "pleural effusion")
COLUMNS = 5  # numbers of each finding in a row, see `update`
UNCERTAIN = ("present", "uncertain")


@dataclass(frozen=True)
class _Counts:
    """What is labelled and what is asserted, 0 or 1, each [n,F].

    Args:
        known: the study has labels at all.
        positive: the label is positive.
        claimed: the report asserts the finding.
    """

    known: np.ndarray
    positive: np.ndarray
    claimed: np.ndarray

    def sums(self, weights_n: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Positive labels, claims, and claims that are right, each [F]."""
        right_nF = self.positive * self.claimed
        return weights_n @ self.positive, weights_n @ self.claimed, weights_n @ right_nF

    def f1(self, weights_n: np.ndarray) -> np.ndarray:
        """F1 of each finding, [F]; nan without a positive label."""
        return _f1(*self.sums(weights_n))

    def averages(self, weights_n: np.ndarray, ending: str = "") -> dict[str, float]:
        """Macro and micro F1, under names with this ending."""
        return _averages(*self.sums(weights_n), ending)

    def chance(self, weights_n: np.ndarray) -> dict[str, float]:
        """Macro and micro F1 if the same were claimed of other patients."""
        positive_F, claimed_F, _ = self.sums(weights_n)
        # The expectation of right claims under independence: positives times the share of claims.
        right_F = positive_F * claimed_F / np.maximum(weights_n @ self.known, 1e-12)
        return _averages(positive_F, claimed_F, right_F, "_chance")

    def select(self, columns: Sequence[int]) -> _Counts:
        """The same for some of the findings."""
        # A list, since a tuple would index axes.
        chosen = list(columns)
        return _Counts(self.known[:, chosen], self.positive[:, chosen], self.claimed[:, chosen])


def _f1(positive: np.ndarray, claimed: np.ndarray, right: np.ndarray) -> np.ndarray:
    """2 right / (positive + claimed); nan without a positive label."""
    # A finding that nobody has would score 0 for any report and pull a mean down.
    return np.where(positive > 0, 2 * right / np.maximum(positive + claimed, 1e-12), np.nan)


class FindingsF1(PatientBootstrapMetric):
    """F1 of the findings that reports assert, against known labels, as the field counts.

    A finding that the labels of a study leave blank is negative. An uncertain label or claim is
    negative too, and positive in the figures that end in `_uncertain`. A study without any label is
    left out. A finding without a positive label has no figure, and one that the labeller has no
    words for is left out with a warning.

    Figures: `findings_f1/<finding>`; `findings_f1_macro`, their mean; `findings_f1_micro` over all
    counts; both with `_uncertain`; both with `_5`, over the five findings of the CheXpert
    competition; both with `_chance`: what the same claims would score about other patients.

    Args:
        findings: the findings that are scored.
        labeller: reads what reports assert.
        against: what the labels are, for the protocol.
    """

    def __init__(
        self,
        findings: Sequence[str],
        labeller: Labeller = RULES,
        against: str = "the labels of the corpus",
    ):
        self.protocol = (
            f"{labeller.name} against {against}; blank is negative; uncertain is negative, in "
            "…_uncertain positive, in labels and claims alike"
        )
        self.read = labeller.read
        unknown = [name for name in findings if name not in labeller.findings]
        if unknown:
            warnings.warn(
                f"the labeller of reports has no words for {', '.join(unknown)}: left out of "
                "findings F1",
                MaviltWarning,
                stacklevel=2,
            )
        self.findings = tuple(name for name in findings if name in labeller.findings)
        super().__init__(COLUMNS * len(self.findings))

    def update(
        self,
        predictions: Sequence[str],
        labels: Sequence[Mapping[str, str]],
        patients: Sequence[str],
    ) -> None:
        """Add reports with the known labels of their studies."""
        # Once a text: a constant report is as many studies as there are.
        different = sorted(set(predictions))
        asserted_by_text = dict(zip(different, self.read(different)))
        rows = []
        for text, known in zip(predictions, labels):
            asserted = asserted_by_text[text]
            row: list[float] = []
            for finding in self.findings:
                # None where the labels are blank, or the report does not mention the finding.
                label, claim = known.get(finding), asserted.get(finding)
                # Without any label of the study nothing is known of it.
                row += [
                    bool(known),
                    label == "present",
                    bool(known) and claim == "present",
                    label in UNCERTAIN,
                    bool(known) and claim in UNCERTAIN,
                ]
            rows.append(row)
        self.add_rows(rows, patients)

    def compute(self) -> dict[str, Estimate]:
        """All figures."""
        rows, patients = self.table()
        if not len(rows) or not self.findings:
            return {}
        strict, _ = self._counts(rows)
        # Averages are of many positive studies, so the bootstrap keeps its promise.
        averages = bootstrap_all(self.statistics(rows), patients)
        return self._per_finding(strict, patients) | averages

    @staticmethod
    def _counts(rows: np.ndarray) -> tuple[_Counts, _Counts]:
        """Counts with uncertain as negative, and as positive."""
        numbers = rows.reshape(len(rows), -1, COLUMNS).transpose(2, 0, 1)
        known_nF, present_nF, claimed_nF, possible_nF, suspected_nF = numbers
        strict = _Counts(known_nF, present_nF, claimed_nF)
        return strict, _Counts(known_nF, possible_nF, suspected_nF)

    def statistics(self, rows: np.ndarray) -> Statistics:
        """The averages as a function of the weights of the reports."""
        strict, lenient = self._counts(rows)
        five = None
        # A mean over four of the five would have the name of another figure.
        if set(FIVE) <= set(self.findings):
            five = strict.select([self.findings.index(name) for name in FIVE])

        def scores(weights_n: np.ndarray) -> dict[str, float]:
            """The averages over reports of these weights; no text is labelled again."""
            found = strict.averages(weights_n)
            found |= strict.chance(weights_n)
            found |= lenient.averages(weights_n, "_uncertain")
            if five is not None:
                found |= five.averages(weights_n, "_5")
            return found

        return scores

    def _per_finding(self, counts: _Counts, patients: np.ndarray) -> dict[str, Estimate]:
        """F1 of each finding that has a positive label."""
        figures = {}
        for column, name in enumerate(self.findings):
            one = counts.select([column])
            (score,) = one.f1(np.ones(len(patients)))
            if np.isfinite(score):
                # A study that is neither labelled nor claimed says nothing about an F1.
                concerned = ((one.positive + one.claimed) > 0)[:, 0]
                interval = f1_interval(float(score), num_patients(patients, concerned))
                num_known, num_positive = int(one.known.sum()), int(one.positive.sum())
                figure = Estimate(float(score), *interval, num_known, num_positive)
                figures[f"findings_f1/{name}"] = figure
        return figures


def _averages(
    positive_F: np.ndarray, claimed_F: np.ndarray, right_F: np.ndarray, ending: str
) -> dict[str, float]:
    """Mean F1 over the findings that have positive labels, and F1 over the counts of all."""
    scores_F = _f1(positive_F, claimed_F, right_F)
    # A finding without a positive label has no part in the mean.
    macro = np.nanmean(scores_F) if np.isfinite(scores_F).any() else np.nan
    micro = _f1(positive_F.sum(), claimed_F.sum(), right_F.sum())
    return {f"findings_f1_macro{ending}": float(macro), f"findings_f1_micro{ending}": float(micro)}
