"""A run's folder belongs to one job at a time."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path

from mavilt_pl.errors import UserError
from mavilt_pl.parallel.file_lock import file_lock

NAME = ".lock"


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Hold a run's folder, created if missing; only for the first process of a job.

    The lock ends with its process: one that lived on in the loader's forked workers would refuse a
    job that is restarted at once. On a file system without locks it warns once.

    Raises:
        UserError: another job holds the folder, or it cannot be written.
    """
    # A stack, so that only opening the lock is inside `try`, not what the caller does under it.
    path, stack = folder / NAME, ExitStack()
    try:
        file = stack.enter_context(file_lock(path, wait=False))
    except OSError as error:
        raise UserError(
            f"the run's folder {folder} cannot be written ({error.strerror}): correct its "
            "permissions, or choose another trainer.default_root_dir"
        ) from None
    with stack:
        if file is None:
            raise UserError(
                f"the run's folder {folder} is in use by another job{_holder(path)}: wait for it "
                "or stop it, or choose another trainer.default_root_dir"
            )
        # The lock is the file's lock and not its contents; these are for the message of another
        # job.
        file.truncate(0)
        holder = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "job": os.environ.get("SLURM_JOB_ID"),
            "since": datetime.now().astimezone().isoformat(timespec="seconds"),
        }
        json.dump(holder, file)
        file.flush()
        yield


def _holder(path: Path) -> str:
    """Who holds the lock, in words; empty if the file does not say."""
    try:
        holder = json.loads(path.read_text(encoding="utf-8"))
        job = f", SLURM job {holder['job']}" if holder["job"] else ""
        return f" (process {holder['pid']} on {holder['host']}{job}, since {holder['since']})"
    except (OSError, ValueError, KeyError):
        return ""
