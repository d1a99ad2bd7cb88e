"""One job a run folder, and a folder that cannot be written."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_runs import vqgan

from mavilt_pl.cli import main

HOLD = """
import sys, time
from pathlib import Path
from mavilt_pl.running.folder import claimed
with claimed(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.mark.slow
def test_a_second_job_is_refused_and_a_dead_one_is_no_obstacle(
    corpus_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        assert main(vqgan(corpus_path, tmp_path, "--trainer.max_steps=1")) == 1
        said = capsys.readouterr().err
        assert f"the run's folder {tmp_path} is in use by another job (process {holder.pid} on " in said
        assert f"since {time.strftime('%Y-')}" in said
        assert not (tmp_path / "checkpoints").exists()
    finally:
        holder.kill()
        holder.wait()
    assert main(vqgan(corpus_path, tmp_path, "--trainer.max_steps=1")) == 0


def test_a_folder_that_cannot_be_written_is_told(
    corpus_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert main(vqgan(corpus_path, tmp_path / "file" / "run", "--trainer.max_steps=1")) == 1
    said = capsys.readouterr().err
    assert said.startswith("mavilt: the run's folder") and "cannot be written (Not a directory)" in said


@pytest.mark.slow
def test_checkpoints_that_cannot_be_written_are_told_before_the_first_step(
    corpus_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "checkpoints").write_text("a file where the folder should be")
    assert main(vqgan(corpus_path, tmp_path, "--trainer.max_steps=1")) == 1
    said = capsys.readouterr().err
    assert said.count("mavilt:") == 1 and f"checkpoints cannot be written to {tmp_path / 'checkpoints'}" in said
