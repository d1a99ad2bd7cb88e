"""`mavilt report IMAGE…`: what a trained model writes about radiographs."""

from __future__ import annotations

import argparse
import json

from mavilt_pl.inference.arguments import add_images, add_model, loaded


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="DICOM, PNG or JPEG")
    add_model(parser)
    add_images(parser)


def run(args: argparse.Namespace) -> int:
    reports = loaded(args).report(args.images, args.seed)
    for image, text in zip(args.images, reports):
        print(json.dumps({"image": image, "report": text}) if args.json else f"{image}: {text}")
    return 0
