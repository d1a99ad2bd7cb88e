"""Results of `report` and `ask` on the terminal and in files, one record each."""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import sys
from pathlib import Path
from typing import Any

from mavilt_pl.cli.terminal import say
from mavilt_pl.errors import UserError, escape
from mavilt_pl.parallel.atomic_write import atomic_write_text

SUFFIXES = (".jsonl", ".csv")
UNFAMILIAR = "unlike the training images"


def check_output(out: Path | None) -> None:
    """Refuse an output file before the model is loaded.

    Raises:
        UserError: its suffix is unknown, it exists, or its folder does not.
    """
    if out is None:
        return
    if out.suffix not in SUFFIXES:
        raise UserError(f"--out {out}: found the suffix {out.suffix!r}; expected .jsonl or .csv")
    # Links that lead nowhere count: following one would write somewhere else.
    if os.path.lexists(out):
        raise UserError(f"--out {out} exists; name a new file")
    if not out.parent.is_dir():
        raise UserError(f"--out {out}: the folder {out.parent} does not exist; create it")


class ResultRecords:
    """Prints results as they come and writes them when all are there.

    Args:
        args: of `add_output`.
    """

    def __init__(self, args: argparse.Namespace):
        self.as_json, self.out = args.json, args.out
        self.records: list[dict[str, Any]] = []

    def add(self, record: dict[str, Any], text: str) -> None:
        """One result.

        Args:
            record: plain values.
            text: how a person reads it; an error goes to standard error.
        """
        # Kept for the file as well, which is written at the end.
        self.records.append(record)
        if "error" in record:
            say(f"mavilt: {record['error']}", sys.stderr)
        if self.as_json:
            print(json.dumps(record), flush=True)
        elif "error" not in record:
            # Next to the text: whoever reads the one must see the other.
            doubt = ""
            if record.get("unfamiliar"):
                doubt = f"[{UNFAMILIAR}, score {record['ood_score']:.2f}] "
            say(f"{doubt}{text}")

    def write(self) -> None:
        """Write the file that was asked for, whole or not at all."""
        # Printed results are enough for most.
        if self.out is None:
            return
        if self.out.suffix == ".jsonl":
            lines = [json.dumps(record, ensure_ascii=False) for record in self.records]
            atomic_write_text(self.out, "".join(f"{line}\n" for line in lines))
        else:
            atomic_write_text(self.out, self._table())
        say(f"{len(self.records):,} results: {self.out}")

    def _table(self) -> str:
        # Records differ in their keys: an error has no report.
        columns = dict.fromkeys(key for record in self.records for key in record)
        text = io.StringIO()
        writer = csv.DictWriter(text, [*columns], lineterminator="\n")
        writer.writeheader()
        for record in self.records:
            writer.writerow({key: _cell(value) for key, value in record.items()})
        return text.getvalue()


def _cell(value: Any) -> Any:
    """A value as a cell that no spreadsheet takes for a formula."""
    # Imports pandas, which only a table needs.
    from mavilt_pl.data.sources.tables import inert_cell

    if isinstance(value, dict):
        return json.dumps(value)
    return inert_cell(value) if isinstance(value, str) else value


def error_record(study: Any, error: UserError) -> dict[str, Any]:
    """The record of a study that could not be read."""
    from mavilt_pl.inference.studies import name_of

    return {"image": name_of(study), "error": str(error)}


def shown_name(image: Any) -> str:
    """The file of a result; of several views all files."""
    names = image.values() if isinstance(image, dict) else [image]
    return " + ".join(escape(str(name)) for name in names)
