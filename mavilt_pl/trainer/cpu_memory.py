"""Memory of a training on CPU: blocks that one step frees are kept for the next."""

from __future__ import annotations

import ctypes

# Parameters of mallopt(3), from glibc's malloc.h.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
LARGE = 2**30  # bytes; larger blocks are still returned to the system at once
PAD = 2**26  # bytes by which the heap grows


def keep_freed_memory() -> bool:
    """Let the allocator keep freed blocks of up to 1 GiB; whether this C library can.

    By default glibc maps each large tensor newly and returns it when it is freed, so the kernel
    zeroes the same pages again at every step. No result changes. The process keeps its peak until
    it ends; the peak itself stays (benchmarks/README.md).
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        # Other C libraries than glibc have no such function.
        return False
    # mallopt returns 1 on success and 0 otherwise.
    settings = {M_MMAP_THRESHOLD: LARGE, M_TRIM_THRESHOLD: LARGE, M_TOP_PAD: PAD}
    return all(mallopt(name, value) == 1 for name, value in settings.items())
