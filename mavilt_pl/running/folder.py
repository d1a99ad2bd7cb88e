"""A run's folder belongs to one job at a time."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from mavilt_pl.data.study import DataError

NAME = ".lock"


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Hold a run's folder, made where it is missing; for the first process of a job alone.

    The lock is POSIX's (`lockf`): it ends with the process that took it, however that ends. flock's would live on in the
    loader's forked workers, and refuse a job that is started again at once. Where the file system has no locks, one
    warning, and no protection. Raises `DataError` where another job holds the folder, or where it cannot be written."""
    path = folder / NAME
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = path.open("a+", encoding="utf-8")
    except OSError as error:
        raise DataError(
            f"the run's folder {folder} cannot be written ({error.strerror}): mend its permissions, or choose another "
            "trainer.default_root_dir"
        ) from None
    with file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise DataError(
                    f"the run's folder {folder} is in use by another job{_holder(path)}: wait for it or end it, or choose "
                    "another trainer.default_root_dir"
                ) from None
            warnings.warn(f"{folder} lies where files cannot be locked ({error.strerror}): see yourself that one job "
                          "alone uses it", stacklevel=2)  # fmt: skip
        file.truncate(0)
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        json.dump({"host": socket.gethostname(), "pid": os.getpid(), "job": os.environ.get("SLURM_JOB_ID"), "since": now}, file)  # fmt: skip
        file.flush()
        yield


def _holder(path: Path) -> str:
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        job = f", SLURM job {said['job']}" if said["job"] else ""
        return f" (process {said['pid']} on {said['host']}{job}, since {said['since']})"
    except (OSError, ValueError, KeyError):
        return ""
