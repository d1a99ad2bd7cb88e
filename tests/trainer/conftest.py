"""What the tests of this folder share."""

from __future__ import annotations

from collections.abc import Iterator

import one_node
import pytest


@pytest.fixture(scope="session")
def real_slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[one_node.Slurm]:
    """A SLURM of one node; skips where it is not installed (Debian: apt-get install slurm-wlm
    munge).
    """
    if absent := one_node.missing():
        pytest.skip(
            f"SLURM is not installed: no {', '.join(absent)} (Debian: apt-get install slurm-wlm "
            f"munge)"
        )
    with one_node.slurm(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


@pytest.fixture
def slurm(real_slurm: one_node.Slurm, monkeypatch: pytest.MonkeyPatch) -> one_node.Slurm:
    """The same, and this test's programs find it."""
    for name, value in {**real_slurm.environment, "OMP_NUM_THREADS": "1"}.items():
        monkeypatch.setenv(name, value)
    return real_slurm
