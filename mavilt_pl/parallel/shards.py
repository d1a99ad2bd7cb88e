"""Work in shards that any number of processes share, on one machine or on many.

No coordinator assigns the shards. A process claims the next shard that is neither done nor locked.
If a holder dies, its shard is free again, because a POSIX lock ends with its process. So the same
command may be started once or a hundred times, in any order, and any of them may be killed. Across
machines this needs a file system with such locks (NFS, GPFS, Lustre with `-o flock`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Container, Iterator
from pathlib import Path

from mavilt_pl.parallel.file_lock import file_lock


def list_names(folder: Path) -> set[str]:
    """Names in a folder from a fresh listing; empty if the folder is gone.

    Asked for one name, NFS may answer from its cache that a file is missing although another
    machine has written it. A listing does not.
    """
    try:
        return set(os.listdir(folder))
    except FileNotFoundError:
        return set()


def claim_shards(folder: Path, count: int, done: Callable[[], Container[int]]) -> Iterator[int]:
    """Yield the shards that this process should work on, each locked until the next is requested.

    The first pass takes shards that nobody holds. The second pass waits for those that others hold
    and takes what a holder left undone. When it ends, all `count` shards are done.

    Args:
        folder: where the lock files lie.
        count: number of shards.
        done: returns the numbers of finished shards, from a listing; asked again under each lock.
    """
    for wait in (False, True):
        for number in range(count):
            # Without the lock: a listing costs less than opening a file on a network file system.
            if number in done():
                continue
            with file_lock(folder / f"{number:05d}.lock", wait) as lock:
                # Somebody may have finished it between the listing and the lock.
                if lock and number not in done():
                    yield number
