"""`mavilt init DIR --data FOLDER --backbone MODEL`: a project folder for your downloads."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mavilt_pl.cli.terminal import say

if TYPE_CHECKING:
    from mavilt_pl.recipes.new_project import Dataset

DEFAULT_BACKBONE = "smollm2-135m"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `mavilt init`."""
    from mavilt_pl.data.sources import SOURCES

    parser.add_argument("folder", type=Path, help="the project's folder, new")
    parser.add_argument(
        "--data",
        type=Path,
        action="append",
        default=[],
        metavar="FOLDER",
        help="a download that is recognised by its files; repeatable",
    )
    # Named in the epilog: ten more lines would hide the options that are needed.
    for source in SOURCES:
        parser.add_argument(
            f"--{source}", type=Path, metavar="FOLDER", help=argparse.SUPPRESS, dest=source
        )
    parser.add_argument(
        "--reports", type=Path, help="MIMIC-CXR's reports, if they are not beside the images"
    )
    parser.add_argument(
        "--backbone",
        default=DEFAULT_BACKBONE,
        help="the language model: a folder, a name on the hub, or one of `mavilt configs ls`' "
        f"backbones (default {DEFAULT_BACKBONE})",
    )
    parser.add_argument("--size", type=int, default=256, help="pixels along each side (256)")
    parser.add_argument("--gpus", type=int, default=0, help="GPUs of a node (default 0: CPUs)")
    parser.add_argument(
        "--smoke", action="store_true", help="a few steps of each training, to see that all works"
    )
    parser.epilog = (
        "A download that is not recognised is named by its reader: "
        f"{', '.join(f'--{source} FOLDER' for source in SOURCES)}."
    )


def run(args: argparse.Namespace) -> int:
    """Look at the downloads, and write the project."""
    from mavilt_pl.config_files import list_configs
    from mavilt_pl.data.checks import recognise_source
    from mavilt_pl.data.sources import SOURCES
    from mavilt_pl.errors import UserError
    from mavilt_pl.language.hub import config_file
    from mavilt_pl.project import FILE
    from mavilt_pl.recipes.new_project import Plan, shipped_backbone, write_project

    # What costs nothing is checked first.
    if args.size < 16 or args.gpus < 0:
        raise UserError(f"--size {args.size} --gpus {args.gpus}: expected 16 or more, 0 or more")
    if (args.folder / FILE).exists():
        raise UserError(f"{args.folder} is a project already: edit {args.folder / FILE}")
    # In the order of the readers, and those found by their files after them.
    named = [(reader, getattr(args, reader)) for reader in SOURCES if getattr(args, reader)]
    for folder in args.data:
        if not folder.is_dir():
            raise UserError(f"--data {folder} is not a folder; expected that of a download")
        named.append((recognise_source(folder), folder))
    if not named:
        raise UserError("no download is named: add --data FOLDER, once for each")
    # A short name stands for a name on the hub and the tuning that its size wants.
    shipped = ""
    tuning: dict[str, Any] = {}
    if f"backbones/{args.backbone}.yaml" in list_configs():
        shipped = args.backbone
        args.backbone, tuning = shipped_backbone(shipped)
    # Before the data are looked at, which takes longer. A hub is asked, or its cache.
    if not config_file(args.backbone).is_file():
        raise UserError(
            f"--backbone {args.backbone} has no config.json; expected the folder of a language "
            "model as Hugging Face writes it"
        )
    datasets = [_look_at(reader, folder, args.reports) for reader, folder in named]
    # A corpus has the name of its reader; two of one would share a folder.
    names = [dataset.name for dataset in datasets]
    if len(set(names)) < len(names):
        raise UserError(f"two downloads are {max(names, key=names.count)}; name each source once")
    plan = Plan(args.backbone, args.size, args.gpus, args.smoke, shipped, tuning)
    for path in write_project(args.folder, datasets, plan):
        say(path)
    say(f"Next: cd {args.folder} && mavilt run")
    return 0


def _look_at(reader: str, folder: Path, reports: Path | None) -> Dataset:
    """Survey a download and say what was found."""
    from mavilt_pl.data.sources import source_options
    from mavilt_pl.data.survey import survey
    from mavilt_pl.errors import UserError
    from mavilt_pl.project import Source
    from mavilt_pl.recipes.new_project import Dataset

    # Only the readers whose reports are apart take the option.
    options = {}
    if reports is not None and "reports" in source_options(reader):
        options["reports"] = str(reports.resolve())
    found = survey(reader, folder, options)
    say(
        f"{folder}: {reader}, of the first {found.studies:,} studies {found.texts:,} with a "
        f"report; {found.images:,} images, {len(found.labels)} labels"
    )
    if found.missing:
        share = found.missing / (found.missing + found.images)
        say(f"  {found.missing:,} images ({share:.0%}) are not there: their studies are left out")
    # A dataset of half its images is a download that broke off.
    if found.missing > found.images:
        raise UserError(
            f"{folder}: {found.missing:,} of {found.missing + found.images:,} images are not "
            "there. Finish the download; `mavilt doctor` says what is missing"
        )
    # Results of synthetic data say so by the name of their source.
    name = f"phantom_{reader}" if (folder / "PHANTOM").is_file() else reader
    return Dataset(name, Source(reader, folder, options), found)
