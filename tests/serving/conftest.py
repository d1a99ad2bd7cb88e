"""A server of a tiny model, in a process of its own, as a user starts it."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass
class Server:
    """A running `mavilt serve`.

    Args:
        address: of the page.
        process: of the server.
        log: what it printed.
    """

    address: str
    process: subprocess.Popen[str]
    log: Path


@pytest.fixture(scope="module")
def server(chain: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    pytest.importorskip("gradio")
    log = tmp_path_factory.mktemp("serve") / "log"
    command = [sys.executable, "-m", "mavilt_pl.cli", "serve", "--port", "0", "--device", "cpu"]
    with log.open("w") as output:
        process = subprocess.Popen(
            [*command, "--model", str(chain / "stage2")],
            stdout=subprocess.PIPE,
            stderr=output,
            text=True,
        )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:\d+", line)
        assert found, log.read_text()
        yield Server(found[0], process, log)
    finally:
        process.terminate()
        process.wait(timeout=60)
