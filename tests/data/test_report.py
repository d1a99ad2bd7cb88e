from __future__ import annotations

import pytest

from mavilt_pl.data.report import clean, sections

BOTH = ("The heart is big.", "Big heart.")


@pytest.mark.parametrize(
    "text",
    [
        "FINAL REPORT\n EXAMINATION: CHEST\n\n FINDINGS:\n\n The heart is big.\n\n IMPRESSION:\n\n Big heart.\n",
        "FINDINGS: The heart is big. IMPRESSION: Big heart.",
        "Impression: Big heart.\nFindings: The heart is big.",
        "INDICATION: ___ with cough.\r\nFINDINGS:  The heart\r\n is big.\r\nCONCLUSION: Big heart.",
        "\ufeff1. FINDINGS: The heart is big.\n2. IMPRESSION: Big heart.",
        "text before any heading\nFINDING: The heart is big.\nIMP: Big heart.\nRECOMMENDATION: none.",
    ],
)
def test_sections_whatever_their_spelling_place_and_order(text: str) -> None:
    found = sections(text)
    assert (found["findings"], found["impression"]) == BOTH


def test_one_section_none_and_addendum() -> None:
    assert sections("IMPRESSION: Clear.")["findings"] == ""
    assert sections("Just words.") == {"findings": "", "impression": "", "whole": "Just words."}
    assert sections("FINDINGS: One.\nADDENDUM: told.\nFINDINGS: Two.")["findings"] == "One. Two."


def test_cleaning_is_named() -> None:
    assert clean("1. No XXXX effusion.  2. Heart ___ normal.", "r2gen") == "no effusion . heart normal ."
    assert clean("  ", "r2gen") == ""
    with pytest.raises(Exception, match="unknown protocol"):
        clean("text", "nonsense")
