"""Predictions in the layouts of other evaluations: ReXrank, RadEval, CheXGenBench."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mavilt_pl.errors import UserError
from mavilt_pl.evaluation.predictions import FILE, Record, read_predictions
from mavilt_pl.parallel.atomic_write import atomic_write_text
from mavilt_pl.parallel.own_files import check_replaceable

Layout = Callable[[Sequence[Record], Path], str]


def _rexrank(records: Sequence[Record], path: Path) -> str:
    """A study's name → texts, as ReXrank's evaluation script reads it.

    The reference is put where the script looks for findings, whatever sections it has.
    """
    studies = {}
    for record in _of(records, "report", path):
        # The script writes "Findings: … Impression: …" from the two.
        studies[record["study"]] = {
            "model_prediction": record["generated"],
            "section_findings": record["reference"],
            "section_impression": None,
        }
    return json.dumps(studies, indent=1, ensure_ascii=False) + "\n"


def _radeval(records: Sequence[Record], path: Path) -> str:
    """The two lists that RadEval takes, and the studies they are of."""
    # Its call takes both lists in the same order.
    reports = _of(records, "report", path)
    lists = {
        "refs": [record["reference"] for record in reports],
        "hyps": [record["generated"] for record in reports],
        "studies": [record["study"] for record in reports],
    }
    return json.dumps(lists, indent=1, ensure_ascii=False) + "\n"


def _chexgenbench(records: Sequence[Record], path: Path) -> str:
    """A row for each drawing: its file and the text that it was drawn from."""
    # Its script joins the names to a folder of images, which is the test's own.
    table = io.StringIO()
    rows = csv.writer(table, lineterminator="\n")
    rows.writerow(["img_savename", "annotated_prompt"])
    for record in _of(records, "synthesis", path):
        rows.writerow([record["image"], record["reference"]])
    return table.getvalue()


# Name → the layout, and the file's name.
LAYOUTS: dict[str, tuple[Layout, str]] = {
    "rexrank": (_rexrank, "rexrank.json"),
    "radeval": (_radeval, "radeval.json"),
    "chexgenbench": (_chexgenbench, "chexgenbench.csv"),
}


def _of(records: Sequence[Record], task: str, path: Path) -> list[Any]:
    """The records of a task.

    Raises:
        UserError: there is none.
    """
    found = []
    for record in records:
        # Of a drawing there may be figures and no file.
        if record["task"] == task and (task != "synthesis" or record.get("image")):
            found.append(record)
    # An empty file would be taken for a model that wrote nothing.
    if not found:
        advice = "test with mavilt_pl.callbacks.ReportMetrics"
        if task == "synthesis":
            advice = "test with SynthesisMetrics and its save_images true"
        raise UserError(f"{path} holds no {task}: {advice}")
    return found


def export_predictions(run: Path, name: str) -> list[Path]:
    """Write each predictions.jsonl below a run in another layout, beside it.

    Args:
        run: the run's folder.
        name: a key of `LAYOUTS`.

    Returns:
        The files.

    Raises:
        UserError: there are no predictions, or none of that kind.
    """
    layout, file_name = LAYOUTS[name]
    paths = sorted(run.rglob(FILE))
    if not paths:
        raise UserError(f"{run}: no {FILE} below it; run `mavilt test` with metric callbacks first")
    written = []
    for path in paths:
        # Made before anything is replaced, since it may be refused.
        try:
            text = layout(read_predictions(path), path)
        except KeyError as error:
            raise UserError(
                f"{path}: a record without {error.args[0]}; expected a file that `mavilt test` "
                "wrote: run the test again"
            ) from None
        out = path.with_name(file_name)
        # Each layout begins in a way of its own.
        check_replaceable(out, text[: text.index("\n")] or "{")
        atomic_write_text(out, text)
        written.append(out)
    return written
