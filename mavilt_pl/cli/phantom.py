"""`mavilt phantom`: writes a synthetic corpus in a real dataset's own layout, or a picture of some
phantoms.
"""

from __future__ import annotations

import argparse
import os
import shutil
from pathlib import Path

# layout → whose it is, and the share of studies with a lateral unless told otherwise
LAYOUTS = {
    "mimic": ("MIMIC-CXR-JPG 2.x: JPEG, reports, tables of splits, metadata and labels", 0.0),
    "mimic-dicom": ("MIMIC-CXR 2.x: 12-bit DICOM, zipped reports, record and study lists", 0.5),
    "indiana": ("Indiana University, Open-i: XML reports and PNG", 0.0),
    "indiana-kaggle": ("Indiana University, Kaggle: two tables and PNG", 1.0),
    "r2gen": ("Indiana University, R2Gen: annotation.json and PNG", 1.0),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    layouts = parser.add_subparsers(dest="layout", metavar="LAYOUT", required=True)
    for layout, (line, laterals) in LAYOUTS.items():
        one = layouts.add_parser(layout, help=line, description=line)
        one.add_argument(
            "out", type=Path, help="folder to write; replaced when it was made by this command"
        )
        one.add_argument(
            "--studies", type=int, default=1000, help="how many studies (default 1000)"
        )
        if layout.startswith("mimic"):
            one.add_argument("--validate", type=int, default=0, help="of them for validation")
            one.add_argument("--test", type=int, default=0, help="of them for the test")
            zipped = layout == "mimic-dicom"
            one.add_argument(
                "--zipped",
                action=argparse.BooleanOptionalAction,
                default=zipped,
                help="reports as mimic-cxr-reports.zip",
            )
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
        "picture", help="no dataset: a PNG of eight phantoms, beside radiographs of yours"
    )
    picture.add_argument("out", type=Path, help="the .png to write")
    picture.add_argument(
        "--beside",
        type=Path,
        help="a folder with radiographs (PNG, JPEG, DICOM) to show below them",
    )
    picture.add_argument(
        "--size", type=int, default=256, help="pixels along each image's side (default 256)"
    )
    picture.add_argument("--seed", type=int, default=0)


def run(args: argparse.Namespace) -> int:
    from mavilt_pl.errors import UserError

    if args.layout == "picture":
        from mavilt_pl.phantom.sheet import write_sheet

        shown = write_sheet(args.out, args.beside, args.size, args.seed)
        print(f"8 phantoms{f' above {shown} radiographs' if shown else ''}: {args.out}")
        return 0
    mark = args.out / "PHANTOM"
    if args.out.exists() and any(args.out.iterdir()) and not mark.exists():
        raise UserError(
            f"{args.out} is not empty and was not written by this command: choose another folder"
        )
    validate, test = getattr(args, "validate", 0), getattr(args, "test", 0)
    if args.studies < 1 or validate + test > args.studies:
        raise UserError(
            f"--studies {args.studies} must be at least 1 and hold --validate {validate} and "
            f"--test {test}"
        )
    if not 0 <= args.laterals <= 1:
        raise UserError(f"--laterals {args.laterals:g} is a share of the studies: from 0 to 1")
    shutil.rmtree(args.out, ignore_errors=True)
    args.out.mkdir(parents=True)
    mark.write_text("Synthetic radiographs: no patient is shown here.\n", encoding="utf-8")
    common = (args.out, args.studies, args.size, args.seed)
    written = args.studies
    if args.layout.startswith("mimic"):
        from mavilt_pl.phantom.mimic import write_mimic

        pixels = "dicom" if args.layout == "mimic-dicom" else "jpg"
        write_mimic(*common, validate, test, args.workers, args.laterals, pixels, args.zipped)  # type: ignore[arg-type]
    else:
        from mavilt_pl.phantom.indiana import write_indiana

        layout = {"indiana": "open-i", "indiana-kaggle": "kaggle", "r2gen": "r2gen"}[args.layout]
        written = write_indiana(*common, args.workers, args.laterals, layout)  # type: ignore[arg-type]
    fewer = (
        f" (there are no more than that; {args.studies} were asked for)"
        if written < args.studies
        else ""
    )
    print(f"{written} synthetic studies in the {args.layout} layout{fewer}: {args.out}")
    return 0
