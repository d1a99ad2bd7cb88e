"""Free text of a report → its sections; cleaning protocols, by name."""

from __future__ import annotations

import re
from collections.abc import Callable

from mavilt_pl.data.records import Study
from mavilt_pl.errors import UserError

# Headings as they are spelled in MIMIC-CXR, and the section that they open. A `title` is a heading
# without a colon too. `chest` names the views ("PA AND LATERAL CHEST RADIOGRAPHS:") or the report
# itself, and its text is the findings only where no FINDINGS are: elsewhere it is a heading within
# a section.
_CHEST_WORDS = (
    r"(?:a|an|and|ap|bedside|chest|cxr|erect|film|frontal|lateral|of|one|pa|portable|radiographs?|semi-?erect|single"
    r"|supine|the|two|upright|views?|x-?rays?)"
)
_HEADINGS = {
    "findings": r"(?:(?:additional|chest|cxr|other|pertinent|radiographic|x-?ray)\s)?findings?"
    r"(?:\s*(?:and|/|&)\s*impressions?)?"
    r"|impressions?\s*(?:and|/|&)\s*findings?",
    "impression": r"(?:(?:final|overall|radiographic)\s)?impressions?(?:\s*(?:and|/|&)\s*recommendations?)?"
    r"|conclusions?|summary|opinion|interpretation|imp",
    "chest": rf"(?:{_CHEST_WORDS}[\s,/&]+){{0,9}}(?:chest|cxr)(?:[\s,/&]+{_CHEST_WORDS}){{0,9}}"
    r"|report|description|observations?",
    "title": r"(?:final|preliminary|prelim)\sreport|wet\sread|(?:final\s)?addend(?:um|a)|examination|indications?"
    r"|history|technique|comparisons?|recommendations?|notifications?",
    "other": r"exams?|(?:type\sof\s)?(?:study|exam(?:ination)?)|procedure"
    r"|clinical\s(?:history|information|indication|data|statement)|reason\sfor\s(?:the\s)?(?:exam(?:ination)?|study)|comparison\s(?:study|film|exam)s?|(?:exam|procedure)\sdate|pfi|views?"
    r"|dictated\sby|attending|electronically\ssigned(?:\sby)?|communication|patient\shistory"
    r"|provisional\sfindings(?:\simpression)?",
}
_HEADING = re.compile(
    # At a line's start, a capital, or after a sentence: only there may a name open a section, and
    # few words are tried.
    r"(?:(?P<start>^[ \t>*#•-]*(?:\(?(?:\d{1,2}|[ivxIVX]{1,4})[.)][ \t]*)?[*_]*)"
    r"|(?<![A-Za-z-])(?-i:(?=[A-Z]))|(?<=[.:;!?_)])|(?<=[.:;!?_)]\s)|(?<=[.:;!?_)]\s\s))(?P<name>"
    + "|".join(f"(?P<{kind}>{pattern})" for kind, pattern in reversed(_HEADINGS.items()))
    + r")(?:\(s\))?[*]*(?P<mark>[ \t]*:+[-*]*|[ \t]*;|[ \t]*[-–—]{1,2}(?=\s)|[ \t]*$|(?=\s+(?:\d\.|(?-i:[A-Z][a-z]))))",
    re.IGNORECASE | re.MULTILINE,
)
_TITLE = re.compile(
    r"^[ \t]*(?:final report|wet read|(?:final )?addendum)[ \t:]*$", re.IGNORECASE | re.MULTILINE
)
_PRELIMINARY = re.compile(
    r"^[ \t]*(?:wet\sread|prelim(?:inary)?\sreport)\b", re.IGNORECASE | re.MULTILINE
)
_FINAL = re.compile(r"^[ \t]*final\sreport\b", re.IGNORECASE | re.MULTILINE)
_MISSPELT = re.compile(r"^[ \t]*(?P<name>[A-Za-z]{6,12})[ \t]*:", re.MULTILINE)
# After these words a heading's name goes on with their sentence: "these findings: …".
_SENTENCE_GOES_ON = re.compile(
    r"\b(?:a|above|all|an|and|any|below|by|critical|each|following|for|from|her|his|important|in|incidental|its|main|major"
    r"|my|new|no|of|on|or|our|significant|such|that|the|their|these|this|those|to|unexpected|with)$",
    re.IGNORECASE,
)


