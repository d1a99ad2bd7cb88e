"""Programs that read the findings of a report, under one form."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from mavilt_pl.metrics.clinical import findings_in
from mavilt_pl.metrics.finding_phrases import TERM, VERSION

Findings = Mapping[str, str]  # name → present | absent | uncertain; not mentioned: no entry


class Labeller(NamedTuple):
    """A program that reads findings.

    Args:
        name: as protocols name it.
        findings: all names that it may find.
        read: texts → the findings of each.
    """

    name: str
    findings: tuple[str, ...]
    read: Callable[[Sequence[str]], list[Findings]]


def _read_by_rules(texts: Sequence[str]) -> list[Findings]:
    # One by one; a network reads batches.
    return [findings_in(text) for text in texts]


RULES = Labeller(VERSION, tuple(TERM), _read_by_rules)
