"""Pools of processes that stop at once when they are interrupted, and outlive what kills a worker."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any


def _leave_interrupts_to_the_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _executor(workers: int | None, preload: str | None = None) -> ProcessPoolExecutor:
    # Forked from a server of its own, not from this process: that one may hold threads, and a fork
    # of those can hang.
    context = multiprocessing.get_context("forkserver")
    if preload is not None and preload != "__main__":
        context.set_forkserver_preload([preload])
    return ProcessPoolExecutor(
        workers or os.cpu_count() or 1, context, _leave_interrupts_to_the_parent
    )


@contextmanager
def pool(workers: int | None = None) -> Iterator[ProcessPoolExecutor]:
    """`workers` processes (None: one a core). On Ctrl-C or an error, work that has not begun is
    dropped, not done first.
    """
    executor = _executor(workers)
    try:
        yield executor
    except BaseException:
        executor.shutdown(wait=True, cancel_futures=True)
        raise
    executor.shutdown()


class CarefulMap:
    """`map` over processes, in order, for work on files of strangers: a task that kills its process
    or takes longer than `patience` seconds gives what `failed(task, why)` makes of it, and the
    others are done all the same.

    Args:
        function: of one task; both are pickled.
        workers: processes; None: one a core.
        patience: seconds that a task may take.
    """

    def __init__(
        self,
        function: Callable[[Any], Any],
        failed: Callable[[Any, str], Any],
        workers: int | None = None,
        patience: float = 60.0,
    ):
        self.function, self.failed, self.patience = function, failed, patience
        self.workers = workers or os.cpu_count() or 1
        self.executor = _executor(self.workers, function.__module__)

    def close(self) -> None:
        self.executor.shutdown(wait=False, cancel_futures=True)

    def _restart(self, workers: int) -> None:
        for process in list((self.executor._processes or {}).values()):
            process.kill()
        self.close()
        self.executor = _executor(workers)

    def _alone(self, task: Any) -> Any:
        """The task in a process of its own, since some task of its neighbourhood is not to be
        trusted.
        """
        try:
            return self.executor.submit(self.function, task).result(self.patience)
        except BrokenProcessPool:
            why = "the decoder died on it"
        except TimeoutError:
            why = f"the decoder took more than {self.patience:.0f} s"
        self._restart(1)
        return self.failed(task, why)

    def __call__(self, tasks: Iterable[Any]) -> Iterator[Any]:
        rest = iter(tasks)
        # Many at a time: results come in order, and a slow task must not keep the other processes
        # waiting behind it.
        waiting: deque[tuple[Any, Future | None]] = (
            deque()
        )  # None: the pool broke before it could be handed over
        while True:
            while len(waiting) < 32 * self.workers and (task := next(rest, None)) is not None:
                waiting.append((task, self._submit(task)))
            if not waiting:
                return
            first = waiting[0][1]
            try:
                if first is None:
                    raise BrokenProcessPool
                result = first.result(self.patience)
            except (
                BrokenProcessPool,
                TimeoutError,
            ):  # whose fault it was is found by doing what was under way one by one
                self._restart(1)
                for task, _ in waiting:
                    yield self._alone(task)
                waiting.clear()
                self._restart(self.workers)
            else:
                waiting.popleft()
                yield result

    def _submit(self, task: Any) -> Future | None:
        try:
            return self.executor.submit(self.function, task)
        except BrokenProcessPool:
            return None
