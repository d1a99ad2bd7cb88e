"""`mavilt reader-study make | score`: blinded pairs of reports and images, and what readers say."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from mavilt_pl.cli.terminal import plain, say
from mavilt_pl.errors import UserError

RESULTS = "reader_study.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `mavilt reader-study`."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="make | score")
    make = actions.add_parser("make", help="write a form for readers, and its key")
    make.add_argument("run", type=Path, help="a tested run")
    make.add_argument(
        "--corpus",
        type=Path,
        nargs="+",
        default=[],
        help="corpora of the test (default in a project: those of its folder)",
    )
    make.add_argument("--out", type=Path, required=True, help="folder of the study, new")
    make.add_argument("--reports", type=int, default=40, help="pairs of reports at most (40)")
    make.add_argument("--drawings", type=int, default=20, help="pairs of images at most (20)")
    make.add_argument("--seed", type=int, default=0, help="of choice and order")
    score = actions.add_parser("score", help="figures from the files that readers sent")
    score.add_argument("study", type=Path, help="folder that `make` wrote")
    score.add_argument("answers", type=Path, nargs="+", help="one file a reader")


def run(args: argparse.Namespace) -> int:
    """Make a study, or score it."""
    # Each half imports only what it needs.
    return _make(args) if args.action == "make" else _score(args)


def _make(args: argparse.Namespace) -> int:
    from mavilt_pl.data.corpus import Corpus
    from mavilt_pl.project import here
    from mavilt_pl.reader_study.cases import FORM, KEY, make_study

    # Before anything is read.
    if args.reports < 0 or args.drawings < 0:
        raise UserError(
            f"--reports {args.reports} --drawings {args.drawings}: expected 0 or more of each"
        )
    paths = args.corpus
    # In a project folder its corpora are those of its tests.
    if not paths:
        project = here("reader-study make without --corpus")
        paths = [project.folder / "corpora" / name for name in project.sources]
    corpora = [Corpus(path) for path in paths]
    counts = make_study(args.run, corpora, args.out, args.reports, args.drawings, args.seed)
    say(f"{counts['report']} pairs of reports, {counts['drawing']} pairs of images")
    say(f"for the readers: {args.out / FORM}")
    say(f"not for the readers: {args.out / KEY}")
    print("Both hold texts or images of studies; keep them like the dataset.", file=sys.stderr)
    return 0


def _score(args: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.table import Table

    from mavilt_pl.cli.tables import with_interval
    from mavilt_pl.parallel.atomic_write import atomic_write_text
    from mavilt_pl.reader_study.answers import read_answers
    from mavilt_pl.reader_study.cases import read_key
    from mavilt_pl.reader_study.scoring import score_study

    # The key first: without it no file of answers means anything.
    key = read_key(args.study)
    readers = read_answers(args.answers, key)
    for reader in readers:
        # Who read, and how much of it: a result is worth what its readers are.
        about = ", ".join(filter(None, (reader.profession, f"{reader.years or '?'} years")))
        said = f"{reader.name} ({about}): {len(reader.answers)} cases"
        say(said + (f", {reader.missing} not answered" if reader.missing else ""))
    if not any(reader.answers for reader in readers):
        raise UserError(f"{args.study}: no case has a complete answer; nothing can be scored")
    figures = score_study(key, readers)
    table = Table("figure", "value (95 % interval)", "judgements", title=plain(str(args.study)))
    for figure in figures:
        value = with_interval(figure["value"], figure["low"], figure["high"])
        table.add_row(figure["metric"], value, str(figure["n"]))
    Console().print(table)
    # Answers stay in the readers' files.
    known = ("name", "profession", "years", "missing")
    content = {
        "study": key["study"],
        "readers": [{name: getattr(reader, name) for name in known} for reader in readers],
        "figures": figures,
    }
    path = args.study / RESULTS
    atomic_write_text(path, json.dumps(content, indent=1, ensure_ascii=False))
    say(path)
    return 0
