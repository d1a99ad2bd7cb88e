"""A run's folder belongs to one job at a time."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path

from mavilt_pl.data.study import DataError
from mavilt_pl.lock import held

NAME = ".lock"


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Hold a run's folder, made where it is missing; for the first process of a job alone.

    A lock that ends with its process: one that lived on in the loader's forked workers would refuse
    a job that is started again at once. Where the file system has no locks, one warning, and no
    protection. Raises `DataError` where another job holds the folder, or where it cannot be
    written.
    """
    path, stack = folder / NAME, ExitStack()
    try:
        file = stack.enter_context(held(path, wait=False))
    except OSError as error:
        raise DataError(
            f"the run's folder {folder} cannot be written ({error.strerror}): mend its "
            f"permissions, or choose another "
            "trainer.default_root_dir"
        ) from None
    with stack:
        if file is None:
            raise DataError(
                f"the run's folder {folder} is in use by another job{_holder(path)}: wait for it "
                f"or end it, or choose "
                "another trainer.default_root_dir"
            )
        file.truncate(0)
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        json.dump(
            {
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "job": os.environ.get("SLURM_JOB_ID"),
                "since": now,
            },
            file,
        )
        file.flush()
        yield


def _holder(path: Path) -> str:
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        job = f", SLURM job {said['job']}" if said["job"] else ""
        return f" (process {said['pid']} on {said['host']}{job}, since {said['since']})"
    except (OSError, ValueError, KeyError):
        return ""
