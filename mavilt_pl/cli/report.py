"""`mavilt report IMAGE…`: what a trained model writes about radiographs."""

from __future__ import annotations

import argparse
import json
from itertools import zip_longest

from mavilt_pl.cli.model_arguments import add_images, add_model, loaded, named, studies_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="DICOM, PNG or JPEG")
    parser.add_argument(
        "--lateral",
        nargs="+",
        default=[],
        metavar="IMAGE",
        help="of each study its lateral image, for a model of several views",
    )
    add_model(parser)
    add_images(parser)


def run(args: argparse.Namespace) -> int:
    studies = studies_of(args.images, args.lateral)
    reports = loaded(args).report(studies, args.seed)
    for image, lateral, text in zip_longest(args.images, args.lateral, reports):
        print(
            json.dumps({**named(image, lateral), "report": text})
            if args.json
            else f"{image}: {text}"
        )
    return 0
