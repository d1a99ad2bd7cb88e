"""`mavilt results RUN`: gather a run's figures and make its page."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="folder of a run; every test/results.json below it is gathered")


def run(args: argparse.Namespace) -> int:
    from mavilt_pl.evaluation.report import gather

    page = gather(args.run)
    print(f"{args.run / 'results.json'}\n{page}")
    return 0
