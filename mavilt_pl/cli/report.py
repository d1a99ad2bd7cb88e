"""`mavilt report IMAGE…`: write reports of radiographs."""

from __future__ import annotations

import argparse
import json
from itertools import zip_longest

from mavilt_pl.cli.model_arguments import (
    add_images,
    add_model,
    image_record,
    load_model,
    pair_views,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `mavilt report`."""
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="DICOM, PNG or JPEG")
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
    """Print a report for each image."""
    # Checked before the model is read.
    studies = pair_views(args.images, args.lateral)
    reports = load_model(args).report(studies, args.seed)
    # Without --lateral that list is empty, and zip would stop at once.
    for image, lateral, text in zip_longest(args.images, args.lateral, reports):
        if args.json:
            print(json.dumps({**image_record(image, lateral), "report": text}))
        else:
            print(f"{image}: {text}")
    return 0