def _plain(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()


def _opens(match: re.Match[str], text: str) -> bool:
    """Whether a heading's name is one here, and not a word of a sentence. Reports are wrapped, so
    that the start of a line alone says little of a name in lower case.
    """
    name, mark, at_line = match["name"], match["mark"].strip(), match["start"] is not None
    capitals = re.search("[A-Z]{3}", name) is not None
    window = text[max(0, match.start() - 80) : match.start()]
    before = window.rstrip()
    fresh = not before or before[-1] in ".:;!?_)" or window[len(before) :].count("\n") > 1
    word = _SENTENCE_GOES_ON.search(before)
    goes_on = word is not None and (not capitals or word[0].isupper())
    if match["chest"] and not at_line:
        return False
    if mark.startswith(":"):
        return fresh or (not goes_on and (capitals or (name[0].isupper() and at_line)))
    if not at_line or (goes_on and not fresh):
        return False
    if mark:  # a dash or a semicolon
        return capitals
    if match.end() == len(text) or text[match.end()] == "\n":  # a line of its own
        alone = match["findings"] or match["impression"] or match["title"]
        return bool(alone) and (capitals or (name[0].isupper() and fresh))
    return bool(match["findings"] or match["impression"]) and capitals


def _one_slip(word: str, right: str) -> bool:
    """Whether one letter is missing, doubled, wrong, too much or in the other's place."""
    if word == right or abs(len(word) - len(right)) > 1:
        return False
    head = next(
        (i for i, (a, b) in enumerate(zip(word, right)) if a != b), min(len(word), len(right))
    )
    a, b = word[head:], right[head:]
    return a[1:] == b[1:] or a[1:] == b or a == b[1:] or (a[:2] == b[1::-1] and a[2:] == b[2:])


def _headings(text: str) -> list[tuple[int, int, str]]:
    """Start, end and kind of each heading, in order."""
    found = [
        (match.start(), match.end(), next(kind for kind in _HEADINGS if match[kind]))
        for match in _HEADING.finditer(text)
        if _opens(match, text)
    ]
    for match in _MISSPELT.finditer(text):
        kind = next(
            (kind for kind in ("findings", "impression") if _one_slip(match["name"].lower(), kind)),
            None,
        )
        if (
            kind
            and not match["name"].islower()
            and all(start != match.start() for start, _, _ in found)
        ):
            found.append((match.start(), match.end(), kind))
    if any(kind == "findings" for _, _, kind in found):
        return sorted(heading for heading in found if heading[2] != "chest")
    return sorted(found)


def sections(text: str) -> dict[str, str]:
    """`findings`, `impression` and `whole` of a report, each "" where there is none.

    Sections are found whatever their order, spelling or numbering, in mid-line too; of two of one
    kind (an addendum), both are kept in order, but nothing of a wet read that a final report
    follows. FINDINGS AND IMPRESSION under one heading are findings. Text before any heading belongs
    to no section; a report without any section is all `whole`.
    """
    text = re.sub(r"\r\n?", "\n", text.lstrip("\ufeff"))
    whole = _plain(_TITLE.sub("", text))
    if (early := _PRELIMINARY.search(text)) and (final := _FINAL.search(text, early.end())):
        text = text[: early.start()] + text[final.start() :]
    found: dict[str, list[str]] = {kind: [] for kind in _HEADINGS}
    headings = _headings(text)
    for (_, begin, kind), (end, _, _) in zip(headings, [*headings[1:], (len(text), 0, "")]):
        body = _plain(
            re.sub(r"_{10,}", " ", text[begin:end])
        )  # a rule between two reads; what was taken out is "___"
        if body and (kind != "chest" or re.search(r"[A-Za-z]{3}", body)):
            found["findings" if kind == "chest" else kind].append(body)
    return {
        "findings": " ".join(found["findings"]),
        "impression": " ".join(found["impression"]),
        "whole": whole,
    }


def _r2gen(text: str) -> str:
    """R2Gen's common part: marks of lists gone, lower case, a sentence is what ends with ". ", some
    punctuation gone.

    The marks are replaced one after another as there, with what that does to "1. " within a number:
    the point of the protocol is that references are the same to the letter.
    """
    text = text.replace("1. ", "")
    for before in (". ", " "):
        for number in "2345":
            text = text.replace(f"{before}{number}. ", ". ")
    kept = (
        sentence.translate(_R2GEN_DROPS).strip() for sentence in text.strip().lower().split(". ")
    )
    return " ".join(f"{sentence} ." for sentence in kept if sentence)


# The class [.,?;*!%^&_+():-\[\]{}] of R2Gen's code, in which ":-\[" is a range: the hyphen stays, <
# = > @ go.
_R2GEN_DROPS = dict.fromkeys(map(ord, ".,?;*!%^&_+():<=>@[]{}\"/\\'"))


def _squeezed(text: str, pair: str, times: int) -> str:
    for _ in range(times):
        text = text.replace(pair, pair[0])
    return text


def _r2gen_iu(text: str) -> str:
    """As R2Gen's `clean_report_iu_xray` prepares references (github.com/zhjohnchan/R2Gen)."""
    return _r2gen(_squeezed(text, "..", 3))


def _r2gen_mimic(text: str) -> str:
    """As R2Gen's `clean_report_mimic_cxr`: line breaks, and runs of underscores and spaces, become
    one.
    """
    return _r2gen(
        _squeezed(_squeezed(_squeezed(text.replace("\n", " "), "__", 7), "  ", 6), "..", 8)
    )


CLEANING: dict[str, Callable[[str], str]] = {
    "none": _plain,
    "lower": lambda text: _plain(text.lower()),
    "r2gen-iu": _r2gen_iu,
    "r2gen-mimic": _r2gen_mimic,
}
SECTIONS = ("findings", "impression", "findings+impression", "whole")


def clean(text: str, protocol: str) -> str:
    """The text under a cleaning protocol, by name; "" stays "". Raises `UserError` for a name that
    is none.
    """
    if protocol not in CLEANING:
        raise UserError(
            f"data.cleaning: unknown protocol {protocol!r}; expected one of {', '.join(CLEANING)}"
        )
    return CLEANING[protocol](text) if text.strip() else ""


def compose(study: Study, which: str) -> str:
    """The part of a study's report that serves as its text. A study without that part gives "".

    `which` is one of `SECTIONS`, or several with | between: the first that the study has, as in
    `findings|impression`. `findings+impression` is what there is of the two. `whole` is the text as
    the dataset has it, or, where that is sections only, findings and impression. Raises `UserError`
    for a name that is none.
    """
    choices = which.split("|")
    if wrong := [name for name in choices if name not in SECTIONS]:
        raise UserError(
            f"data.sections: unknown section {wrong[0]!r}; expected one of {', '.join(SECTIONS)}, "
            f"or several with | "
            "between"
        )
    for name in choices:
        parts = (
            "findings+impression"
            if name == "whole" and not study.report
            else name.replace("whole", "report")
        )
        if text := " ".join(text for part in parts.split("+") if (text := getattr(study, part))):
            return text
    return ""
