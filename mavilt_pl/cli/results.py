"""`mavilt results RUN`: gather a run's figures and make its page; with `--compare`, set runs side
by side.
"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "run", type=Path, help="folder of a run; every test/results.json below it is gathered"
    )
    parser.add_argument(
        "--compare",
        nargs="+",
        metavar="ARM",
        help="instead: arms side by side, in RUN/compare.json and compare.html. An arm is a folder "
        "of a run, or several "
        "between commas (one a seed), absolute or within RUN",
    )
    parser.add_argument(
        "--seeds", help="with --compare: each arm's runs are its subfolders of these names: 1,2,3"
    )
    parser.add_argument("--names", help="with --compare: what the arms are called: with,without")


def run(args: argparse.Namespace) -> int:
    if args.compare:
        from mavilt_pl.evaluation.compare import compare

        print(compare(args.run, args.compare, args.seeds, args.names))
        return 0
    from mavilt_pl.evaluation.html_report import gather

    page = gather(args.run)
    print(f"{args.run / 'results.json'}\n{page}")
    return 0
