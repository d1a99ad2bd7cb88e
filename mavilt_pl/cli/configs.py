"""`mavilt configs [ls | show NAME | cp NAME FILE]`: the configs that come with the package."""

from __future__ import annotations

import argparse
from pathlib import Path

from mavilt_pl.cli.terminal import say
from mavilt_pl.config_files import CONFIGS, config_text, find_config, list_configs
from mavilt_pl.errors import UserError

MAY_STAND_ALONE = True  # without words it lists


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `mavilt configs`."""
    parser.add_argument(
        "action",
        nargs="?",
        choices=("ls", "show", "cp"),
        default="ls",
        help="list them (default), print one as it is read, or copy one to edit it",
    )
    parser.add_argument("name", nargs="?", help="of a config, such as stage1.yaml, or a file here")
    parser.add_argument("to", nargs="?", type=Path, help="with cp: the new file")


def run(args: argparse.Namespace) -> int:
    """List, print or copy."""
    if args.action == "ls":
        _list()
        return 0
    if args.name is None:
        raise UserError(f"configs {args.action} needs the name of a config; `mavilt configs` lists")
    path = find_config(args.name)
    # With what it extends and the project's places: what a training reads.
    text = config_text(path) or path.read_text(encoding="utf-8")
    if args.action == "show":
        say(text.rstrip("\n"))
        return 0
    # The file as it is, with its comments.
    target = args.to or Path(path.name)
    if target.is_dir():
        target = target / path.name
    if target.exists():
        raise UserError(f"{target} is there already: name another file, or move it away")
    target.write_bytes(path.read_bytes())
    say(target)
    return 0


def _list() -> None:
    """Each config with the first line of its comment."""
    names = list_configs()
    width = max(map(len, names))
    for name in names:
        first = (CONFIGS / name).read_text(encoding="utf-8").split("\n", 1)[0]
        # A config without a comment is an overlay whose name says all.
        about = first.lstrip("# ") if first.startswith("#") else ""
        # Its first sentence; what follows is for whoever opens the file.
        say(f"{name:{width}}  {about.split('. ')[0].rstrip('.')}".rstrip())
