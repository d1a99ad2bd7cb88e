"""Write a file whole or not at all: into a temporary name next to it, then rename."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


@contextmanager
def atomic_open(path: Path, mode: str = "w", durable: bool = False, **options: Any) -> Iterator[IO]:
    """Open a temporary file that replaces `path` when the block ends without an error.

    The temporary name is hidden, unique to the process, and created exclusively: it never
    overwrites a user's file. An error removes it and leaves `path` as it was.

    Args:
        path: the file to write.
        mode: `w` or `wb`.
        durable: flush the file and its name to the disk, so that it survives a loss of power.
        options: as of `open`; text is UTF-8 unless `encoding` says otherwise.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "note.txt"
    ...     with atomic_open(path) as file:
    ...         _ = file.write("whole")
    ...     path.read_text()
    'whole'
    """
    if "b" not in mode:
        options.setdefault("encoding", "utf-8")
    # Process ids repeat from machine to machine, and several machines may write into one folder.
    unique = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
    part = path.with_name(f".{path.name}.{unique}.part")
    try:
        with part.open(mode.replace("w", "x"), **options) as file:
            yield file
            if durable:
                file.flush()
                # Before the rename: otherwise a loss of power may leave the new name with empty
                # contents.
                os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        # Ctrl-C too must not leave a temporary file.
        part.unlink(missing_ok=True)
        raise
    if durable:
        sync_folder(path.parent)


def atomic_write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with atomic_open(path) as file:
        file.write(text)


def atomic_write_bytes(path: Path, data: bytes | memoryview) -> None:
    """Write a binary file whole or not at all."""
    with atomic_open(path, "wb") as file:
        file.write(data)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a loss of power."""
    try:
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError:
        pass  # some network file systems cannot, and the rename itself has succeeded
