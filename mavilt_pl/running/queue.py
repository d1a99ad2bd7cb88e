"""The SLURM job that this process belongs to, and the way back into its queue. Nothing heavy is
imported here.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


def job() -> str | None:
    """The SLURM job, or the task of an array, as `scontrol` names it; None outside SLURM."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")


def requeue(number: str, done_so_far: str) -> str:
    """Put a SLURM job back into the queue; says how that went. SLURM may end the job before it can
    tell more, so what it has done is told first.
    """
    print(
        f"mavilt: {done_so_far}; job {number} goes back into the queue", file=sys.stderr, flush=True
    )
    try:
        done = subprocess.run(
            ["scontrol", "requeue", number], capture_output=True, text=True, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"job {number} could not be put back in the queue ({error}): submit the same command again"
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split())
        return f"job {number} could not be put back in the queue ({said}): submit the same command again"
    return f"job {number} is back in the queue and goes on from there"


class Left(Exception):
    """The run was asked to leave, has saved, and does."""

    def __init__(self, number: signal.Signals, text: str, code: int):
        super().__init__(text)
        self.number, self.code = number, code


@contextmanager
def leaving(goes_on: Callable[[], bool]) -> Iterator[None]:
    """Within, SIGUSR1 raises `Left` wherever this process is: for work that keeps what is done by
    itself.

    `goes_on`: whether the same command would now go on from there; then the job goes back into the
    queue. One that would begin anew does not: it would meet its time limit again and again.
    """

    def leave(*_: Any) -> None:
        text = "SIGUSR1: what is finished is kept"
        if not goes_on():
            text = "SIGUSR1: what this step has done would begin anew; give it more time (--time)"
        elif queued := job():
            text += f"; {requeue(queued, text)}"
        raise Left(signal.SIGUSR1, text, 128 + signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR1, before if before is not None else signal.SIG_DFL)
