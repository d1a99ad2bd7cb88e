"""Which findings a report asserts: a rule-based labeller, and the F1 of what generated reports
assert.

`findings-v1` reads sentence by sentence. A term counts as absent where a negation stands before it
in the same clause or right after it, as uncertain where a cue of doubt does, and otherwise as
present; one assertion of presence in the report outweighs denials elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from mavilt_pl.metrics.bootstrap import Estimate, PatientBootstrapMetric, estimate

VERSION = "findings-v1"

TERMS: dict[str, str] = {
    "cardiomegaly": r"cardiomegaly|enlarge(?:d|ment of the) (?:heart|cardiac|cardiomediastinal)|"
    r"(?:heart|cardiac silhouette|cardiac size|cardiomediastinal silhouette)(?: size)? (?:is|are|remains|appears)?\s?"
    r"(?:\w+ ){0,2}(?:enlarged|prominent)|enlarged heart",
    "pleural effusion": r"(?:pleural )?effusions?|blunting of the (?:\w+ ){0,3}costophrenic|pleural fluid",
    "pneumothorax": r"pneumothora(?:x|ces)",
    "consolidation": r"consolidations?|consolidative",
    "edema": r"edema|vascular congestion|pulmonary congestion",
    "atelectasis": r"atelecta(?:sis|tic)|volume loss|collapse of",
    "lung lesion": r"nodul(?:e|es|ar)|mass(?:es)?\b|lesions?",
    "support devices": r"pacemaker|pacer|defibrillator|icd\b|catheter|(?:central|picc|venous) line|picc|endotracheal tube|"
    r"et tube|nasogastric|ng tube|enteric tube|chest tube|port-a-cath|\bport\b|support devices?|sternotomy wires",
    "hyperinflation": r"hyperinflat(?:ed|ion)|hyperexpan(?:ded|sion)|hyperaerat(?:ed|ion)|emphysema|flattened diaphragms?|"
    r"flattening of the (?:hemi)?diaphragms?",
    "pneumonia": r"pneumonias?",
    "lung opacity": r"opacit(?:y|ies)|infiltrates?|airspace disease",
    "fracture": r"fractures?",
}
_TERM = {name: re.compile(rf"\b(?:{pattern})", re.IGNORECASE) for name, pattern in TERMS.items()}
_NEGATION = re.compile(
    r"\b(?:no|not|without|absen(?:ce|t)|negative for|free of|clear of|resolved|resolution of|denies|never|nor|neither|"
    r"rather than|unremarkable|normal)\b",
    re.IGNORECASE,
)
_AFTER = re.compile(
    r"^\W*(?:\w+\W+){0,3}?(?:is|are|was|were)?\s*(?:not|absent|unlikely|ruled out|excluded|resolved)\b",
    re.IGNORECASE,
)
_DOUBT = re.compile(
    r"\b(?:possibl[ey]|probabl[ey]|may|might|could|cannot (?:be )?exclude|suspect\w*|questionable|equivocal|"
    r"suggest\w*|versus|vs|or)\b",
    re.IGNORECASE,
)
_CLAUSE = re.compile(
    r"\b(?:but|however|although|with the exception of|aside from|other than)\b|;", re.IGNORECASE
)


def findings_in(text: str) -> dict[str, str]:
    """Findings of a report: name → present | absent | uncertain; what is not mentioned has no
    entry.

    >>> findings_in("The heart is enlarged. No pleural effusion or pneumothorax.")
    {'cardiomegaly': 'present', 'pleural effusion': 'absent', 'pneumothorax': 'absent'}
    """
    strength = {"absent": 0, "uncertain": 1, "present": 2}
    found: dict[str, str] = {}
    for sentence in re.split(r"(?<=[.!?])\s+|\n+", text):
        for clause in _CLAUSE.split(sentence):
            for name, term in _TERM.items():
                for match in term.finditer(clause):
                    before, after = clause[: match.start()], clause[match.end() :]
                    if _NEGATION.search(before) or _AFTER.search(after):
                        label = "absent"
                    elif _DOUBT.search(before.split(",")[-1]):
                        label = "uncertain"
                    else:
                        label = "present"
                    if strength[label] >= strength.get(found.get(name, ""), -1):
                        found[name] = label
    return dict(sorted(found.items()))


class FindingsF1(PatientBootstrapMetric):
    """F1 of what reports assert against known labels: `findings_f1/<finding>`, their mean
    `findings_f1_macro`, `findings_f1_micro` over all, and `findings_f1_macro_chance`, which the
    same claims would score about other patients.

    A label that is uncertain or unknown does not count for its finding; a finding without a
    positive label has no figure.
    """

    protocol = f"{VERSION}; present against not present; labels of the corpus"

    def __init__(self, findings: Sequence[str]):
        super().__init__(
            3 * len(findings)
        )  # of each finding: known, known to be present, claimed where known
        self.findings = tuple(findings)

    def update(
        self,
        predictions: Sequence[str],
        labels: Sequence[Mapping[str, str]],
        patients: Sequence[str],
    ) -> None:
        rows = []
        for text, known in zip(predictions, labels):
            said = findings_in(text)
            row: list[float] = []
            for finding in self.findings:
                truth = known.get(finding)
                counts = truth in ("present", "absent")
                row += [counts, truth == "present", counts and said.get(finding) == "present"]
            rows.append(row)
        self.add_rows(rows, patients)

    def compute(self) -> dict[str, Estimate]:
        rows, patients = self.table()
        if not len(rows):
            return {}
        known, present, claimed = rows.reshape(len(rows), -1, 3).transpose(2, 0, 1)
        right = present * claimed

        def ratio(above: np.ndarray, below: np.ndarray, positive: np.ndarray) -> np.ndarray:
            return np.where(positive > 0, above / np.maximum(below, 1e-12), np.nan)

        def each(weights: np.ndarray) -> np.ndarray:
            positive = weights @ present
            return ratio(2 * (weights @ right), positive + weights @ claimed, positive)

        def chance(weights: np.ndarray) -> np.ndarray:
            """2pq / (p + q) for prevalence p and rate of claims q."""
            positive, said = weights @ present, weights @ claimed
            return ratio(2 * positive * said, (positive + said) * (weights @ known), positive)

        def micro(weights: np.ndarray) -> float:
            positive = (weights @ present).sum()
            return float(
                ratio(2 * (weights @ right).sum(), positive + (weights @ claimed).sum(), positive)
            )

        def mean(of: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], float]:
            return lambda weights: float(np.nanmean(of(weights)))

        figures = {}
        for i, name in enumerate(self.findings):
            figures[f"findings_f1/{name}"] = estimate(lambda w, i=i: float(each(w)[i]), patients)  # type: ignore[misc]
        if any(value is not None for value in figures.values()):
            figures["findings_f1_macro"] = estimate(mean(each), patients)
            figures["findings_f1_macro_chance"] = estimate(mean(chance), patients)
            figures["findings_f1_micro"] = estimate(micro, patients)
        return {name: value for name, value in figures.items() if value is not None}
