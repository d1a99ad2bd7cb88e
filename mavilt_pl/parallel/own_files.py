"""Replace or delete only what this package has made: every other file is the user's."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from mavilt_pl.errors import UserError
from mavilt_pl.parallel.shards import list_names

HEAD = 1 << 16  # bytes in which a file of ours names itself


def check_replaceable(path: Path, mark: str) -> None:
    """Check that a file may be written: it does not exist, or an earlier run of ours made it.

    Args:
        path: the file.
        mark: text that a file of ours has near its beginning.

    Raises:
        UserError: something else is there.
    """
    try:
        with path.open("rb") as file:
            head = file.read(HEAD)
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(
            f"{path} cannot be replaced ({error.strerror}): move it, or choose another folder"
        ) from None
    # Nothing is lost with an empty file or an empty JSON object.
    if mark.encode() not in head and head.strip() not in (b"", b"{}"):
        raise UserError(
            f"{path} was not written by this command, and would be replaced: move it, or choose "
            "another folder"
        )


def check_folder(out: Path, marks: Collection[str], what: str) -> None:
    """Check that a folder is empty or new, or was begun by an earlier run of ours.

    Args:
        out: the folder.
        marks: paths below it, one of which is there once the command has begun.
        what: which the folder would be, for the message.

    Raises:
        UserError: the folder holds files of somebody else.
    """
    names = list_names(out)
    if names and not any((out / mark).exists() for mark in marks):
        raise UserError(
            f"{out} is not empty and not {what} in progress (it holds {min(names)} but no "
            f"{' or '.join(marks)}): choose another --out"
        )
