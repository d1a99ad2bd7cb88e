"""One file lock for everything that several processes must not do at once.

`filelock` and `portalocker` were considered: neither offers both POSIX locks, which end with the
process that took them, and flock's, which live on in forked workers, with shared holders of each.
"""

from __future__ import annotations

import errno
import fcntl
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from mavilt_pl.errors import MaviltWarning


def _open(path: Path) -> IO[str]:
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            return path.open("a+", encoding="utf-8")
        except FileNotFoundError:  # another process has just removed the folder
            continue


@contextmanager
def file_lock(
    path: Path, wait: bool = True, *, shared: bool = False, inherited: bool = False
) -> Iterator[IO[str] | None]:
    """Hold a lock file, created if missing.

    Args:
        path: the lock file; its folder is created if missing.
        wait: block until the lock is free; otherwise yield None while another process holds it.
        shared: allow other shared holders.
        inherited: use flock, which forked workers keep holding, instead of POSIX's lockf, which
            ends with the process that took it.

    Yields the open file. If the file system has no locks, it warns once and yields the file.

    Raises:
        OSError: the file cannot be created.
    """
    # lockf needs a file open for reading (shared) or writing (exclusive): `a+` is both.
    operation = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    if not wait:
        operation |= fcntl.LOCK_NB
    with _open(path) as file:
        try:
            # Looked up here and not at import, so that a test can replace it.
            lock = fcntl.flock if inherited else fcntl.lockf
            lock(file, operation)
        except OSError as error:
            # POSIX allows either number for "somebody else holds it".
            if error.errno in (errno.EACCES, errno.EAGAIN):
                yield None
                return
            warnings.warn(
                f"{path.parent} lies on a file system without locks ({error.strerror}): make sure "
                "that only one process works there",
                MaviltWarning,
                stacklevel=3,
            )
        yield file
