"""Findings that a report asserts, by a rule-based labeller.

The labeller reads sentence by sentence, and within a sentence clause by clause. A cue before or
behind a term in its clause says that it is absent, uncertain or not asserted at all (the patient's
history, a question); otherwise it is present. One assertion of presence outweighs denials elsewhere
in the report. `finding_phrases.py` and `finding_cues.py` have the words.

Own code: CheXpert's labeller needs NegBio's parsers, CheXbert a model of several hundred
megabytes. The labeller here runs on any machine and is exact on the phantom's wording.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from itertools import pairwise

from mavilt_pl.data.report_headings import find_headings
from mavilt_pl.metrics.finding_cues import BOUNDARY, CUE_AFTER, CUE_BEFORE, UNFINISHED
from mavilt_pl.metrics.finding_phrases import LOOK_ALIKES, SIGN, TERM

# A label replaces labels of the same or lower strength.
# Equal strength is replaced too, which changes nothing: labels of a strength are equal.
_STRENGTH = {"sign": 0, "absent": 1, "uncertain": 2, "present": 3}
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


def mentions_in(text: str) -> Iterator[tuple[str, str, str]]:
    """Every mention of a finding in a report: its clause, the finding, and its label there.

    The label of a mere sign is "sign".

    >>> [*mentions_in("Small left effusion. No edema.")]
    [('Small left effusion.', 'pleural effusion', 'present'), ('No edema.', 'edema', 'absent')]
    """
    for sentence in _sentences(text):
        yield from _mentions(sentence)


def _mentions(sentence: str) -> Iterator[tuple[str, str, str]]:
    """Clause, finding and label of each mention in a sentence."""
    turns = [match.span() for match in BOUNDARY.finditer(sentence)]
    look_alikes = [match.span() for match in LOOK_ALIKES.finditer(sentence)]
    for patterns, is_sign in ((TERM, False), (SIGN, True)):
        for name, pattern in patterns.items():
            for match in pattern.finditer(sentence):
                start, end = match.span()
                if any(first <= start and end <= last for first, last in look_alikes):
                    continue
                # The clause: from the last turn before the term to the first one behind it.
                begin = max((last for _, last in turns if last <= start), default=0)
                stop = min((first for first, _ in turns if first >= end), default=len(sentence))
                label = _label(sentence[begin:end], sentence[end:stop])
                if is_sign:
                    # A sign that is denied says nothing of the finding.
                    label = None if label == "absent" else label and "sign"
                if label is not None:
                    yield sentence[begin:stop], name, label


def findings_in(text: str) -> dict[str, str]:
    """Findings of a report: name → present | absent | uncertain.

    A finding that is not mentioned has no entry, nor has one that is only part of the patient's
    history or of the question to the radiologist.

    >>> findings_in("The heart is enlarged. No pleural effusion or pneumothorax.")
    {'cardiomegaly': 'present', 'pleural effusion': 'absent', 'pneumothorax': 'absent'}
    >>> findings_in("No pneumothorax, small left pleural effusion.")
    {'pleural effusion': 'present', 'pneumothorax': 'absent'}
    >>> findings_in("Blunting of the left costophrenic angle.")
    {'pleural effusion': 'uncertain'}
    >>> findings_in("History of pneumonia. Findings concerning for edema.")
    {'edema': 'uncertain'}
    """
    found: dict[str, str] = {}
    for _, name, label in mentions_in(text):
        if name not in found or _STRENGTH[label] >= _STRENGTH[found[name]]:
            found[name] = label
    # A sign with no word on the finding is doubt.
    return {name: "uncertain" if found[name] == "sign" else found[name] for name in sorted(found)}
