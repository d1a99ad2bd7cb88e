"""Worker processes that end with their parent, and a map that survives what kills a worker."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any

import pebble


def _start_worker() -> None:
    """Leave Ctrl-C to the parent, and exit when the parent has died, however it died."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_exit_with, args=(parent.sentinel,), daemon=True).start()


def _exit_with(sentinel: int) -> None:
    # The sentinel becomes readable when the parent ends, also by SIGKILL, which no handler sees.
    multiprocessing.connection.wait([sentinel])
    # Not sys.exit, which in a thread ends the thread alone.
    os._exit(1)


def _context(preload: str | None = None) -> Any:
    # Workers are forked from a server, not from this process: it may hold threads, and a fork of a
    # process with threads can hang.
    context = multiprocessing.get_context("forkserver")
    if preload is not None and preload != "__main__":
        # The server imports the function's module once; each worker then starts with it.
        context.set_forkserver_preload([preload])
    return context


@contextmanager
def process_pool(workers: int | None = None) -> Iterator[ProcessPoolExecutor]:
    """An executor of `workers` processes (None: one a core).

    After an error or Ctrl-C, work that has not started is dropped.
    """
    executor = ProcessPoolExecutor(workers or os.cpu_count() or 1, _context(), _start_worker)
    try:
        yield executor
    except BaseException:
        # Without cancelling, the interpreter would finish all scheduled work before it exits.
        executor.shutdown(wait=True, cancel_futures=True)
        raise
    executor.shutdown()


class IsolatedMap:
    """An ordered `map` over processes, for work on files that nobody vouches for.

    A task that kills its process, or takes longer than `timeout`, yields `failed(task, reason)`;
    all other tasks are done as usual.

    Args:
        function: called with one task in a worker; both are pickled.
        failed: what a failed task yields, from the task and the reason.
        workers: number of processes; None for one a core.
        timeout: seconds that a task may take.
    """

    AHEAD = 32  # tasks scheduled for each worker, so that one slow task does not stop the others

    def __init__(
        self,
        function: Callable[[Any], Any],
        failed: Callable[[Any, str], Any],
        workers: int | None = None,
        timeout: float = 60.0,
    ):
        self.function, self.failed, self.timeout = function, failed, timeout
        self.workers = workers or os.cpu_count() or 1
        self.pool = pebble.ProcessPool(
            self.workers, initializer=_start_worker, context=_context(function.__module__)
        )

    def close(self) -> None:
        """Stop the workers; drop what they have not finished."""
        self.pool.stop()
        self.pool.join()

    def __call__(self, tasks: Iterable[Any]) -> Iterator[Any]:
        """Yield a result for each task, in order."""
        remaining = iter(tasks)
        scheduled: deque[tuple[Any, Any]] = deque()
        while True:
            while len(scheduled) < self.AHEAD * self.workers:
                try:
                    task = next(remaining)
                except StopIteration:
                    break
                # pebble counts the time from the moment a worker takes the task, and kills the
                # worker after it.
                future = self.pool.schedule(self.function, args=[task], timeout=self.timeout)
                scheduled.append((task, future))
            if not scheduled:
                return
            # The oldest first: results come in the order of the tasks, whichever is ready.
            task, future = scheduled.popleft()
            try:
                yield future.result()
            except TimeoutError:
                yield self.failed(task, f"the decoder took more than {self.timeout:.0f} s")
            except pebble.ProcessExpired:
                # A segmentation fault, or the kernel's out-of-memory killer. pebble starts another
                # worker.
                yield self.failed(task, "the decoder died on it")
