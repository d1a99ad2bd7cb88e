"""Split the free text of a report into sections; cleaning protocols, by name."""

from __future__ import annotations

import re
from collections.abc import Callable

from mavilt_pl.data.records import Study
from mavilt_pl.data.report_headings import find_headings
from mavilt_pl.errors import UserError

_TITLE_LINE = re.compile(
    r"^[ \t]*(?:final report|wet ?read|(?:final )?addendum)[ \t:]*$", re.IGNORECASE | re.MULTILINE
)
_PRELIMINARY = re.compile(
    r"^[ \t]*(?:wet\s?read|prelim(?:inary)?\sreport)\b", re.IGNORECASE | re.MULTILINE
)
_FINAL = re.compile(r"^[ \t]*final\sreport\b", re.IGNORECASE | re.MULTILINE)
# A line between two reads; what de-identification removed is "___".
_RULE = re.compile(r"_{10,}")


def _collapse_spaces(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()


# Headings whose section is one paragraph; what follows it after a blank line is another matter.
_ONE_PARAGRAPH = re.compile(
    r"""\W*(?:\d+\W+)?(?:(?:clinical|patient)\s)?(?:indications?|history|information|data|statement
    |idication|reason\sfor|technique|compar\w+|exam|procedure|date|(?:type\sof\s)?study|views?)""",
    re.IGNORECASE | re.VERBOSE,
)


def _untitled_paragraphs(text: str, headings: list[tuple[int, int, str]]) -> str:
    """What follows the section of the last heading after a blank line; "" if nothing does."""
    if not headings:
        return ""
    start, end, _ = headings[-1]
    if not _ONE_PARAGRAPH.match(text[start:end]):
        return ""
    paragraphs = []
    for paragraph in re.split(r"\n[ \t]*\n", text[end:]):
        collapsed = _collapse_spaces(_RULE.sub(" ", paragraph))
        # A signature or a date is no report.
        if re.search(r"[A-Za-z]{2}", collapsed):
            paragraphs.append(collapsed)
    # The first one is the heading's own.
    return " ".join(paragraphs[1:])


def _drop_preliminary(text: str) -> str:
    """Remove a wet read or preliminary report that a final report follows."""
    preliminary = _PRELIMINARY.search(text)
    if preliminary is None:
        return text
    # A preliminary read alone is all that there is of the report, so it stays.
    final = _FINAL.search(text, preliminary.end())
    if final is None:
        return text
    return text[: preliminary.start()] + text[final.start() :]


def sections(text: str) -> dict[str, str]:
    """`findings`, `impression` and `whole` of a report, each "" if there is none.

    Sections are found in any order, spelling or numbering, in mid-line too. Two of one kind (an
    addendum) are both kept, in order. FINDINGS AND IMPRESSION under one heading are findings. Text
    before any heading belongs to no section. Without findings and impression, the paragraphs after
    the last of INDICATION, COMPARISON, … are the findings. A report
    without headings is all `whole`.

    >>> sections("FINDINGS: Clear lungs. IMPRESSION: Normal.")["impression"]
    'Normal.'
    """
    # The patterns know "\n" only, and a BOM would hide a heading at the start.
    text = re.sub(r"\r\n?", "\n", text.lstrip("\ufeff"))
    # Before the preliminary report is dropped: `whole` is what the dataset has.
    whole = _collapse_spaces(_TITLE_LINE.sub("", text))
    text = _drop_preliminary(text)
    bodies: dict[str, list[str]] = {"findings": [], "impression": []}
    # A section's text runs from the end of its heading to the start of the next one.
    headings = find_headings(text)
    ends = [start for start, _, _ in headings[1:]] + [len(text)]
    for (_, begin, kind), end in zip(headings, ends):
        body = _collapse_spaces(_RULE.sub(" ", text[begin:end]))
        # A heading of views that only a date follows is no findings.
        if kind == "chest" and re.search(r"[A-Za-z]{3}", body):
            bodies["findings"].append(body)
        elif kind in bodies and body:
            bodies[kind].append(body)
    if not bodies["findings"] and not bodies["impression"]:
        bodies["findings"].append(_untitled_paragraphs(text, headings))
    return {
        "findings": " ".join(bodies["findings"]),
        "impression": " ".join(bodies["impression"]),
        "whole": whole,
    }


# The class [.,?;*!%^&_+():-\[\]{}] of R2Gen's code. In it ":-\[" is a range: it removes < = > @ too
# and keeps the hyphen.
_R2GEN_REMOVED = dict.fromkeys(map(ord, ".,?;*!%^&_+():<=>@[]{}\"/\\'"))


def _r2gen(text: str) -> str:
    """Clean a text as R2Gen does for both datasets.

    List numbers are removed, letters become lower case, a sentence is what ends with ". ", and some
    punctuation is removed. The numbers are replaced one after another as there, with what that does
    to "1. " within a number: references must be the same to the letter.
    """
    text = text.replace("1. ", "")
    for before in (". ", " "):
        for number in "2345":
            text = text.replace(f"{before}{number}. ", ". ")
    sentences = []
    for sentence in text.strip().lower().split(". "):
        # Only single characters are removed, so a sentence of punctuation alone becomes empty.
        cleaned = sentence.translate(_R2GEN_REMOVED).strip()
        if cleaned:
            sentences.append(f"{cleaned} .")
    return " ".join(sentences)


def _halve_runs(text: str, pair: str, times: int) -> str:
    """Replace a doubled character by a single one, `times` times over the whole text."""
    for _ in range(times):
        text = text.replace(pair, pair[0])
    return text


def _r2gen_iu(text: str) -> str:
    """Clean as R2Gen's `clean_report_iu_xray` (github.com/zhjohnchan/R2Gen)."""
    return _r2gen(_halve_runs(text, "..", 3))


def _r2gen_mimic(text: str) -> str:
    """Clean as R2Gen's `clean_report_mimic_cxr`: line breaks and runs of "_", " " and "." too."""
    text = text.replace("\n", " ")
    for pair, times in (("__", 7), ("  ", 6), ("..", 8)):
        text = _halve_runs(text, pair, times)
    return _r2gen(text)


CLEANING: dict[str, Callable[[str], str]] = {
    "none": _collapse_spaces,
    "lower": lambda text: _collapse_spaces(text.lower()),
    "r2gen-iu": _r2gen_iu,
    "r2gen-mimic": _r2gen_mimic,
}
SECTIONS = ("findings", "impression", "findings+impression", "whole")


def clean(text: str, protocol: str) -> str:
    """The text under a cleaning protocol; "" stays "".

    Args:
        text: a report or a section.
        protocol: a key of `CLEANING`.

    Raises:
        UserError: there is no such protocol.

    >>> clean("1. Clear lungs.  2. Normal heart.", "r2gen-iu")
    'clear lungs . normal heart .'
    """
    if protocol not in CLEANING:
        raise UserError(
            f"data.cleaning: unknown protocol {protocol!r}; expected one of {', '.join(CLEANING)}"
        )
    return CLEANING[protocol](text) if text.strip() else ""


def compose(study: Study, which: str) -> str:
    """The part of a study's report that serves as its text; "" if the study lacks it.

    `findings+impression` is what there is of the two. `whole` is the report as the dataset has it;
    if the dataset has sections only, it is findings and impression.

    Args:
        study: with or without a report.
        which: one of `SECTIONS`, or several with | between, of which the first that the study has
            counts: `findings|impression`.

    Raises:
        UserError: there is no such section.
    """
    choices = which.split("|")
    for name in choices:
        if name not in SECTIONS:
            raise UserError(
                f"data.sections: unknown section {name!r}; expected one of {', '.join(SECTIONS)}, "
                "or several with | between"
            )
    for name in choices:
        text = _section_text(study, name)
        if text:
            return text
    return ""


def _section_text(study: Study, name: str) -> str:
    if name == "whole" and study.report:
        return study.report
    both = name in ("whole", "findings+impression")
    parts = ("findings", "impression") if both else (name,)
    texts = [getattr(study, part) for part in parts]
    return " ".join(filter(None, texts))
