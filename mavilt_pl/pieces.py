"""Work in pieces that any number of processes do together, on one machine or on many: each piece is
done by one of them.

Nobody deals the pieces out. Who comes takes the next one that is neither done nor held; a piece
whose holder has died is free again, because the lock (POSIX's, `lockf`) ends with the process. So
the same command may be given once or a hundred times, a scheduler's array is nothing but that, and
it does not matter in which order its jobs start, or whether one is killed. Across machines it needs
a file system that has such locks (NFS, GPFS, Lustre with `-o flock`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Container, Iterator
from pathlib import Path

from mavilt_pl.lock import held


def names_in(folder: Path) -> set[str]:
    """What a folder holds now, from a listing; nothing where it is gone.

    Asked for one name, NFS may answer for a while from memory that there is none, although another
    machine has written it.
    """
    try:
        return set(os.listdir(folder))
    except FileNotFoundError:
        return set()


def open_pieces(folder: Path, count: int, done: Callable[[], Container[int]]) -> Iterator[int]:
    """The numbers of the pieces that fall to this process, each held until the next one is asked
    for.

    First those that nobody holds; then it waits for those that others hold, and takes what one of
    them has left undone. So when this ends all `count` pieces are done, whoever did them. `done`
    gives the numbers of those that are, from a listing; it is asked again once a piece is held.
    Locks lie in `folder`.
    """
    for wait in (False, True):
        for number in range(count):
            if number not in done():
                with held(folder / f"{number:05d}.lock", wait) as mine:
                    if mine and number not in done():
                        yield number
