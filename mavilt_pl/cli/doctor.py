"""`mavilt doctor`: check a dataset, a corpus, a token cache or a run before you train on it."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mavilt_pl.data.checks import SAMPLE, Check, Status, diagnose
from mavilt_pl.data.sources import READER_OPTIONS, SOURCES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", type=Path, help="a dataset, a corpus, a token cache or a run")
    parser.add_argument(
        "--source", choices=sorted(SOURCES), help="which dataset it is, where that cannot be seen"
    )
    for option, line in READER_OPTIONS.items():
        parser.add_argument(f"--{option}", help=f"as `mavilt prepare`: {line}")
    parser.add_argument(
        "--corpus",
        type=Path,
        action="append",
        default=[],
        help="of a token cache: compare with this corpus",
    )
    parser.add_argument(
        "--all", action="store_true", help=f"every file instead of {SAMPLE} spread over the dataset"
    )
    parser.add_argument("--json", action="store_true", help="for programs")


def run(args: argparse.Namespace) -> int:
    options = {name: value for name in READER_OPTIONS if (value := getattr(args, name)) is not None}
    checks = list(diagnose(args.path, args.source, options, args.corpus, args.all))
    if args.json:
        print(json.dumps([asdict(check) for check in checks], indent=1))
    else:
        _print(args.path, checks)
    return int(any(check.status == "error" for check in checks))


def _print(path: Path, checks: list[Check]) -> None:
    from rich.console import Console
    from rich.table import Table

    colour: dict[Status, Any] = {"ok": "green", "warning": "yellow", "error": "red", "note": "dim"}
    table = Table(title=str(path), show_lines=False)
    for column in ("", "check", "found", "expected", "what to do"):
        table.add_column(column, overflow="fold")
    for check in checks:
        table.add_row(
            f"[{colour[check.status]}]{check.status}",
            check.name,
            check.found,
            check.expected,
            check.todo,
        )
    Console().print(table)
    errors, warnings = (
        sum(check.status == status for check in checks) for status in ("error", "warning")
    )
    print(
        f"{errors} errors, {warnings} warnings."
        + (" Do not train on it before they are mended." if errors else "")
    )
