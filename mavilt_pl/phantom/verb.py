"""`mavilt phantom`: writes a synthetic corpus in a real dataset's own layout."""

from __future__ import annotations

import argparse
import os
import shutil
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("layout", choices=["mimic", "indiana"], help="whose layout to write")
    parser.add_argument("out", type=Path, help="folder to write; replaced when it was made by this command")
    parser.add_argument("--studies", type=int, default=1000, help="how many studies (default 1000)")
    parser.add_argument("--validate", type=int, default=0, help="of them for validation (mimic)")
    parser.add_argument("--test", type=int, default=0, help="of them for the test (mimic)")
    parser.add_argument("--size", type=int, default=160, help="pixels along each side (default 160)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)


def run(args: argparse.Namespace) -> int:
    from mavilt_pl.data.study import DataError
    from mavilt_pl.phantom.indiana import write_indiana
    from mavilt_pl.phantom.mimic import write_mimic

    mark = args.out / "PHANTOM"
    if args.out.exists() and any(args.out.iterdir()) and not mark.exists():
        raise DataError(f"{args.out} is not empty and was not written by this command: choose another folder")
    if args.studies < 1 or args.validate + args.test > args.studies:
        raise DataError(
            f"--studies {args.studies} must be at least 1 and hold --validate {args.validate} and --test {args.test}"
        )
    shutil.rmtree(args.out, ignore_errors=True)
    args.out.mkdir(parents=True)
    mark.write_text("Synthetic radiographs: no patient is shown here.\n", encoding="utf-8")
    if args.layout == "mimic":
        written = args.studies
        write_mimic(args.out, args.studies, args.size, args.seed, args.validate, args.test, args.workers)
    else:
        written = write_indiana(args.out, args.studies, args.size, args.seed, args.workers)
    fewer = f" (there are no more than that; {args.studies} were asked for)" if written < args.studies else ""
    print(f"{written} synthetic studies in the {args.layout} layout{fewer}: {args.out}")
    return 0
