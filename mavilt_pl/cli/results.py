"""`mavilt results RUN`: collect a run's figures and write its page, or compare runs."""

from __future__ import annotations

import argparse
from pathlib import Path

from mavilt_pl.cli.terminal import say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `mavilt results`."""
    parser.add_argument(
        "run", type=Path, help="folder of a run; every test/results.json below it is collected"
    )
    parser.add_argument(
        "--compare",
        nargs="+",
        metavar="ARM",
        help="compare arms instead, in RUN/compare.json and compare.html. An arm is the folder of "
        "a run, or several separated by commas (one per seed), absolute or below RUN",
    )
    parser.add_argument(
        "--seeds", help="with --compare: subfolders of each arm that are its runs, such as 1,2,3"
    )
    parser.add_argument(
        "--export",
        choices=("rexrank", "radeval", "chexgenbench"),
        help="write the predictions of every test below RUN in the layout of another evaluation",
    )
    parser.add_argument("--names", help="with --compare: names of the arms, such as with,without")


def run(args: argparse.Namespace) -> int:
    """Write the pages and print where they are."""
    if args.export:
        from mavilt_pl.evaluation.exports import export_predictions

        say("\n".join(map(str, export_predictions(args.run, args.export))))
        return 0
    # The two halves share only the folder; each imports what it needs.
    if args.compare:
        from mavilt_pl.cli.tables import print_comparison
        from mavilt_pl.evaluation.compare import compare

        comparison = compare(args.run, args.compare, args.seeds, args.names)
        print_comparison(comparison)
        say(comparison.page)
        return 0
    from mavilt_pl.evaluation.html_report import gather

    page = gather(args.run)
    say(f"{args.run / 'results.json'}\n{page}")
    return 0
