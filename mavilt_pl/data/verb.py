"""`mavilt prepare`: a raw dataset → a prepared corpus."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", help="mimic-cxr-jpg, indiana or nih")
    parser.add_argument("root", type=Path, help="the dataset's folder, as downloaded")
    parser.add_argument("--out", type=Path, required=True, help="folder of the corpus")
    parser.add_argument("--name", help="what results call it (default: the source)")
    parser.add_argument("--size", type=int, default=256, help="pixels along each side (default 256)")
    parser.add_argument(
        "--fit", choices=["pad", "crop"], default="pad", help="keep the aspect by padding or by a centre crop"
    )
    parser.add_argument("--views", help="only images of these views, e.g. PA,AP")
    parser.add_argument("--reports", help="where the reports are, if not in the dataset's folder")
    parser.add_argument("--limit", type=int, help="only the first studies")
    parser.add_argument("--workers", type=int, help="processes (default: all cores)")


def run(args: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.table import Table

    from mavilt_pl.data.corpus import prepare

    options = {"reports": args.reports} if args.reports else {}
    views = args.views.split(",") if args.views else None
    facts = prepare(args.source, args.root, args.out, name=args.name, size=args.size, fit=args.fit, workers=args.workers, limit=args.limit, views=views, options=options)  # fmt: skip
    table = Table(title=f"{facts['name']}: {args.out}")
    for column in ("", "studies"):
        table.add_column(column, justify="right" if column else "left")
    for split, count in facts["splits"].items():
        table.add_row(split, f"{count:,}")
    table.add_section()
    for row, count in (
        ("kept", facts["studies"]),
        ("rejected (rejects.csv)", facts["rejected_studies"]),
        ("read", facts["read"]),
    ):
        table.add_row(row, f"{count:,}")
    Console().print(table, f"{facts['images']:,} images of {facts['size']}² pixels")
    return 0
