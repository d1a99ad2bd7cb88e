"""Findings that a report asserts: a rule-based labeller, and the F1 of generated reports.

The labeller `findings-v1` reads sentence by sentence. A term is absent if a negation precedes it in
the same clause or directly follows it, uncertain if an expression of doubt precedes it, and
otherwise present. One assertion of presence outweighs denials elsewhere in the report.

Own code: CheXpert's labeller needs NegBio's parsers, CheXbert a model of several hundred
megabytes. The labeller here runs on any machine and is exact on the phantom's wording.

Letters in shapes: n reports, F findings.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from mavilt_pl.metrics.bootstrap import (
    Estimate,
    PatientBootstrapMetric,
    bootstrap_ci,
    drop_undefined,
)

VERSION = "findings-v1"

# Finding → how reports write it. Written for reports of MIMIC-CXR and Indiana and for the phantom's
# wording. A change of any pattern changes figures, so it needs a new VERSION.
TERMS: dict[str, str] = {
    "cardiomegaly": (
        r"cardiomegaly|enlarge(?:d|ment of the) (?:heart|cardiac|cardiomediastinal)|"
        r"(?:heart|cardiac silhouette|cardiac size|cardiomediastinal silhouette)(?: size)? "
        r"(?:is|are|remains|appears)?\s?(?:\w+ ){0,2}(?:enlarged|prominent)|enlarged heart"
    ),
    "pleural effusion": (
        r"(?:pleural )?effusions?|blunting of the (?:\w+ ){0,3}costophrenic|pleural fluid"
    ),
    "pneumothorax": r"pneumothora(?:x|ces)",
    "consolidation": r"consolidations?|consolidative",
    "edema": r"edema|vascular congestion|pulmonary congestion",
    "atelectasis": r"atelecta(?:sis|tic)|volume loss|collapse of",
    "lung lesion": r"nodul(?:e|es|ar)|mass(?:es)?\b|lesions?",
    "support devices": (
        r"pacemaker|pacer|defibrillator|icd\b|catheter|(?:central|picc|venous) line|picc|"
        r"endotracheal tube|et tube|nasogastric|ng tube|enteric tube|chest tube|port-a-cath|"
        r"\bport\b|support devices?|sternotomy wires"
    ),
    "hyperinflation": (
        r"hyperinflat(?:ed|ion)|hyperexpan(?:ded|sion)|hyperaerat(?:ed|ion)|emphysema|"
        r"flattened diaphragms?|flattening of the (?:hemi)?diaphragms?"
    ),
    "pneumonia": r"pneumonias?",
    "lung opacity": r"opacit(?:y|ies)|infiltrates?|airspace disease",
    "fracture": r"fractures?",
}
_TERM: dict[str, re.Pattern[str]] = {}
for _name, _pattern in TERMS.items():
    _TERM[_name] = re.compile(rf"\b(?:{_pattern})", re.IGNORECASE)
# "unremarkable" and "normal" deny what follows them in the clause: "normal heart without …".
_NEGATION_BEFORE = re.compile(
    r"\b(?:no|not|without|absen(?:ce|t)|negative for|free of|clear of|resolved|resolution of|"
    r"denies|never|nor|neither|rather than|unremarkable|normal)\b",
    re.IGNORECASE,
)
# Up to three words between: "effusion has now completely resolved".
_NEGATION_AFTER = re.compile(
    r"^\W*(?:\w+\W+){0,3}?(?:is|are|was|were)?\s*"
    r"(?:not|absent|unlikely|ruled out|excluded|resolved)\b",
    re.IGNORECASE,
)
_DOUBT = re.compile(
    r"\b(?:possibl[ey]|probabl[ey]|may|might|could|cannot (?:be )?exclude|suspect\w*|"
    r"questionable|equivocal|suggest\w*|versus|vs|or)\b",
    re.IGNORECASE,
)
# Lines end sentences too: reports are often lists without full stops.
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")
_CLAUSE_END = re.compile(
    r"\b(?:but|however|although|with the exception of|aside from|other than)\b|;", re.IGNORECASE
)
# A label replaces labels of the same or lower strength.
# Equal strength is replaced too, which changes nothing: labels of a strength are equal.
_STRENGTH = {"absent": 0, "uncertain": 1, "present": 2}


def _label(before: str, after: str) -> str:
    """Label of a term from the text before and after it in its clause."""
    # Negation before doubt: "no evidence to suggest an effusion" denies it.
    if _NEGATION_BEFORE.search(before) or _NEGATION_AFTER.search(after):
        return "absent"
    # Doubt reaches no further than the comma before the term.
    if _DOUBT.search(before.split(",")[-1]):
        return "uncertain"
    return "present"


def findings_in(text: str) -> dict[str, str]:
    """Findings of a report: name → present | absent | uncertain.

    A finding that is not mentioned has no entry.

    >>> findings_in("The heart is enlarged. No pleural effusion or pneumothorax.")
    {'cardiomegaly': 'present', 'pleural effusion': 'absent', 'pneumothorax': 'absent'}
    """
    found: dict[str, str] = {}
    for sentence in _SENTENCE_END.split(text):
        # A negation does not reach past "but": "no effusion, but a nodule" asserts the nodule.
        for clause in _CLAUSE_END.split(sentence):
            for name, label in _mentions(clause):
                if name not in found or _STRENGTH[label] >= _STRENGTH[found[name]]:
                    found[name] = label
    return dict(sorted(found.items()))


def _mentions(clause: str) -> Iterator[tuple[str, str]]:
    """Each finding that a clause mentions, with its label there."""
    for name, term in _TERM.items():
        for match in term.finditer(clause):
            before = clause[: match.start()]
            after = clause[match.end() :]
            yield name, _label(before, after)


def _ratio(numerator: np.ndarray, denominator: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """The ratio; nan for findings without a positive case."""
    # F1 of a finding without a positive case would be 0 for any report and pull the mean down.
    return np.where(positive > 0, numerator / np.maximum(denominator, 1e-12), np.nan)


class FindingsF1(PatientBootstrapMetric):
    """F1 of the findings that reports assert, against known labels.

    Figures: `findings_f1/<finding>`, their mean `findings_f1_macro`, `findings_f1_micro` over all
    findings, and `findings_f1_macro_chance`: what the same assertions would score about other
    patients.

    An uncertain or unknown label does not count for its finding. A finding without a positive label
    has no figure.

    Args:
        findings: the findings that are scored.
    """

    protocol = f"{VERSION}; present against not present; labels of the corpus"

    def __init__(self, findings: Sequence[str]):
        # Per finding: label known, known to be present, asserted and known.
        super().__init__(3 * len(findings))
        self.findings = tuple(findings)

    def update(
        self,
        predictions: Sequence[str],
        labels: Sequence[Mapping[str, str]],
        patients: Sequence[str],
    ) -> None:
        """Add reports with the known labels of their studies."""
        rows = []
        for text, known in zip(predictions, labels):
            asserted = findings_in(text)
            row: list[float] = []
            for finding in self.findings:
                label = known.get(finding)
                # An uncertain or missing label can prove an assertion neither right nor wrong.
                counts = label in ("present", "absent")
                claimed = counts and asserted.get(finding) == "present"
                row += [counts, label == "present", claimed]
            rows.append(row)
        self.add_rows(rows, patients)

    def compute(self) -> dict[str, Estimate]:
        """All figures."""
        rows, patients = self.table()
        if not len(rows):
            return {}
        # Rows hold three 0/1 numbers for each finding, see `update`.
        columns_nF3 = rows.reshape(len(rows), -1, 3)
        known_nF, present_nF, claimed_nF = columns_nF3.transpose(2, 0, 1)
        right_nF = present_nF * claimed_nF

        # Each score is a function of the reports' weights: the bootstrap repeats patients by
        # weights and never labels a text again.

        def f1_per_finding(weights_n: np.ndarray) -> np.ndarray:
            """2 right / (present + claimed)."""
            present_F = weights_n @ present_nF
            denominator_F = present_F + weights_n @ claimed_nF
            return _ratio(2 * (weights_n @ right_nF), denominator_F, present_F)

        def chance_per_finding(weights_n: np.ndarray) -> np.ndarray:
            """2pq / (p + q) with the prevalence p and the rate q of assertions."""
            present_F, claimed_F = weights_n @ present_nF, weights_n @ claimed_nF
            denominator_F = (present_F + claimed_F) * (weights_n @ known_nF)
            return _ratio(2 * present_F * claimed_F, denominator_F, present_F)

        def micro(weights_n: np.ndarray) -> float:
            """F1 over the counts of all findings."""
            present = (weights_n @ present_nF).sum()
            claimed = (weights_n @ claimed_nF).sum()
            right = (weights_n @ right_nF).sum()
            return float(_ratio(2 * right, present + claimed, present))

        figures: dict[str, Estimate | None] = {}
        for column, name in enumerate(self.findings):
            f1 = _column(f1_per_finding, column)
            figures[f"findings_f1/{name}"] = bootstrap_ci(f1, patients)
        # Without any defined finding the means would be nan.
        if drop_undefined(figures):
            figures["findings_f1_macro"] = bootstrap_ci(_mean(f1_per_finding), patients)
            figures["findings_f1_macro_chance"] = bootstrap_ci(_mean(chance_per_finding), patients)
            figures["findings_f1_micro"] = bootstrap_ci(micro, patients)
        return drop_undefined(figures)


PerFinding = Callable[[np.ndarray], np.ndarray]  # weights [n] → a score of each finding [F]


def _column(scores: PerFinding, column: int) -> Callable[[np.ndarray], float]:
    return lambda weights: float(scores(weights)[column])


def _mean(scores: PerFinding) -> Callable[[np.ndarray], float]:
    """Mean over the findings that have a score."""
    return lambda weights: float(np.nanmean(scores(weights)))
