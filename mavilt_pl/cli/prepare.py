"""`mavilt prepare`: a raw dataset → a prepared corpus."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from mavilt_pl.data.sources import READER_OPTIONS, SOURCES

    parser.add_argument(
        "source", choices=sorted(SOURCES), metavar="source", help=", ".join(sorted(SOURCES))
    )
    parser.add_argument("root", type=Path, help="the dataset's folder, as downloaded")
    parser.add_argument("--out", type=Path, required=True, help="folder of the corpus")
    parser.add_argument("--name", help="what results call it (default: the source)")
    parser.add_argument(
        "--size", type=int, default=256, help="pixels along each side (default 256)"
    )
    parser.add_argument(
        "--fit",
        choices=["pad", "crop"],
        default="pad",
        help="keep the aspect by padding or by a centre crop",
    )
    parser.add_argument("--views", help="only images of these views, e.g. PA,AP or FRONTAL")
    parser.add_argument(
        "--questions",
        type=Path,
        help="MIMIC-CXR-VQA (JSON file or its folder) or Medical-Diff-VQA (CSV)",
    )
    for option, line in READER_OPTIONS.items():
        parser.add_argument(f"--{option}", help=line)
    parser.add_argument("--limit", type=int, help="only the first studies")
    parser.add_argument("--workers", type=int, help="processes (default: all cores)")


def run(args: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.table import Table

    from mavilt_pl.data.prepare import prepare
    from mavilt_pl.data.records import VIEWS
    from mavilt_pl.data.sources import READER_OPTIONS
    from mavilt_pl.errors import UserError

    options = {name: value for name in READER_OPTIONS if (value := getattr(args, name)) is not None}
    views = args.views.split(",") if args.views else None
    unknown = [view for view in views or () if view not in VIEWS]
    if unknown or args.size < 1:
        raise UserError(
            f"--views {args.views} --size {args.size}: expected views among {', '.join(VIEWS)} and "
            f"a size of 1 or more"
        )
    facts = prepare(
        args.source,
        args.root,
        args.out,
        name=args.name,
        size=args.size,
        fit=args.fit,
        workers=args.workers,
        limit=args.limit,
        views=views,
        questions=args.questions,
        options=options,
    )
    table = Table(title=f"{facts['name']}: {args.out}")
    table.add_column("split")
    for what in ("studies", "images"):
        for column in ("read", "kept", "rejected"):
            table.add_column(f"{what}\n{column}", justify="right")
    for split, said in {**facts["splits"], "all": facts["total"]}.items():
        if split == "all":
            table.add_section()
        table.add_row(
            split, *(f"{n:,}" for what in ("studies", "images") for n in said[what].values())
        )
    Console().print(table)
    if any(said["rejected"] for said in facts["total"].values()):
        print(f"Why each was rejected: {args.out / 'rejects.csv'}")
    return 0
