"""The smallest round of `benchmarks/kill.py`: a training is killed, resumed, and ends equal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "kill.py"


@pytest.mark.slow
def test_killed_at_a_random_moment(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--kills", "1", "--verbs", "vqgan"]
    running = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    try:
        said, _ = running.communicate(timeout=600)
    finally:
        if running.poll() is None:
            os.killpg(running.pid, signal.SIGKILL)
    assert running.returncode == 0, said
    assert said.count(": equal") == 1
