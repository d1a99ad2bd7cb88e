"""Findings that a report asserts: a rule-based labeller, and the F1 of generated reports.

The labeller reads sentence by sentence, and within a sentence clause by clause. A cue before or
behind a term in its clause says that it is absent, uncertain or not asserted at all (the patient's
history, a question); otherwise it is present. One assertion of presence outweighs denials elsewhere
in the report. `finding_phrases.py` has the words.

Own code: CheXpert's labeller needs NegBio's parsers, CheXbert a model of several hundred
megabytes. The labeller here runs on any machine and is exact on the phantom's wording.

Letters in shapes: n reports, F findings.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise

import numpy as np

from mavilt_pl.data.report_headings import find_headings
from mavilt_pl.metrics.bootstrap import (
    Estimate,
    PatientBootstrapMetric,
    bootstrap_ci,
    drop_undefined,
)
from mavilt_pl.metrics.finding_phrases import (
    BOUNDARY,
    CUE_AFTER,
    CUE_BEFORE,
    LOOK_ALIKES,
    TERM,
    UNFINISHED,
    VERSION,
)

# A label replaces labels of the same or lower strength.
# Equal strength is replaced too, which changes nothing: labels of a strength are equal.
_STRENGTH = {"absent": 0, "uncertain": 1, "present": 2}
# "?" ends a sentence only before a capital: "cough, ? pneumonia" is one sentence.
_SENTENCE_END = re.compile(r"(?<=[.!])\s+|(?<=[a-z)][.!])(?=[A-Z][a-z])|(?<=\?)\s+(?=[A-Z])|\n+")
_LONGEST_SENTENCE = 600  # characters
_LIST_ITEM = re.compile(r"(?:[-*•>]|\(?\d{1,2}[.)])\s")
_SENTENCE_START = re.compile(r"[A-Z](?:[a-z]|\s)")
# Sections that say why and how the image was taken, not what it shows.
_REQUEST = re.compile(
    r"""^\W*(?:\d+\W+)?(?:(?:clinical|patient)\s)?(?:indications?|history|information|data|statement
    |reason\sfor|technique|comparisons?|exam|procedure|(?:type\sof\s)?study)""",
    re.IGNORECASE | re.VERBOSE,
)


def _without_request(text: str) -> str:
    """The text without its indication, history, comparison and technique."""
    headings = find_headings(text)
    kept = []
    position = 0
    # The last heading is kept: without a next one nothing says where its section ends, and the
    # cues in its first sentence speak for themselves.
    for (start, _, _), (next_start, _, _) in pairwise(headings):
        if _REQUEST.match(text[start:next_start]):
            kept.append(text[position:start])
            position = next_start
    kept.append(text[position:])
    return "\n\n".join(kept)


def _join_wrapped_lines(text: str) -> str:
    """The text with its wrapped lines joined.

    A line is taken for wrapped unless a blank line, a bullet, a number or a capital separates it
    from the one before. A word such as "no" at the end of the line before outweighs all of them.
    """
    lines = [re.sub(r"\s+", " ", line).strip() for line in text.splitlines()]
    width = max(map(len, lines), default=0)
    joined = ""
    previous = ""
    for line in lines:
        unfinished = UNFINISHED.search(previous) is not None
        if line and (unfinished or _continues(line, previous, width)):
            joined += " " + line
        elif line:
            joined += "\n" + line
        # A blank line between two pages does not finish "there is no".
        if line or not unfinished:
            previous = line
    return joined


def _continues(line: str, previous: str, width: int) -> bool:
    """Whether a line continues the sentence of the previous one.

    Args:
        line: not empty.
        previous: the line before, "" if that was blank.
        width: characters of the longest line.
    """
    if not previous or _LIST_ITEM.match(line) or _SENTENCE_START.match(line):
        return False
    first_word = line.split()[0]
    # An abbreviation, or the whole report is in capitals. It begins a sentence if the line before
    # had room for it.
    if re.search("[A-Z]", first_word):
        return len(previous) + 1 + len(first_word) > width
    return True


def _sentences(text: str) -> Iterator[str]:
    """The sentences of a report, each with single spaces."""
    for sentence in _SENTENCE_END.split(_join_wrapped_lines(_without_request(text))):
        # Only a broken text has a longer one; in pieces its reading takes linear time.
        yield from textwrap.wrap(sentence, _LONGEST_SENTENCE, break_on_hyphens=False)


def _label(before: str, after: str) -> str | None:
    """Label of a term from its clause; None if the clause does not speak of the image.

    Args:
        before: the clause up to the end of the term: "the heart is not enlarged".
        after: the rest of the clause.
    """
    cues = {match.lastgroup for match in CUE_BEFORE.finditer(before)}
    # Negation before doubt: "no evidence to suggest an effusion" denies it.
    if "absent" in cues:
        return "absent"
    if "unasserted" in cues:
        return None
    behind = CUE_AFTER.match(after)
    cue_behind = behind.lastgroup if behind is not None else None
    if cue_behind == "absent":
        return "absent"
    if cue_behind == "unasserted":
        return None
    cues.add(cue_behind)
    # "Atelectasis or pneumonia" is doubt, "no change in atelectasis or effusion" names two.
    if "uncertain" in cues or ("alternative" in cues and "neutral" not in cues):
        return "uncertain"
    return "present"


def _mentions(sentence: str) -> Iterator[tuple[str, str]]:
    """Each finding that a sentence mentions, with its label there."""
    turns = [match.span() for match in BOUNDARY.finditer(sentence)]
    look_alikes = [match.span() for match in LOOK_ALIKES.finditer(sentence)]
    for name, term in TERM.items():
        for match in term.finditer(sentence):
            start, end = match.span()
            if any(first <= start and end <= last for first, last in look_alikes):
                continue
            # The clause: from the last turn before the term to the first one behind it.
            begin = max((last for _, last in turns if last <= start), default=0)
            stop = min((first for first, _ in turns if first >= end), default=len(sentence))
            label = _label(sentence[begin:end], sentence[end:stop])
            if label is not None:
                yield name, label


def findings_in(text: str) -> dict[str, str]:
    """Findings of a report: name → present | absent | uncertain.

    A finding that is not mentioned has no entry, nor has one that is only part of the patient's
    history or of the question to the radiologist.

    >>> findings_in("The heart is enlarged. No pleural effusion or pneumothorax.")
    {'cardiomegaly': 'present', 'pleural effusion': 'absent', 'pneumothorax': 'absent'}
    >>> findings_in("No pneumothorax, small left pleural effusion.")
    {'pleural effusion': 'present', 'pneumothorax': 'absent'}
    >>> findings_in("History of pneumonia. Findings concerning for edema.")
    {'edema': 'uncertain'}
    """
    found: dict[str, str] = {}
    for sentence in _sentences(text):
        for name, label in _mentions(sentence):
            if name not in found or _STRENGTH[label] >= _STRENGTH[found[name]]:
                found[name] = label
    return dict(sorted(found.items()))


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
