"""predictions.jsonl: what a model made of every tested study.

The first line says what the file is (`about`). Each other line is of a report, a question or an
image:

    {"task": "report", "source", "study", "patient", "generated", "reference", "labels"}
    {"task": "vqa", "source", "study", "patient", "question", "topic", "reference", "candidates",
     "probabilities" or "generated"}
    {"task": "encoder", "tokenizer" or "synthesis", "source", "study", "patient", "logits",
     "truths", "scores"}

`attributes` are what is known of patient, scanner and view. `logits` are a judge's, by kind of
image and finding; `truths` are 1 or 0 by finding.

Studies and patients have their hidden names. Files of other programs need `generated` and
`reference` only.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mavilt_pl.data.sources.tables import read_json_lines, read_table
from mavilt_pl.errors import UserError
from mavilt_pl.parallel.atomic_write import atomic_write_text
from mavilt_pl.parallel.own_files import check_replaceable

FILE = "predictions.jsonl"
MARK = '"about": "predictions of mavilt'
Record = Mapping[str, Any]
# Columns of other programs' files that mean the same.
GENERATED = ("generated", "prediction", "hypothesis", "candidate")
REFERENCES = ("reference", "ground_truth", "target", "report")


def write_predictions(
    path: Path, records: Sequence[Record], notice: str, made_by: Mapping[str, Any]
) -> None:
    """Write the records of a test, whole or not at all; without records there is no file.

    Args:
        path: the file.
        records: of the callbacks, in order.
        notice: that the file holds texts of studies.
        made_by: provenance of the test.

    Raises:
        UserError: the file exists and is not ours.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    check_replaceable(path, MARK)
    if not records:
        # A test without reports and questions; those of an earlier test are not its own.
        path.unlink(missing_ok=True)
        return
    # The mark of the file comes first, where `check_replaceable` looks for it.
    head = {"about": "predictions of mavilt", "notice": notice, "made_by": made_by}
    lines = [json.dumps(one, ensure_ascii=False) for one in (head, *records)]
    atomic_write_text(path, "\n".join(lines) + "\n")


def read_predictions(path: Path) -> list[dict[str, Any]]:
    """The records of a file: of ours, or JSON lines or CSV of another program.

    Every record gets a task, a source and a patient: `report`, the file's name, and its own number
    where they are missing, so that unnamed studies are of different patients.

    Raises:
        UserError: the file is not readable, or a record lacks what is needed.
    """
    # By the name: the first line of a CSV may be valid JSON.
    is_csv = path.name.endswith((".csv", ".csv.gz"))
    rows = _csv_rows(path) if is_csv else read_json_lines(path, "an object with a text")
    records = []
    for number, row in rows:
        if "about" in row:
            continue
        where = f"{path}, line {number}"
        # What is missing; what the file says replaces it.
        record = {"task": "report", "source": path.name.split(".")[0], "patient": str(number)}
        record |= row
        # Of an image there is no text to compare.
        if record["task"] not in ("report", "vqa"):
            records.append(record)
            continue
        record["reference"] = _first(row, REFERENCES, where)
        # Closed questions have no generated text.
        if "probabilities" not in row:
            record["generated"] = _first(row, GENERATED, where)
        records.append(record)
    # A file of its head alone is that of a test without reports and questions.
    if not records:
        raise UserError(f"{path} holds no predictions; expected a line for each study")
    return records


def scored_findings(path: Path) -> list[str] | None:
    """The findings that the test of a file scored, in their order; None if it does not say."""
    try:
        with path.open(encoding="utf-8") as file:
            return list(json.loads(file.readline())["made_by"]["config"]["data"]["findings"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _csv_rows(path: Path) -> Iterable[tuple[int, dict[str, Any]]]:
    # Row 1 is the header.
    return enumerate(read_table(path, ()).to_dict("records"), 2)  # type: ignore[return-value]


def _first(row: Record, names: Sequence[str], where: str) -> str:
    """The text under the first of these names.

    Raises:
        UserError: none is there, or it is no text.
    """
    # In order: the first name that the file has.
    for name in names:
        if name in row:
            if not isinstance(row[name], str):
                raise UserError(f"{where}: {name} is {str(row[name])[:80]!r}; expected a text")
            return row[name]
    raise UserError(
        f"{where}: none of {', '.join(names)} (found {', '.join(map(str, row))[:120]}); expected "
        "the generated and the reference text of a study"
    )
