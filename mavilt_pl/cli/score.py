"""`mavilt score FILE`: figures of generated reports and answers, without a model."""

from __future__ import annotations

import argparse
from pathlib import Path

from mavilt_pl.cli.terminal import say
from mavilt_pl.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `mavilt score`."""
    parser.add_argument(
        "file",
        type=Path,
        help="predictions.jsonl of a test, or JSON lines or CSV of another program with columns "
        "generated and reference (and patient, source, labels, if there are)",
    )
    parser.add_argument(
        "--protocol",
        choices=("raw", "coco", "r2gen-iu", "r2gen-mimic"),
        default="raw",
        help="what is done to both texts of reports first (default: raw, nothing); all but raw add "
        "METEOR 1.5 where Java is",
    )
    parser.add_argument(
        "--vocabulary",
        type=Path,
        metavar="annotation.json",
        help="with r2gen-…: R2Gen's file, whose rare words become <unk>",
    )
    parser.add_argument(
        "--chexbert", type=Path, help="chexbert.pth, for the F1 of its labels on both texts"
    )
    parser.add_argument("--bert", type=Path, help="with --chexbert: folder of bert-base-uncased")
    parser.add_argument(
        "--radeval", help="metrics of RadEval, such as radgraph,ratescore,radcliq,green"
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="folder for results.json and subgroups.json, which `mavilt results` reads",
    )


def run(args: argparse.Namespace) -> int:
    """Print the figures, and write them if asked."""
    from mavilt_pl.cli.tables import print_figures
    from mavilt_pl.evaluation.predictions import read_predictions, scored_findings
    from mavilt_pl.evaluation.protocols import apply_protocol, describe
    from mavilt_pl.evaluation.results import check_figures, versions, write_json
    from mavilt_pl.evaluation.scoring import Extras, score
    from mavilt_pl.evaluation.subgroups import write_subgroups

    # Checked first: reading a large file and loading a model take a while.
    if (args.chexbert is None) != (args.bert is None):
        raise UserError(
            "--chexbert weights and --bert folder belong together: one of them is missing"
        )
    records = apply_protocol(read_predictions(args.file), args.protocol, args.vocabulary)
    # Loaded after the file was read: most mistakes are in the file.
    labeller = None
    if args.chexbert is not None:
        from mavilt_pl.metrics.chexbert import chexbert_labeller

        labeller = chexbert_labeller(args.chexbert, args.bert)
    # As one word, which needs no quotes in a shell.
    names = [name.strip() for name in (args.radeval or "").split(",") if name.strip()]
    extras = Extras(labeller, names, meteor=args.protocol != "raw")
    # Of the findings that the test scored, if the file says which.
    figures = score(records, scored_findings(args.file), extras)
    protocol = describe(args.protocol, args.vocabulary is not None)
    for figure in figures:
        if figure["task"] == "report":
            figure["protocol"] = f"{protocol}; {figure['protocol']}"
    figures = check_figures(figures, str(args.file))
    print_figures(figures)
    # A figure is worth what its protocol says.
    say(protocol)
    if args.out is not None:
        made_by = {"predictions": args.file.name, "protocol": protocol, "versions": versions()}
        write_json(args.out / "results.json", {"figures": figures, "made_by": made_by})
        say(f"{len(figures)} figures: {args.out / 'results.json'}")
        # The same as a test of ours writes; other programs' files name groups in `attributes`.
        by_group = write_subgroups(args.out, records, scored_findings(args.file))
        if by_group is not None:
            say(f"figures by subgroup: {by_group}")
    return 0
