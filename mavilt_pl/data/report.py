"""Free text of a report → its sections; cleaning protocols, by name."""

from __future__ import annotations

import re
from collections.abc import Callable

from mavilt_pl.data.study import DataError, Study

# Headings as they are spelled in MIMIC-CXR, and the section they open.
_HEADINGS = {
    "findings": r"findings?(?: and impression)?|report|chest,? (?:pa and lateral|ap|single view)[^:\n]{0,30}",
    "impression": r"impressions?|conclusions?|summary|opinion|interpretation|imp",
    "other": r"examination|exam|study|procedure|indication|clinical (?:history|information|indication)|history|reason for "
    r"exam(?:ination)?|technique|comparison(?:s| study)?|notification|recommendations?|final report|wet read|addendum|"
    r"type of (?:exam|examination)|views?|pfi|dictated by",
}
_HEADING = re.compile(
    r"(?:^|(?<=[.\n]))[ \t]*(?:\d+[.)][ \t]*)?(?:"
    + "|".join(f"(?P<{name}>{pattern})" for name, pattern in _HEADINGS.items())
    + r")[ \t]*:",
    re.IGNORECASE | re.MULTILINE,
)
_TITLE = re.compile(r"^[ \t]*(?:final report|wet read|addendum)[ \t:]*$", re.IGNORECASE | re.MULTILINE)


def _plain(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()


def sections(text: str) -> dict[str, str]:
    """`findings`, `impression` and `whole` of a report, each "" where there is none.

    Sections are found whatever their order, spelling or numbering, in mid-line too; of two of one kind (an addendum),
    both are kept in order. Text before any heading belongs to no section; a report without any heading of a section is
    all `whole`.
    """
    text = _TITLE.sub("", text.lstrip("\ufeff").replace("\r\n", "\n"))
    found: dict[str, list[str]] = {"findings": [], "impression": [], "other": []}
    matches = list(_HEADING.finditer(text))
    for match, following in zip(matches, [*matches[1:], None]):
        body = _plain(text[match.end() : following.start() if following else len(text)])
        if body and match.lastgroup:
            found[match.lastgroup].append(body)
    return {
        "findings": " ".join(found["findings"]),
        "impression": " ".join(found["impression"]),
        "whole": _plain(text),
    }


def _r2gen(text: str) -> str:
    """As R2Gen prepares its references: lower case, numbering and marks of de-identification gone, one sentence after
    another with " . " between."""
    text = re.sub(r"_+|\bxxxx\b", " ", text.lower())
    text = re.sub(r"(?:^|\s)\d+\.(?=\s)", " ", text)
    sentences = (re.sub(r"[^a-z0-9 ]", " ", s) for s in re.split(r"\.(?!\d)", text))
    return _plain(" . ".join(s for s in map(_plain, sentences) if s) + " .")


CLEANING: dict[str, Callable[[str], str]] = {
    "none": _plain,
    "lower": lambda text: _plain(text.lower()),
    "r2gen": _r2gen,
}
SECTIONS = ("findings", "impression", "findings+impression")


def clean(text: str, protocol: str) -> str:
    """The text under a cleaning protocol, by name; "" stays ""."""
    if protocol not in CLEANING:
        raise DataError(f"data.cleaning: unknown protocol {protocol!r}; expected one of {', '.join(CLEANING)}")
    return CLEANING[protocol](text) if text.strip() else ""


def compose(study: Study, which: str) -> str:
    """The part of a study's report that serves as its text. A study without that part gives ""."""
    if which not in SECTIONS:
        raise DataError(f"data.sections: unknown section {which!r}; expected one of {', '.join(SECTIONS)}")
    return " ".join(getattr(study, name) for name in which.split("+") if getattr(study, name))
