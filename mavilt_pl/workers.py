"""A pool of processes that stops at once when it is interrupted."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager


def _leave_interrupts_to_the_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def pool(workers: int | None = None) -> Iterator[ProcessPoolExecutor]:
    """`workers` processes (None: one a core). On Ctrl-C or an error, work that has not begun is dropped, not done first."""
    executor = ProcessPoolExecutor(workers or os.cpu_count() or 1, initializer=_leave_interrupts_to_the_parent)
    try:
        yield executor
    except BaseException:
        executor.shutdown(wait=True, cancel_futures=True)
        raise
    executor.shutdown()
