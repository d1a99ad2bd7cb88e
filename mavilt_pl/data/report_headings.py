"""Find the headings of sections in the free text of a report."""

from __future__ import annotations

import re
from dataclasses import dataclass

# Words of which a heading that names the views consists: "PA AND LATERAL CHEST RADIOGRAPHS:".
_CHEST_WORD = r"""
    (?:a|abdomen|an|and|ap|at|bedside|bilateral|chest|cxr|decubitus|erect|exam|film|four|frontal|in|lat
    |lateral|left|lordotic|oblique|of|one|pa|portable|radiographs?|ribs?|right|semi-?erect
    |semi-?upright|single|sternum|study|supine|the|three|two|upright|views?|with|x-?rays?|\d)
"""
# One of these is enough for a heading of views: "PORTABLE:", "TWO VIEWS:", "RIBS:".
_VIEW_WORD = r"""
    (?:abdomen|ap|bedside|chest|clavicles?|cxr|decubitus|frontal|lat|lateral|lordotic|oblique|pa
    |portable|radiographs?|ribs?|shoulders?|sternum|supine|upright|views?|x-?rays?)
"""
# Headings as they are spelled in MIMIC-CXR, by the section that they open. Those of `title` are
# headings without a colon too. Those of `chest` name the views or the report itself: their text
# counts as findings in a report without FINDINGS, otherwise they stand within a section.
_HEADINGS = {
    "findings": r"""
        (?:(?:additional|chest|cxr|other|pertinent|radiographic|x-?ray)\s)?
        findings?
        (?:\s*(?:and|/|&)\s*impressions?)?
        | impressions?\s*(?:and|/|&)\s*findings?
    """,
    "impression": r"""
        (?:(?:final|overall|radiographic)\s)?
        impressions?
        (?:\s*(?:and|/|&)\s*recommendations?)?
        | conclusions? | summary | opinion | interpretation | imp
    """,
    "chest": rf"""
        (?:{_CHEST_WORD}[\s,/&(]+){{0,9}}
        {_VIEW_WORD}
        (?:[\s,/&(]+{_CHEST_WORD}){{0,9}} \)?
        | report | description | observations?
    """,
    "title": r"""
        (?:final|preliminary|prelim)\sreport | wet\s?read | (?:final\s)?addend(?:um|a) | examination
        | indications? | history | technique | comparisons? | recommendations? | notifications?
    """,
    "other": r"""
        exams? | (?:type\sof\s)?(?:study|exam(?:ination)?) | procedure
        | clinical\s(?:history|information|indication|data|statement)
        | reason\sfor\s(?:the\s)?(?:exam(?:ination)?|study)
        | comparison\s(?:study|film|exam)s? | (?:exam|procedure)\sdate | pfi | views?
        | dictated\sby | attending | electronically\ssigned(?:\sby)? | communication
        | patient\shistory | comments? | signed(?:\sby)?
        | date(?:\sof\s(?:exam(?:ination)?|study|service))? | read\sby | discussed\swith
        | provisional\sfindings(?:\simpression)?
    """,
}
_NAME = "|".join(f"(?P<{kind}>{pattern})" for kind, pattern in reversed(_HEADINGS.items()))
# A name may open a section only at a line's start, with a capital, or after a sentence. So few
# words are tried.
_HEADING = re.compile(
    rf"""
    (?:
        (?P<start>
            ^[ \t>*#•-]*                                        # indentation, a bullet, markdown
            (?:\(?(?:\d{{1,2}}|[ivxIVX]{{1,4}})[.)][ \t]*)?     # "1." or "(iv)"
            [*_]*
        )
        | (?<![A-Za-z-])(?-i:(?=[A-Z]))                         # a word with a capital
        | (?<=[.:;!?_)]) | (?<=[.:;!?_)]\s) | (?<=[.:;!?_)]\s\s)  # after a sentence
    )
    (?P<name>{_NAME})
    (?:\(s\))?[*]*
    (?P<mark>
        [ \t]*:+[-*]*                                           # a colon or several
        | [ \t]*;
        | [ \t]*[-–—]{{1,2}}(?=\s)                              # a dash
        | [ \t]*$                                               # the line's end
        | (?=\s+(?:\d\.|(?-i:[A-Z][a-z])))                      # a sentence or "1." follows
    )
    """,
    re.IGNORECASE | re.MULTILINE | re.VERBOSE,
)
_POSSIBLY_MISSPELT = re.compile(r"^[ \t]*(?P<name>[A-Za-z]{6,16})[ \t]*:", re.MULTILINE)
_ALSO_MISSPELT = (
    *("comparison", "comparisons", "indication", "indications", "technique", "history"),
    *("recommendation", "recommendations", "addendum", "examination", "procedure", "notification"),
)
# After these words a heading's name continues their sentence: "these findings: …".
_UNFINISHED = re.compile(
    r"""\b(?:a|above|all|an|and|any|below|by|critical|each|following|for|from|her|his|important|in
    |incidental|its|main|major|my|new|no|of|on|or|our|significant|such|that|the|their|these|this
    |those|to|unexpected|with)$""",
    re.IGNORECASE | re.VERBOSE,
)
_SENTENCE_ENDS = ".:;!?_)"
_CONTEXT = 80  # characters before a name that are looked at


