"""`mavilt prepare`: a raw dataset → a prepared corpus."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mavilt_pl.cli.terminal import plain, say

KINDS = ("studies", "images")
MAY_STAND_ALONE = True  # in a project folder the verb needs no words


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `mavilt prepare`."""
    from mavilt_pl.data.sources import SOURCES

    sources = ", ".join(sorted(SOURCES))
    parser.add_argument(
        "source",
        nargs="?",
        help=f"{sources}, or a Python file with a reader of your own. In a project folder: the "
        "name of a dataset, or nothing for all of them",
    )
    parser.add_argument("root", nargs="?", type=Path, help="the dataset's folder, as downloaded")
    parser.add_argument("--out", type=Path, help="folder of the corpus")
    parser.add_argument("--name", help="the corpus's name in results (default: the source)")
    parser.add_argument(
        "--size", type=int, help="pixels along each side (default 256, or the project's)"
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
    add_reader_options(parser)
    parser.add_argument(
        "--split",
        choices=["train", "val", "test"],
        help="put every study into this split, such as test for a dataset that is never trained on",
    )
    parser.add_argument("--limit", type=int, help="read only this number of studies")
    parser.add_argument("--workers", type=int, help="processes (default: all cores)")


def add_reader_options(parser: argparse.ArgumentParser, prefix: str = "") -> None:
    """Add the options of the datasets' readers, with `prefix` before each help text."""
    from mavilt_pl.data.sources import READER_OPTIONS

    # All readers' options; a reader refuses those that it does not have.
    for option, description in READER_OPTIONS.items():
        parser.add_argument(f"--{option}", help=f"{prefix}{description}")
    parser.add_argument(
        "--follow-links",
        action="store_true",
        help=f"{prefix}read also what symbolic links in ROOT lead to outside of it",
    )


def reader_options(args: argparse.Namespace) -> dict[str, Any]:
    """The reader options that were given."""
    from mavilt_pl.data.sources import READER_OPTIONS

    # Only what was given, so that a reader can refuse an option that it does not have.
    options: dict[str, Any] = {}
    if args.follow_links:
        options["follow_links"] = True
    for name in READER_OPTIONS:
        value = getattr(args, name)
        if value is not None:
            options[name] = value
    return options


def run(args: argparse.Namespace) -> int:
    """Prepare the corpora and print their counts."""
    from mavilt_pl.errors import UserError
    from mavilt_pl.project import here

    if args.root is not None:
        if args.source is None or args.out is None:
            raise UserError("prepare SOURCE ROOT needs --out, the folder of the corpus")
        args.size = 256 if args.size is None else args.size
        return _prepare(args, {})
    # In a project folder everything is named already.
    project = here("prepare without SOURCE, ROOT and --out")
    # One corpus after another, each with all cores.
    for name in project.chosen(args.source):
        source = project.sources[name]
        of_source = argparse.Namespace(**vars(args))
        of_source.source, of_source.root = source.reader, source.folder
        of_source.out, of_source.name = args.out or Path("corpora") / name, args.name or name
        of_source.size = project.size if args.size is None else args.size
        _prepare(of_source, source.options)
    return 0


def _prepare(args: argparse.Namespace, options: Mapping[str, str]) -> int:
    """Prepare one corpus and print its counts.

    Args:
        args: of the command line.
        options: of the reader, which the command line may replace.
    """
    from mavilt_pl.data.prepare import prepare

    # Everything that can be refused is refused before a table is read.
    facts = prepare(
        args.source,
        args.root,
        args.out,
        name=args.name,
        size=_checked_size(args),
        fit=args.fit,
        workers=args.workers,
        limit=args.limit,
        views=_checked_views(args),
        questions=args.questions,
        split=args.split,
        # The reader refuses what it does not have, so that a misspelt one is not left out.
        options={**options, **reader_options(args)},
    )
    _print_counts(facts, args.out)
    # A corpus that an earlier version has prepared does not say.
    if "texts" in facts:
        print(
            f"Of {facts['studies']:,} studies kept, {facts['texts']:,} have a text; "
            f"{facts['questions']:,} questions."
        )
    # Nothing disappears silently: what was left out is listed with its reason.
    if any(total["rejected"] for total in facts["total"].values()):
        say(f"Why each was rejected: {args.out / 'rejects.csv'}")
    return 0


def _checked_size(args: argparse.Namespace) -> int:
    from mavilt_pl.errors import UserError

    # Checked here: the first image would fail otherwise, after the tables.
    if args.size < 1:
        raise UserError(f"--size {args.size}: expected a size of 1 or more")
    return args.size


def _checked_views(args: argparse.Namespace) -> list[str] | None:
    from mavilt_pl.data.records import VIEWS
    from mavilt_pl.errors import UserError

    if not args.views:
        return None
    # As one word, which needs no quotes in a shell.
    views = args.views.split(",")
    if not set(views) <= set(VIEWS):
        raise UserError(f"--views {args.views}: expected views among {', '.join(VIEWS)}")
    return views


def _print_counts(facts: dict[str, Any], out: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    # One row a split: what a reader of a paper asks for first.
    table = Table(title=plain(f"{facts['name']}: {out}"))
    table.add_column("split")
    for kind in KINDS:
        for column in ("read", "kept", "rejected"):
            table.add_column(f"{kind}\n{column}", justify="right")
    # `all` comes last, under a line of its own.
    for split, counts in {**facts["splits"], "all": facts["total"]}.items():
        if split == "all":
            table.add_section()
        cells = []
        for kind in KINDS:
            cells += [f"{count:,}" for count in counts[kind].values()]
        table.add_row(split, *cells)
    Console().print(table)
