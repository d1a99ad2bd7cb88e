"""The records that all parts pass on: a study, its images and the questions about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

Split = Literal["train", "val", "test"]
View = Literal["PA", "AP", "LATERAL", "FRONTAL", "UNKNOWN"]
# PA and AP differ by more than the label: the heart is larger on AP. So `View` keeps them apart.
Side = Literal["frontal", "lateral"]  # the views that a model of several views distinguishes
Label = Literal["present", "absent", "uncertain"]

SPLITS: tuple[Split, ...] = get_args(Split)
VIEWS: tuple[View, ...] = get_args(View)
FRONTAL: frozenset[View] = frozenset({"PA", "AP", "FRONTAL"})
OTHER: dict[Side, Side] = {"frontal": "lateral", "lateral": "frontal"}
SIDES: dict[View, Side] = {
    "PA": "frontal",
    "AP": "frontal",
    "FRONTAL": "frontal",
    "LATERAL": "lateral",
}


@dataclass(frozen=True)
class Image:
    """One radiograph of a study, as a file.

    Args:
        path: of the file, or of the corpus that holds the pixels.
        view: how the radiograph was taken.
        key: names the image uniquely within its source and never changes.
    """

    path: Path
    view: View
    key: str


@dataclass(frozen=True)
class Question:
    """A question about a study.

    Args:
        question: its text.
        answer: the reference answer.
        topic: finding or question type, by which metrics are grouped.
        candidates: possible answers of a closed question; empty for an open one.
    """

    question: str
    answer: str
    topic: str
    candidates: tuple[str, ...] = ()


@dataclass(frozen=True)
class Study:
    """One examination: its images, its report, its labels and the questions about it.

    Args:
        source: name of the dataset.
        patient: the source's own identifier, unique within the source.
        study: likewise.
        split: the same for all studies of a patient.
        images: none if the dataset lists none.
        findings: section of the report.
        impression: section of the report.
        labels: by lower-case name of the finding; one that is not mentioned has no entry.
        questions: from files; those from labels are worded when they are needed.
        report: the whole text, if the source has more than the two sections.
        attributes: of the patient and the scanner, by which results are broken down; see
            `sources.demographics`.
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
    attributes: Mapping[str, str] = field(default_factory=dict)
