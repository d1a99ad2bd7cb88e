"""kill -9 of a command: its worker processes end with it, and hold no memory for hours."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests.trainer.tiny_runs import stage1, started, vqgan

pytestmark = pytest.mark.slow
LONG = ["--trainer.max_steps=1000000", "--trainer.limit_val_batches=0", "--checkpoint_every=100000"]


def processes(group: int) -> dict[int, str]:
    """Command lines of the processes of a group, zombies aside."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            # After the name, which may hold any letter: state, parent, group.
            state, _, of_group = (folder / "stat").read_text().rpartition(")")[2].split()[:3]
            command = (folder / "cmdline").read_text().replace("\0", " ")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(of_group) == group and state != "Z":
            found[int(folder.name)] = command
    return found


def commands(chain: Path, corpus: Path, raw: Path, out: Path) -> dict[str, list[str]]:
    """Each verb that starts processes, at work that takes minutes."""
    return {
        "phantom": ["phantom", "mimic", str(out), "--studies=20000", "--size=512", "--workers=2"],
        "prepare": ["prepare", "mimic-cxr-jpg", str(raw), f"--out={out}", "--workers=2"],
        "fit": [*vqgan(corpus, out), *LONG, "--data.num_workers=2"],
        "fit on two processes": [
            *stage1(chain, corpus, out),
            *LONG,
            "--data.num_workers=1",
            "--trainer.devices=2",
            "--trainer.strategy=ddp_find_unused_parameters_true",
        ],
        "run": ["run", "demo", f"--out={out}"],
    }


@pytest.mark.parametrize("name", ["phantom", "prepare", "fit", "fit on two processes", "run"])
def test_a_killed_command_leaves_no_process(
    name: str, chain: Path, corpus_path: Path, mimic_root: Path, tmp_path: Path
) -> None:
    words = commands(chain, corpus_path, mimic_root, tmp_path / "out")[name]
    if name == "prepare":
        words.append("--size=4096")
    running = started(words)
    try:
        end = time.monotonic() + 120
        # Three: the command and two workers; a fork server is a fourth.
        while len(processes(running.pid)) < 3:
            assert running.poll() is None, "the command ended before it had workers"
            assert time.monotonic() < end, processes(running.pid)
            time.sleep(0.02)
        time.sleep(0.5)
        running.kill()
        running.wait()
        end = time.monotonic() + 60
        while processes(running.pid) and time.monotonic() < end:
            time.sleep(0.1)
        assert not processes(running.pid)
    finally:
        if processes(running.pid):
            os.killpg(running.pid, signal.SIGKILL)