@dataclass(frozen=True)
class _Candidate:
    """A name that may be a heading, with what its surroundings say."""

    kind: str
    mark: str  # ":", ";", a dash or "": what follows the name
    at_line_start: bool
    in_capitals: bool
    capitalised: bool
    starts_sentence: bool  # nothing, the end of a sentence or a blank line is before it
    continues_sentence: bool  # it follows a word such as "these"
    alone_on_line: bool

    @classmethod
    def from_match(cls, match: re.Match[str], text: str) -> _Candidate:
        """Look around a match of `_HEADING` in a report."""
        name = match["name"]
        in_capitals = re.search("[A-Z]{3}", name) is not None
        context = text[max(0, match.start() - _CONTEXT) : match.start()]
        before = context.rstrip()
        blank_line = context[len(before) :].count("\n") > 1
        unfinished = _UNFINISHED.search(before)
        # "for FINDINGS:" is a heading after an unfinished sentence, "THESE FINDINGS:" is none.
        continues = unfinished is not None and (not in_capitals or unfinished[0].isupper())
        return cls(
            kind=next(kind for kind in _HEADINGS if match[kind]),
            mark=match["mark"].strip(),
            at_line_start=match["start"] is not None,
            in_capitals=in_capitals,
            capitalised=name[0].isupper(),
            starts_sentence=not before or before[-1] in _SENTENCE_ENDS or blank_line,
            continues_sentence=continues,
            alone_on_line=match.end() == len(text) or text[match.end()] == "\n",
        )

    def opens_section(self) -> bool:
        """Whether the name is a heading and not a word of a sentence.

        Reports are wrapped, so a name in lower case at the start of a line is often a word.

            FINDINGS: Clear.                   yes  colon, capitals
            … is clear. findings: Clear.       yes  colon, starts a sentence
            … seen by Findings: Clear.         no   colon, but continues a sentence
            … discussed these⏎Findings: Clear. no   the same, wrapped
            FINDINGS - Clear.                  yes  dash or semicolon, capitals
            Findings - Clear.                  no   dash without capitals
            Findings⏎Clear.                    yes  alone on its line, starts a sentence
            FINDINGS Clear lungs.              yes  no mark, capitals
            TECHNIQUE Portable.                no   no mark, and neither findings nor impression
            PA CHEST: in mid-line              no   views and reports open at a line's start only
        """
        if self.kind == "chest" and not self.at_line_start:
            return False
        if self.mark.startswith(":"):
            return self._opens_with_colon()
        if not self.at_line_start:
            return False
        if self.continues_sentence and not self.starts_sentence:
            return False
        if self.mark:
            return self.in_capitals
        if self.alone_on_line:
            known = self.kind in ("findings", "impression", "title")
            return known and (self.in_capitals or (self.capitalised and self.starts_sentence))
        return self.kind in ("findings", "impression") and self.in_capitals

    def _opens_with_colon(self) -> bool:
        if self.starts_sentence:
            return True
        if self.continues_sentence:
            return False
        return self.in_capitals or (self.capitalised and self.at_line_start)


def _is_one_slip(word: str, right: str) -> bool:
    """Whether one letter is missing, doubled, wrong, extra or swapped with its neighbour.

    >>> [_is_one_slip(word, "findings") for word in ("findigns", "finding", "findings", "fundinks")]
    [True, True, False, False]
    """
    if word == right or abs(len(word) - len(right)) > 1:
        return False
    same = 0
    while same < min(len(word), len(right)) and word[same] == right[same]:
        same += 1
    found, expected = word[same:], right[same:]
    wrong = found[1:] == expected[1:]
    extra = found[1:] == expected
    missing = found == expected[1:]
    swapped = found[:2] == expected[1::-1] and found[2:] == expected[2:]
    return wrong or extra or missing or swapped


def _misspelt_kind(name: str) -> str | None:
    """The section that a misspelt heading opens, if it is one."""
    if name.islower():
        return None
    for kind in ("findings", "impression"):
        if _is_one_slip(name.lower(), kind):
            return kind
    # What these open matters little: they end the section before.
    if any(_is_one_slip(name.lower(), right) for right in _ALSO_MISSPELT):
        return "other"
    return None


def find_headings(text: str) -> list[tuple[int, int, str]]:
    """Start, end and kind of each heading, in order."""
    headings = []
    for match in _HEADING.finditer(text):
        candidate = _Candidate.from_match(match, text)
        if candidate.opens_section():
            headings.append((match.start(), match.end(), candidate.kind))
    # A second pass for slips such as "FINDIGNS:", of which the first pattern knows nothing.
    starts = {start for start, _, _ in headings}
    for match in _POSSIBLY_MISSPELT.finditer(text):
        kind = _misspelt_kind(match["name"])
        if kind is not None and match.start() not in starts:
            headings.append((match.start(), match.end(), kind))
    kinds = [kind for _, _, kind in headings]
    if "findings" in kinds:
        # "PA AND LATERAL CHEST:" above FINDINGS is part of the study's title.
        headings = [heading for heading in headings if heading[2] != "chest"]
    headings.sort()
    kept = []
    concluded = False
    for heading in headings:
        concluded = concluded or heading[2] == "impression"
        # "RIBS:" below IMPRESSION is a line of the impression.
        if heading[2] != "chest" or not concluded:
            kept.append(heading)
    return kept
