"""Sections of awkward reports, worded after MIMIC-CXR; cleaning protocols; composed texts."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import pytest

from mavilt_pl.data.records import Study
from mavilt_pl.data.report_sections import clean, compose, sections
from mavilt_pl.data.sources import read_source
from mavilt_pl.errors import UserError

BIG, CLEAR = "The heart is big.", "Big heart."
RULE = "_" * 78

# name, report, findings, impression
AWKWARD = [
    (
        "official",
        "                                 FINAL REPORT\n EXAMINATION:  CHEST (PA AND LAT)\n\n "
        "INDICATION:  ___F.\n\n"
        " TECHNIQUE:  PA and lateral.\n\n COMPARISON:  None.\n\n FINDINGS: \n\n"
        " The heart is big.\n\n IMPRESSION: \n\n Big heart.\n",
        BIG,
        CLEAR,
    ),
    ("one line", "FINDINGS: The heart is big. IMPRESSION: Big heart.", BIG, CLEAR),
    ("reversed order", "Impression: Big heart.\nFindings: The heart is big.", BIG, CLEAR),
    (
        "wrapped, CRLF, other spelling",
        "INDICATION: ___ with cough.\r\nFINDINGS:  The heart\r\n is big.\r\nCONCLUSION: Big heart.",
        BIG,
        CLEAR,
    ),
    (
        "BOM and numbered headings",
        "\ufeff1. FINDINGS: The heart is big.\n2. IMPRESSION: Big heart.",
        BIG,
        CLEAR,
    ),
    (
        "roman numbers",
        "I. HISTORY: cough\nII. FINDINGS: The heart is big.\nIII. IMPRESSION: Big heart.",
        BIG,
        CLEAR,
    ),
    (
        "text before any heading",
        "text before any heading\nFINDING: The heart is big.\nIMP: Big heart.\nRECOMMENDATION: "
        "none.",
        BIG,
        CLEAR,
    ),
    (
        "preamble that names the views",
        " AP CHEST, 9:33 A.M. ON ___\n\n HISTORY:  Hypoxia.\n\n IMPRESSION:  AP chest compared to "
        "___:\n\n Big heart.",
        "",
        "AP chest compared to ___: Big heart.",
    ),
    (
        "mid-line without a full stop",
        "COMPARISON: None FINDINGS: The heart is big. IMPRESSION: Big heart.",
        BIG,
        CLEAR,
    ),
    (
        "mid-line after an unfinished sentence",
        "INDICATION: cough for FINDINGS: The heart is big. old cxr IMPRESSION: Big heart.",
        "The heart is big. old cxr",
        CLEAR,
    ),
    (
        "mid-line in an all-caps report",
        "COMPARISON: NONE FINDINGS: THE HEART IS BIG. IMPRESSION: BIG HEART.",
        "THE HEART IS BIG.",
        "BIG HEART.",
    ),
    (
        "mid-line after what was de-identified",
        "INDICATION: seen by ___ Findings: The heart is big. Impression: Big heart.",
        BIG,
        CLEAR,
    ),
    (
        "headings on lines of their own, no colon",
        "HISTORY\ncough\n\nFINDINGS\nThe heart is big.\n\nIMPRESSION\nBig heart.",
        BIG,
        CLEAR,
    ),
    ("a dash for the colon", "FINDINGS - The heart is big.\nIMPRESSION -- Big heart.", BIG, CLEAR),
    (
        "a semicolon for the colon",
        "FINDINGS; The heart is big.\nIMPRESSION; Big heart.",
        BIG,
        CLEAR,
    ),
    (
        "a space before the colon, and two",
        "FINDINGS : The heart is big.\nIMPRESSION:: Big heart.",
        BIG,
        CLEAR,
    ),
    (
        "nothing for the colon",
        "FINDINGS  The heart is big.\n\nIMPRESSION 1. Big heart.",
        BIG,
        "1. Big heart.",
    ),
    ("markdown", "**FINDINGS:** The heart is big.\n\n**IMPRESSION:** Big heart.", BIG, CLEAR),
    ("misspelt", "FINDIGNS: The heart is big.\nIMPRESION: Big heart.", BIG, CLEAR),
    (
        "a word one letter further off is no misspelling",
        "FINDINGS: The heart is big.\nCompression: none.\nIMPRESSION: Big heart.",
        "The heart is big. Compression: none.",
        CLEAR,
    ),
    (
        "views as the heading of findings",
        "COMPARISON:  ___.\n\n FRONTAL AND LATERAL CHEST RADIOGRAPHS:  The heart is big.\n\n "
        "IMPRESSION:  Big heart.",
        BIG,
        CLEAR,
    ),
    (
        "views within findings stay there",
        "FINDINGS: The heart is big.\nChest: unchanged.\nIMPRESSION: Big heart.",
        "The heart is big. Chest: unchanged.",
        CLEAR,
    ),
    (
        "views with a date only are no findings",
        "CHEST, PA AND LATERAL: ___\nIMPRESSION: Big heart.",
        "",
        CLEAR,
    ),
    (
        "report as the heading of findings",
        "INDICATION: cough.\nREPORT: The heart is big.\nSUMMARY: Big heart.",
        BIG,
        CLEAR,
    ),
    ("both under one heading are findings", "FINDINGS AND IMPRESSION: The heart is big.", BIG, ""),
    (
        "both under one heading, slash, other order",
        "IMPRESSION/FINDINGS: The heart is big.",
        BIG,
        "",
    ),
    (
        "impression with recommendations",
        "FINDINGS: The heart is big.\nIMPRESSION AND RECOMMENDATION: Big heart.",
        BIG,
        CLEAR,
    ),
    (
        "optional plural",
        "FINDING(S): The heart is big.\nIMPRESSION(S): Big heart.\nRECOMMENDATION(S): CT.",
        BIG,
        CLEAR,
    ),
    ("impression only", "INDICATION: cough.\n\nIMPRESSION: Big heart.", "", CLEAR),
    ("findings only", "FINDINGS: The heart is big.\n\nNOTIFICATION: told ___.", BIG, ""),
    ("an empty section", "FINDINGS:\n\nIMPRESSION: Big heart.", "", CLEAR),
    ("no heading at all", "The heart is big.", "", ""),
    (
        "addendum after",
        "FINDINGS: The heart is big.\nIMPRESSION: Big heart.\n ADDENDUM:  Telephoned to ___.",
        BIG,
        CLEAR,
    ),
    (
        "addendum before, then the final report",
        "                 FINAL ADDENDUM\n ADDENDUM  Views were added.\n"
        + RULE
        + "\n                  FINAL REPORT\n FINDINGS: The heart is big.\n IMPRESSION: Big heart.",
        BIG,
        CLEAR,
    ),
    (
        "addendum with sections of its own",
        "FINDINGS: The heart is big.\nIMPRESSION: Big heart.\nADDENDUM: later\nIMPRESSION: Bigger.",
        BIG,
        "Big heart. Bigger.",
    ),
    (
        "wet read",
        "WET READ: ___ ___ 8:01 PM\n  No acute process.\n"
        + RULE
        + "\n                 FINAL REPORT\n FINDINGS: The heart is big.\n\n IMPRESSION: Big "
        "heart.\n" + RULE,
        BIG,
        CLEAR,
    ),
    (
        "wet read with sections of its own",
        " WET READ: ___ 6:12 PM\n FINDINGS: Early.\n IMPRESSION: Early.\n"
        + RULE
        + "\n                 FINAL REPORT\n FINDINGS: The heart is big.\n IMPRESSION: Big heart.",
        BIG,
        CLEAR,
    ),
    ("wet read only", "WET READ: ___ 6:12 PM\n IMPRESSION: Big heart.", "", CLEAR),
    (
        "views in the examination, a date, and text under no heading",
        " FINAL REPORT\n PA AND LATERAL CHEST RADIOGRAPH, ___\n\n The heart is big.\n\n "
        "IMPRESSION:  Big heart.",
        "",
        CLEAR,
    ),
    (
        "views in mid-line",
        "TECHNIQUE: Chest, PA and lateral: done.\nFINDINGS: The heart is big.\n"
        "IMPRESSION: PA and lateral chest compared to ___: Big heart.",
        BIG,
        "PA and lateral chest compared to ___: Big heart.",
    ),
    (
        "findings at the start of a sentence",
        "IMPRESSION:\n 1. Big heart.\n 2. Findings discussed with Dr. ___: agreed.",
        "",
        "1. Big heart. 2. Findings discussed with Dr. ___: agreed.",
    ),
    (
        "words that are no headings",
        "FINDINGS: No interval change: stable. Discussed these findings: none urgent, and the "
        "impression: benign.\n"
        "IMPRESSION: Big heart.",
        "No interval change: stable. Discussed these findings: none urgent, and the impression: "
        "benign.",
        CLEAR,
    ),
    (
        "a sentence wrapped before its colon",
        "IMPRESSION: Big heart. Dr. ___ was told of these\n findings: he agreed.",
        "",
        "Big heart. Dr. ___ was told of these findings: he agreed.",
    ),
    (
        "the same in capitals",
        "IMPRESSION: BIG HEART. DR. ___ WAS TOLD OF THESE FINDINGS: HE AGREED.",
        "",
        "BIG HEART. DR. ___ WAS TOLD OF THESE FINDINGS: HE AGREED.",
    ),
    (
        "subheadings are text",
        "FINDINGS:\n LUNGS: Clear.\n HEART: Big.\nIMPRESSION: Big heart.",
        "LUNGS: Clear. HEART: Big.",
        CLEAR,
    ),
    (
        "comparison in mid-sentence",
        "FINDINGS: The heart is big in comparison: larger than before.\nIMPRESSION: Big heart.",
        "The heart is big in comparison: larger than before.",
        CLEAR,
    ),
    (
        "numbered impression",
        "FINDINGS: The heart is big.\nIMPRESSION:\n1. Big heart.\n2. No effusion.",
        BIG,
        "1. Big heart. 2. No effusion.",
    ),
    (
        "an untitled paragraph after the last heading",
        "INDICATION: cough.\n\nCOMPARISON: None.\n\nThe heart\nis big.",
        BIG,
        "",
    ),
    (
        "a heading's own paragraph is no findings",
        "INDICATION: cough.\n\nCOMPARISON:\n\nNone.",
        "",
        "",
    ),
    (
        "views below the impression are a line of it",
        "IMPRESSION:\nRIBS: no fracture.\nCHEST: Big heart.",
        "",
        "RIBS: no fracture. CHEST: Big heart.",
    ),
    (
        "tail after the impression",
        "IMPRESSION: Big heart.\nRECOMMENDATIONS: CT.\nElectronically signed by: ___",
        "",
        CLEAR,
    ),
]


@pytest.mark.parametrize(
    ("text", "findings", "impression"), [row[1:] for row in AWKWARD], ids=[r[0] for r in AWKWARD]
)
def test_sections_of_awkward_reports(text: str, findings: str, impression: str) -> None:
    found = sections(text)
    assert (found["findings"], found["impression"]) == (findings, impression)


@pytest.mark.parametrize(
    "heading",
    [
        *("CHEST, PA AND LAT", "PORTABLE", "TWO VIEWS", "AP VIEW", "RIBS", "PA AND LAT CHEST"),
        *("SINGLE AP VIEW", "PORTABLE AP", "CHEST 2 VIEWS", "LEFT RIBS", "PA/LAT", "PA & LATERAL"),
        *("CHEST (PORTABLE AP)", "AP SEMI-UPRIGHT", "DECUBITUS VIEWS", "PORTABLE CHEST, 1 VIEW"),
    ],
)
def test_any_heading_of_views_opens_the_findings(heading: str) -> None:
    found = sections(f" {heading}:  The heart is big.\n \n IMPRESSION:  Big heart.")
    assert (found["findings"], found["impression"]) == (BIG, CLEAR)


@pytest.mark.parametrize(
    "heading",
    [
        *("COMMENT", "COMMENTS", "DATE", "WETREAD", "COMPARISION", "IDICATION", "TECHNQUE"),
        *("HISTROY", "RECOMENDATION", "ADENDUM", "DATE OF EXAM", "READ BY"),
    ],
)
def test_other_and_misspelt_headings_end_the_impression(heading: str) -> None:
    found = sections(f"FINDINGS: The heart is big.\nIMPRESSION: Big heart.\n{heading}: later")
    assert (found["findings"], found["impression"]) == (BIG, CLEAR)


def test_sections_of_the_real_indiana_reports_are_found_again() -> None:
    """A thousand reports in radiologists' own words, their sections joined to one line, and wrapped
    as MIMIC-CXR's are. CXR2415 quotes an earlier report, with its headings, as the indication.
    """
    pytest.importorskip("torchxrayvision")
    from mavilt_pl.phantom.indiana import reports_archive

    studies = list(
        read_source("indiana", Path("."), lambda *why: None, reports=str(reports_archive()))
    )
    wrong = []
    for study in studies[::4]:
        parts = re.split(r" (?=(?:INDICATION|FINDINGS|IMPRESSION): )", study.report)
        wrapped = "\n\n".join(textwrap.fill(part, 60, break_on_hyphens=False) for part in parts)
        for text in (study.report, "  FINAL REPORT\n" + wrapped):
            found = sections(text)
            if (found["findings"], found["impression"]) != tuple(
                " ".join(t.split()) for t in (study.findings, study.impression)
            ):
                wrong.append(study.study)
    assert len(studies) == 3955 and set(wrong) <= {"CXR2415"}


def test_whole_is_all_but_titles() -> None:
    assert sections("  FINAL REPORT\n before\nFINDINGS: One.\n") == {
        "findings": "One.",
        "impression": "",
        "whole": "before FINDINGS: One.",
    }


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "text",
    [
        "a " * 500_000,
        "findings" + " " * 1_000_000,
        "FINDINGS " * 200_000,
        "\n" * 1_000_000,
        "(1) " * 400_000,
    ],
)
def test_no_text_takes_long(text: str) -> None:
    """A million characters end: whatever grows with their square would take hours."""
    sections(text)


def test_cleaning_protocols() -> None:
    text = "1. No XXXX\n\neffusion.  2. Heart ___ normal; T-spine (old).."
    assert clean(text, "none") == "1. No XXXX effusion. 2. Heart ___ normal; T-spine (old).."
    assert clean(text, "lower") == "1. no xxxx effusion. 2. heart ___ normal; t-spine (old).."
    assert clean(text, "r2gen-mimic") == "no xxxx effusion . heart  normal t-spine old ."
    assert (
        clean("No  XXXX effusion. 2. Heart normal.", "r2gen-iu")
        == "no  xxxx effusion . heart normal ."
    )
    assert all(clean("  ", name) == "" for name in ("none", "lower", "r2gen-iu", "r2gen-mimic"))
    with pytest.raises(
        UserError,
        match="unknown protocol 'r2gen'; expected one of none, lower, r2gen-iu, r2gen-mimic",
    ):
        clean("text", "r2gen")


def study(findings: str = "", impression: str = "", report: str = "") -> Study:
    return Study("s", "p", "1", "train", (), findings, impression, report=report)


@pytest.mark.parametrize(
    ("which", "of", "text"),
    [
        ("findings", study("F.", "I."), "F."),
        ("findings", study("", "I."), ""),
        ("findings+impression", study("F.", "I."), "F. I."),
        ("findings+impression", study("", "I."), "I."),
        ("findings|impression", study("F.", "I."), "F."),
        ("findings|impression", study("", "I."), "I."),
        ("impression|findings|whole", study("", "", "W."), "W."),
        ("whole", study("F.", "I.", "W."), "W."),
        ("whole", study("F.", "I."), "F. I."),
        ("whole", study(), ""),
    ],
)
def test_the_text_composed_of_sections(which: str, of: Study, text: str) -> None:
    assert compose(of, which) == text


@pytest.mark.parametrize("which", ["", "finding", "findings|", "findings+whole", "report"])
def test_an_unknown_section_is_refused(which: str) -> None:
    with pytest.raises(UserError, match="expected one of findings"):
        compose(study(), which)
