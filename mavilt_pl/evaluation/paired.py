"""Differences of two tests of the same studies, paired by patient, from their predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from mavilt_pl.evaluation.predictions import Record, read_predictions, scored_findings
from mavilt_pl.evaluation.scoring import tables
from mavilt_pl.metrics.bootstrap import Estimate, bootstrap_difference

Difference = tuple[str, str, str]  # task, source, metric


def paired_tests(
    first: Mapping[Path, Path], other: Mapping[Path, Path]
) -> dict[Difference, Estimate]:
    """The differences of all tests that two runs share.

    Args:
        first: predictions.jsonl of each test of a run.
        other: of the run that is subtracted.
    """
    differences: dict[Difference, Estimate] = {}
    # By the test's place in the run, such as `stage2`.
    for test in sorted(first.keys() & other.keys()):
        differences |= paired_differences(first[test], other[test])
    return differences


def paired_differences(first: Path, other: Path) -> dict[Difference, Estimate]:
    """The first test minus the other one, for every average of reports and answers.

    Sources whose studies and questions are not the same in both files are left out.

    Args:
        first: predictions.jsonl of a test.
        other: of the test that is subtracted.
    """
    mine, theirs = read_predictions(first), read_predictions(other)
    # Of the first file: arms that scored other findings have been refused before.
    findings = scored_findings(first)
    differences: dict[Difference, Estimate] = {}
    for task in ("report", "vqa"):
        for source in dict.fromkeys(str(record["source"]) for record in mine):
            here, there = _of(mine, task, source), _of(theirs, task, source)
            # A pair needs the same study and question in both.
            if not here or _names(here) != _names(there):
                continue
            pairs = zip(tables(task, here, findings), tables(task, there, findings), strict=True)
            for of_first, of_other in pairs:
                # A metric without a case, such as that of open questions, has nothing to compare.
                if len(of_first[1]):
                    for metric, value in bootstrap_difference(of_first, of_other).items():
                        differences[task, source, metric] = value
    return differences


def _of(records: Sequence[Record], task: str, source: str) -> list[Record]:
    return [one for one in records if one["task"] == task and str(one["source"]) == source]


def _names(records: Sequence[Record]) -> list[tuple[str, str]]:
    """Study and question of each record."""
    return [(str(one.get("study")), str(one.get("question"))) for one in records]
