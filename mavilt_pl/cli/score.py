"""`mavilt score FILE`: figures of generated reports and answers, without a model."""

from __future__ import annotations

import argparse
from pathlib import Path

from mavilt_pl.cli.terminal import say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `mavilt score`."""
    parser.add_argument(
        "file",
        type=Path,
        help="predictions.jsonl of a test, or JSON lines or CSV of another program with columns "
        "generated and reference (and patient, source, labels, if there are)",
    )
    parser.add_argument(
        "--out", type=Path, help="folder for results.json, which `mavilt results` reads"
    )


def run(args: argparse.Namespace) -> int:
    """Print the figures, and write them if asked."""
    from mavilt_pl.cli.tables import print_figures
    from mavilt_pl.evaluation.predictions import read_predictions, scored_findings
    from mavilt_pl.evaluation.results import check_figures, versions, write_json
    from mavilt_pl.evaluation.scoring import score

    # Of the findings that the test scored, if the file says which.
    figures = check_figures(
        score(read_predictions(args.file), scored_findings(args.file)), str(args.file)
    )
    print_figures(figures)
    if args.out is not None:
        made_by = {"predictions": args.file.name, "versions": versions()}
        write_json(args.out / "results.json", {"figures": figures, "made_by": made_by})
        say(f"{len(figures)} figures: {args.out / 'results.json'}")
    return 0
