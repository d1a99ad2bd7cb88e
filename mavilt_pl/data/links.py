"""Symbolic links in a dataset's folder: those that lead out of it are followed only if asked."""

from __future__ import annotations

import os
from pathlib import Path

from mavilt_pl.errors import Rejected


def check_link(path: Path, folder: Path) -> None:
    """Refuse a file that a symbolic link takes out of a folder.

    Args:
        path: of the file.
        folder: the dataset's, resolved.

    Raises:
        Rejected: the file lies elsewhere.
    """
    # Of the whole path: a folder above may be the link.
    target = path.resolve()
    if not target.is_relative_to(folder):
        raise Rejected(
            f"{path} leads to {target}, out of the dataset's folder; expected a file inside: "
            "give --follow-links if you trust the link"
        )


def check_top_links(folder: Path) -> None:
    """Refuse a dataset of which a part, such as `files`, is a link that leads out of its folder.

    It is said before anything is read, since every image may lie under that link.

    Raises:
        Rejected: such a link; deeper ones cost only the study that they belong to.
    """
    with os.scandir(folder) as entries:
        # Of the first level only: a listing of all files would take minutes on a network disk.
        links = sorted(entry.name for entry in entries if entry.is_symlink())
    for name in links:
        check_link(folder / name, folder.resolve())
