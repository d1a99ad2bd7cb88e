"""A training on CPU keeps the memory that a step frees."""

import subprocess
import sys
from pathlib import Path

import pytest

# In a process of its own: the allocator's settings hold until a process ends.
FAULTS = """
import resource, sys
import torch
from mavilt_pl.trainer.cpu_memory import keep_freed_memory

if sys.argv[1] == "keep" and not keep_freed_memory():
    sys.exit(77)
torch.set_num_threads(1)
for step in range(20):
    if step == 10:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    # Large enough that no default of the allocator keeps it.
    torch.ones(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(way: str, folder: Path) -> int:
    done = subprocess.run(
        [sys.executable, "-c", FAULTS, way], capture_output=True, text=True, cwd=folder
    )
    if done.returncode == 77:
        pytest.skip("this C library has no mallopt")
    return int(done.stdout)


def test_the_pages_of_a_freed_tensor_are_used_again(tmp_path: Path) -> None:
    # Ten tensors of 64 MB are 164,000 pages of 4 KiB, or 320 of 2 MiB.
    assert faults("keep", tmp_path) * 10 < faults("default", tmp_path)
