"""`mavilt phantom`: write a synthetic dataset in a real one's layout, or a picture of phantoms."""

from __future__ import annotations

import argparse
import os
import shutil
from pathlib import Path
from typing import Literal

from mavilt_pl.cli.terminal import say

# Layout → what it is, and the default share of studies with a lateral.
LAYOUTS = {
    "mimic": ("MIMIC-CXR-JPG 2.x: JPEG, reports, tables of splits, metadata and labels", 0.0),
    "mimic-dicom": ("MIMIC-CXR 2.x: 12-bit DICOM, zipped reports, record and study lists", 0.5),
    "indiana": ("Indiana University, Open-i: XML reports and PNG", 0.0),
    "indiana-kaggle": ("Indiana University, Kaggle: two tables and PNG", 1.0),
    "r2gen": ("Indiana University, R2Gen: annotation.json and PNG", 1.0),
}
INDIANA_LAYOUTS: dict[str, Literal["open-i", "kaggle", "r2gen"]] = {
    "indiana": "open-i",
    "indiana-kaggle": "kaggle",
    "r2gen": "r2gen",
}
NOTE = "Synthetic radiographs: no patient is shown here.\n"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add a subcommand for each layout, and `picture`."""
    layouts = parser.add_subparsers(dest="layout", metavar="LAYOUT", required=True)
    for layout, (description, laterals) in LAYOUTS.items():
        one = layouts.add_parser(layout, help=description, description=description)
        one.add_argument(
            "out", type=Path, help="folder to write; replaced if this command wrote it"
        )
        one.add_argument(
            "--studies", type=int, default=1000, help="number of studies (default 1000)"
        )
        if layout.startswith("mimic"):
            _add_mimic_arguments(one, zipped=layout == "mimic-dicom")
        one.add_argument(
            "--laterals",
            type=float,
            default=laterals,
            help=f"share of studies that also have a lateral (default {laterals:g})",
        )
        one.add_argument(
            "--size", type=int, default=160, help="pixels along each side (default 160)"
        )
        one.add_argument("--seed", type=int, default=0)
        one.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    picture = layouts.add_parser(
        "picture", help="no dataset: a PNG of eight phantoms, above radiographs of yours"
    )
    picture.add_argument("out", type=Path, help="the .png to write")
    picture.add_argument(
        "--radiographs",
        type=Path,
        help="a folder with radiographs (PNG, JPEG, DICOM) to show below the phantoms",
    )
    picture.add_argument(
        "--size", type=int, default=256, help="pixels along each image's side (default 256)"
    )
    picture.add_argument("--seed", type=int, default=0)


def _add_mimic_arguments(parser: argparse.ArgumentParser, zipped: bool) -> None:
    parser.add_argument("--validate", type=int, default=0, help="number of them for validation")
    parser.add_argument("--test", type=int, default=0, help="number of them for the test")
    parser.add_argument(
        "--zipped",
        action=argparse.BooleanOptionalAction,
        default=zipped,
        help="reports as mimic-cxr-reports.zip",
    )


def run(args: argparse.Namespace) -> int:
    """Write the dataset or the picture."""
    if args.layout == "picture":
        return _write_picture(args)
    _check_arguments(args)
    # Only a folder with our mark, or an empty one, comes this far.
    shutil.rmtree(args.out, ignore_errors=True)
    args.out.mkdir(parents=True)
    # Written first: a dataset that was interrupted may then be replaced too.
    (args.out / "PHANTOM").write_text(NOTE, encoding="utf-8")
    written = _write_mimic(args) if args.layout.startswith("mimic") else _write_indiana(args)
    # As written, not as asked for.
    message = f"{written} synthetic studies in the {args.layout} layout"
    # The Indiana layouts take real reports, of which there is a limited number.
    if written < args.studies:
        message += f" ({args.studies} were asked for; the collection has no more)"
    say(f"{message}: {args.out}")
    return 0


def _write_picture(args: argparse.Namespace) -> int:
    from mavilt_pl.phantom.sheet import write_sheet

    count = write_sheet(args.out, args.radiographs, args.size, args.seed)
    print(f"8 phantoms{f' above {count} radiographs' if count else ''}: {args.out}")
    return 0


def _check_arguments(args: argparse.Namespace) -> None:
    from mavilt_pl.errors import UserError

    # The file marks folders that may be replaced; anything else may be somebody's data.
    is_ours = (args.out / "PHANTOM").exists()
    if args.out.exists() and any(args.out.iterdir()) and not is_ours:
        raise UserError(
            f"{args.out} is not empty and was not written by this command: choose another folder"
        )
    # Only the MIMIC layouts have them.
    validate, test = getattr(args, "validate", 0), getattr(args, "test", 0)
    if args.studies < 1 or validate + test > args.studies:
        raise UserError(
            f"--studies {args.studies} must be at least 1 and hold --validate {validate} and "
            f"--test {test}"
        )
    # A percentage is the likely mistake.
    if not 0 <= args.laterals <= 1:
        raise UserError(f"--laterals {args.laterals:g} is a share of the studies: from 0 to 1")


def _write_mimic(args: argparse.Namespace) -> int:
    from mavilt_pl.phantom.mimic import MimicOptions, write_mimic

    options = MimicOptions(
        root=args.out,
        studies=args.studies,
        size=args.size,
        seed=args.seed,
        validate=args.validate,
        test=args.test,
        laterals=args.laterals,
        pixels="dicom" if args.layout == "mimic-dicom" else "jpg",
        zipped=args.zipped,
    )
    write_mimic(options, args.workers)
    return args.studies


def _write_indiana(args: argparse.Namespace) -> int:
    from mavilt_pl.phantom.indiana import IndianaOptions, write_indiana

    options = IndianaOptions(
        root=args.out,
        studies=args.studies,
        size=args.size,
        seed=args.seed,
        laterals=args.laterals,
        layout=INDIANA_LAYOUTS[args.layout],
    )
    return write_indiana(options, args.workers)
