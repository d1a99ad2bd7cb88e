"""The records that everything passes: a study, its images and the questions about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

Split = Literal["train", "val", "test"]
View = Literal["PA", "AP", "LATERAL", "FRONTAL", "UNKNOWN"]
Side = Literal["frontal", "lateral"]  # what a model that reads several views tells apart
OTHER: dict[Side, Side] = {"frontal": "lateral", "lateral": "frontal"}
Label = Literal["present", "absent", "uncertain"]

SPLITS: tuple[Split, ...] = get_args(Split)
VIEWS: tuple[View, ...] = get_args(View)
FRONTAL: frozenset[View] = frozenset({"PA", "AP", "FRONTAL"})
SIDES: dict[View, Side] = {**dict.fromkeys(FRONTAL, "frontal"), "LATERAL": "lateral"}  # type: ignore[dict-item]


@dataclass(frozen=True)
class Image:
    """One radiograph of a study, as a file. `key` names it uniquely within its source and never
    changes.
    """

    path: Path
    view: View
    key: str


@dataclass(frozen=True)
class Question:
    """A question about a study. `candidates` are the possible answers of a closed question and
    empty for an open one; `topic` is the finding or question type that figures are grouped by.
    """

    question: str
    answer: str
    topic: str
    candidates: tuple[str, ...] = ()


@dataclass(frozen=True)
class Study:
    """One examination: its images, its report, what is known of its findings, and questions about
    it.

    `labels` maps a finding's name to present, absent or uncertain; a finding that is not mentioned
    has no entry. `report` is the whole text where the source has more than the two sections.
    `patient` and `study` are the source's own identifiers; they are unique only together with
    `source`.
    """

    source: str
    patient: str
    study: str
    split: Split
    images: tuple[Image, ...]
    findings: str = ""
    impression: str = ""
    labels: Mapping[str, Label] = field(default_factory=dict)
    questions: tuple[Question, ...] = ()
    report: str = ""
