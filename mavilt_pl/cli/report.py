"""`mavilt report IMAGE…`: write reports of radiographs; one bad file costs one report."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import Any

from mavilt_pl.cli.model_arguments import (
    add_images,
    add_model,
    expand_folders,
    image_record,
    load_model,
    pair_views,
)
from mavilt_pl.cli.terminal import say
from mavilt_pl.errors import UserError, escape

BATCH = 16  # studies at a time


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `mavilt report`."""
    parser.add_argument(
        "images", nargs="+", metavar="IMAGE", help="DICOM, PNG or JPEG, or a folder of them"
    )
    parser.add_argument(
        "--lateral",
        nargs="+",
        default=[],
        metavar="IMAGE",
        help="the lateral image of each study, for a model of several views",
    )
    add_model(parser)
    add_images(parser)


def run(args: argparse.Namespace) -> int:
    """Print a report for each image; exit status 1 if any image could not be read."""
    # Checked before the model is read.
    images = expand_folders(args.images)
    studies = pair_views(images, args.lateral)
    reports = _reports(load_model(args), studies, args.seed)
    failures = 0
    # Without --lateral that list is empty, and zip would stop at once.
    for image, lateral, report in zip_longest(images, args.lateral, reports):
        record = image_record(image, lateral)
        if isinstance(report, UserError):
            failures += 1
            record["error"] = str(report)
            say(f"mavilt: {report}", sys.stderr)
        else:
            record["report"] = report
        if args.json:
            print(json.dumps(record), flush=True)
        elif "report" in record:
            say(f"{escape(str(image))}: {report}")
    if failures and len(studies) > 1:
        print(f"mavilt: {failures} of {len(studies)} without a report", file=sys.stderr)
    return int(failures > 0)


def _reports(model: Any, studies: Sequence[Any], seed: int) -> Iterator[str | UserError]:
    """The report of each study, or the reason why it has none."""
    for start in range(0, len(studies), BATCH):
        batch = studies[start : start + BATCH]
        try:
            yield from model.report(batch, seed)
        except UserError:
            # One of them cannot be read. Each alone costs the speed of this batch only.
            for study in batch:
                try:
                    yield from model.report([study], seed)
                except UserError as error:
                    yield error
