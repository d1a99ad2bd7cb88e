"""The SLURM job of this process, and how a command leaves when SLURM asks it to.

Nothing heavy is imported here.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

logger = logging.getLogger(__name__)


def slurm_job() -> str | None:
    """The job, or the task of an array, as `scontrol` names it; None outside SLURM."""
    # SLURM_JOB_ID of a task names it too, but people know it as JOB_TASK, as squeue shows it.
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    if array and task:
        return f"{array}_{task}"
    return os.environ.get("SLURM_JOB_ID")


def requeue(job: str, progress: str) -> str:
    """Put a job back into the queue; describe the outcome in words.

    SLURM may end the job at once, so `progress` is logged first.
    """
    logger.warning("%s; job %s goes back into the queue", progress, job)
    try:
        # A controller that does not answer must not keep the job from ending.
        done = subprocess.run(
            ["scontrol", "requeue", job], capture_output=True, text=True, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"job {job} could not be requeued ({error}): submit the same command again"
    if done.returncode:
        reason = " ".join((done.stderr or done.stdout).split())
        return f"job {job} could not be requeued ({reason}): submit the same command again"
    return f"job {job} is back in the queue and continues from there"


class PreemptedExit(Exception):
    """A signal asked the command to leave; it has saved its work and exits.

    Args:
        number: the signal.
        text: what was saved, for people.
        status: exit status of the process.
    """

    def __init__(self, number: signal.Signals, text: str, status: int):
        super().__init__(text)
        self.number, self.status = number, status


@contextmanager
def exit_on_sigusr1(can_resume: Callable[[], bool]) -> Iterator[None]:
    """Raise `PreemptedExit` at SIGUSR1, for commands that keep finished work by themselves.

    Args:
        can_resume: whether the same command would continue from here. If so, the job is requeued;
            a command that would start again is not, because it would meet its limit every time.
    """

    def leave(*_: Any) -> None:
        text = "SIGUSR1: finished work is kept"
        if not can_resume():
            text = "SIGUSR1: this step would start again from nothing; give it more time (--time)"
        elif job := slurm_job():
            text += f"; {requeue(job, text)}"
        raise PreemptedExit(signal.SIGUSR1, text, 128 + signal.SIGUSR1)

    # An exception in the main thread unwinds `with` blocks, so locks and temporary files are
    # released.
    before = signal.signal(signal.SIGUSR1, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR1, before if before is not None else signal.SIG_DFL)
