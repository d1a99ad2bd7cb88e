"""Processes of a training that end with the process that started them.

Lightning starts the second and further processes of a machine as commands of their own. If the
first one is killed while they still start, they would wait for it for half an hour.
"""

from __future__ import annotations

import os
import threading
import time

PARENT = "MAVILT_PARENT"  # environment variable: the process that may start others
INTERVAL = 1.0  # seconds between two looks


def end_with_parent() -> None:
    """Exit when the process that started this one has ended, however it did.

    The first process of a training leaves its number to those that it starts.
    """
    # torchrun ends its processes itself.
    is_started_by_another = (
        int(os.environ.get("LOCAL_RANK") or 0) > 0 and "TORCHELASTIC_RUN_ID" not in os.environ
    )
    parent = os.environ.get(PARENT)
    if is_started_by_another and parent is not None:
        threading.Thread(target=_watch, args=(int(parent),), daemon=True).start()
    else:
        os.environ[PARENT] = str(os.getpid())


def _watch(parent: int) -> None:
    # The number of the parent changes at its death: the process then belongs to another one.
    while os.getppid() == parent:
        time.sleep(INTERVAL)
    # Not sys.exit, which in a thread ends the thread alone.
    os._exit(1)
