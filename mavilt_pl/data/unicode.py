"""Texts that any encoder takes."""

from __future__ import annotations


def encodable(text: str) -> str:
    r"""A text without halves of surrogate pairs, which no encoding has a place for.

    They come from JSON escapes, and from words of a command line that are not UTF-8.

    >>> encodable("Clear \ud800 lungs")
    'Clear ? lungs'
    """
    # A question mark shows that something was there.
    return text.encode("utf-8", "replace").decode("utf-8")
