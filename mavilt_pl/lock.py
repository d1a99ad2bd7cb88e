"""One lock for all that several processes must not do at once: a file that one of them, or only
readers, hold.
"""

from __future__ import annotations

import errno
import fcntl
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


def _opened(path: Path) -> IO[str]:
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            return path.open("a+", encoding="utf-8")
        except FileNotFoundError:  # another process has just tidied the folder away
            continue


@contextmanager
def held(
    path: Path,
    wait: bool = True,
    *,
    shared: bool = False,
    by_children_too: bool = False,
) -> Iterator[IO[str] | None]:
    """Hold a lock file, made where it is missing; gives it open, or None where another process has
    it and `wait` is not wanted.

    POSIX's lock (`lockf`) ends with the process that took it, however that ends; `by_children_too`,
    flock's, which lives on in its forked workers. `shared` locks keep out those that are not. Where
    the file system has no locks there is one warning, and everybody is told that he holds it.
    Raises OSError where the file cannot be made.
    """
    with _opened(path) as file:
        try:
            lock = fcntl.flock if by_children_too else fcntl.lockf
            lock(
                file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
            )
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                yield None
                return
            warnings.warn(
                f"{path.parent} lies where files cannot be locked ({error.strerror}): see yourself "
                f"that one process "
                "alone works there",
                stacklevel=3,
            )
        yield file
