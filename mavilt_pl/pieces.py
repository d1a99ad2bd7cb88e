"""Work in pieces that any number of processes do together, on one machine or on many: each piece is done by one of them.

Nobody deals the pieces out. Who comes takes the next one that is neither done nor held; a piece whose holder has died is free
again, because the lock (POSIX's, `lockf`) ends with the process. So the same command may be given once or a hundred times, a
scheduler's array is nothing but that, and it does not matter in which order its jobs start, or whether one is killed. Across
machines it needs a file system that has such locks (NFS, GPFS, Lustre with `-o flock`).
"""

from __future__ import annotations

import errno
import fcntl
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


def _opened(path: Path) -> IO[bytes]:
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            return path.open("a+b")
        except FileNotFoundError:  # another process has just tidied the folder away
            continue


@contextmanager
def held(path: Path, wait: bool = True) -> Iterator[bool]:
    """Hold a lock file, made where it is missing; False where another process has it and `wait` is not wanted.

    Where the file system has no locks there is one warning, and everybody is told that he holds it."""
    with _opened(path) as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                yield False
                return
            warnings.warn(f"{path.parent} lies where files cannot be locked ({error.strerror}): see yourself that one process "
                          "alone works there", stacklevel=3)  # fmt: skip
        yield True


def open_pieces(folder: Path, count: int, done: Callable[[int], bool]) -> Iterator[int]:
    """The numbers of the pieces that fall to this process, each held until the next one is asked for.

    First those that nobody holds; then it waits for those that others hold, and takes what one of them has left undone. So
    when this ends all `count` pieces are done, whoever did them. `done` is asked again once a piece is held; locks lie in
    `folder`."""
    for wait in (False, True):
        for number in range(count):
            if not done(number):
                with held(folder / f"{number:05d}.lock", wait) as mine:
                    if mine and not done(number):
                        yield number
