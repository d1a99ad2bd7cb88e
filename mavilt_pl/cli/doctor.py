"""`mavilt doctor`: check a dataset, a corpus, a token cache or a run before you train on it."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path

from mavilt_pl.cli.prepare import add_reader_options, reader_options
from mavilt_pl.cli.terminal import plain
from mavilt_pl.data.check_images import SAMPLE
from mavilt_pl.data.check_studies import Check, Status
from mavilt_pl.data.checks import diagnose
from mavilt_pl.data.sources import SOURCES

COLOURS: dict[Status, str] = {"ok": "green", "warning": "yellow", "error": "red", "note": "dim"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `mavilt doctor`."""
    parser.add_argument("path", type=Path, help="any folder of data or of ours")
    parser.add_argument(
        "--source",
        help=f"which dataset it is, if that cannot be recognised: {', '.join(sorted(SOURCES))}, or "
        "a Python file with a reader",
    )
    add_reader_options(parser, "as `mavilt prepare`: ")
    parser.add_argument(
        "--corpus",
        type=Path,
        action="append",
        default=[],
        help="compare a token cache with this corpus",
    )
    parser.add_argument(
        "--all", action="store_true", help=f"every file instead of {SAMPLE} spread over the dataset"
    )
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")


def run(args: argparse.Namespace) -> int:
    """Print the checks; exit status 1 if training on the folder would be wrong."""
    # All checks run, so that a user corrects everything at once.
    checks = list(diagnose(args.path, args.source, reader_options(args), args.corpus, args.all))
    if args.json:
        print(json.dumps([asdict(check) for check in checks], indent=1))
    else:
        _print_table(args.path, checks)
    # So that a script can stop before a training.
    return int(any(check.status == "error" for check in checks))


def _print_table(path: Path, checks: list[Check]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=plain(str(path)), show_lines=False)
    # Paths are folded and not cut: a user copies them from the table.
    for column in ("", "check", "found", "expected", "what to do"):
        table.add_column(column, overflow="fold")
    for check in checks:
        status = f"[{COLOURS[check.status]}]{check.status}"
        texts = (check.name, check.found, check.expected, check.todo)
        table.add_row(status, *map(plain, texts))
    Console().print(table)
    counts = Counter(check.status for check in checks)
    print(f"{counts['error']} errors, {counts['warning']} warnings.")
    if counts["error"]:
        print("Do not train on it before the errors are corrected.")
