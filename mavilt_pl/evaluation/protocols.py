"""Named protocols of the texts of reports: what is done to both texts before they are scored."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mavilt_pl.data.report_sections import clean
from mavilt_pl.data.sources.r2gen import entries
from mavilt_pl.errors import UserError

UNKNOWN = "<unk>"


class Protocol(NamedTuple):
    """What is done to both texts.

    Args:
        cleaning: of `data.cleaning`; none leaves a text as it is.
        generated_words: a generated text is cut behind so many words; None for never.
        reference_words: the same of the reference.
        rare: words that occur so often or less among the reports of a vocabulary become <unk>.
    """

    cleaning: str = "none"
    generated_words: int | None = None
    reference_words: int | None = None
    rare: int | None = None


# R2Gen's (github.com/cuhksz-nlp/R2Gen): its references lose the place of the start token, its
# generated reports do not; words count from `threshold` occurrences on, 3 and 10.
PROTOCOLS = {
    "raw": Protocol(),
    "coco": Protocol(),
    "r2gen-iu": Protocol("r2gen-iu", 60, 59, 2),
    "r2gen-mimic": Protocol("r2gen-mimic", 100, 99, 9),
}


def describe(name: str, has_vocabulary: bool) -> str:
    """A protocol in words, in full.

    >>> describe("raw", False)
    'raw: texts as they are'
    """
    protocol = PROTOCOLS[name]
    if protocol.cleaning == "none":
        return f"{name}: texts as they are"
    rare = "rare words kept"
    if has_vocabulary:
        rare = (
            f"words of {protocol.rare} or fewer occurrences in the vocabulary's reports {UNKNOWN}"
        )
    return (
        f"{name}: both texts cleaned by {protocol.cleaning}, {rare}, references cut at "
        f"{protocol.reference_words} words, generated texts at {protocol.generated_words}"
    )


def apply_protocol(
    records: Sequence[dict[str, Any]], name: str, vocabulary: Path | None = None
) -> list[dict[str, Any]]:
    """Records with the texts of their reports under a protocol; answers stay as they are.

    Args:
        records: of `read_predictions`.
        name: a key of `PROTOCOLS`.
        vocabulary: R2Gen's annotation.json, whose reports of all splits say which words are rare.

    Raises:
        UserError: the protocol has no rare words, or the file is none of R2Gen's.
    """
    protocol = PROTOCOLS[name]
    # Without a vocabulary every word is known, and the description says so.
    known = None
    if vocabulary is not None:
        if protocol.rare is None:
            raise UserError(f"--vocabulary {vocabulary}: the protocol {name} keeps rare words")
        known = _frequent_words(vocabulary, protocol)
    changed = []
    for record in records:
        # Answers and drawings have no report's texts.
        if record["task"] == "report":
            record = {
                **record,
                "generated": _under(record["generated"], protocol, protocol.generated_words, known),
                "reference": _under(record["reference"], protocol, protocol.reference_words, known),
            }
        changed.append(record)
    return changed


def _frequent_words(vocabulary: Path, protocol: Protocol) -> set[str]:
    """The words that are not rare in the cleaned reports of all splits."""
    counts: Counter[str] = Counter()
    for _, entry in entries(vocabulary):
        counts.update(clean(str(entry.get("report", "")), protocol.cleaning).split())
    assert protocol.rare is not None  # checked by the caller
    return {word for word, count in counts.items() if count > protocol.rare}


def _under(text: str, protocol: Protocol, limit: int | None, known: set[str] | None) -> str:
    """A text under a protocol."""
    # "none" collapses spaces; a raw text stays as it is.
    if protocol.cleaning == "none":
        return text
    words = clean(text, protocol.cleaning).split()[:limit]
    # Cut first, as R2Gen cuts what its tokenizer has encoded.
    if known is not None:
        words = [word if word in known else UNKNOWN for word in words]
    return " ".join(words)
