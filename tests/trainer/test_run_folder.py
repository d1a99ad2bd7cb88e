"""One job a run folder, and a folder that cannot be written."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_runs import checkpoint, vqgan

from mavilt_pl.cli import main

HOLD = """
import sys, time
from pathlib import Path
from mavilt_pl.trainer.run_lock import run_lock
with run_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.mark.slow
def test_a_second_job_is_refused_and_a_dead_one_is_no_obstacle(
    corpus_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        assert main(vqgan(corpus_path, tmp_path, "--trainer.max_steps=1")) == 1
        said = capsys.readouterr().err
        assert (
            f"the run's folder {tmp_path} is in use by another job (process {holder.pid} on "
            in said
        )
        assert f"since {time.strftime('%Y-')}" in said
        assert not (tmp_path / "checkpoints").exists()
    finally:
        holder.kill()
        holder.wait()
    assert main(vqgan(corpus_path, tmp_path, "--trainer.max_steps=1")) == 0


def test_the_terminal_counts_the_steps_of_the_run_and_says_where_it_lies(
    corpus_path: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A resumed run's too, whose epochs are of one step each."""
    monkeypatch.setenv("COLUMNS", "120")
    for steps in (2, 5):
        limits = [
            f"--trainer.max_steps={steps}",
            "--trainer.limit_train_batches=1",
            "--trainer.enable_progress_bar=true",
        ]
        assert main(vqgan(corpus_path, tmp_path, *limits, "--ckpt_path=last")) == 0
        said = capsys.readouterr().out
        assert f" {steps}/{steps} " in said and "v_num" not in said and "Epoch" not in said
        assert said.endswith(f"{steps} steps: {tmp_path}/checkpoints/last.ckpt\n")


def test_an_unwritable_folder_is_reported(
    corpus_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert main(vqgan(corpus_path, tmp_path / "file" / "run", "--trainer.max_steps=1")) == 1
    said = capsys.readouterr().err
    assert (
        said.startswith("mavilt: the run's folder")
        and "cannot be written (Not a directory)" in said
    )


@pytest.mark.slow
def test_unwritable_checkpoints_are_reported_before_the_first_step(
    corpus_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "checkpoints").write_text("a file where the folder should be")
    assert main(vqgan(corpus_path, tmp_path, "--trainer.max_steps=1")) == 1
    said = capsys.readouterr().err
    assert (
        said.count("mavilt:") == 1
        and f"checkpoints cannot be written to {tmp_path / 'checkpoints'}" in said
    )


@pytest.mark.slow
def test_the_config_of_a_run_is_the_trainings(
    chain: Path, corpus_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever is validated or tested there later; it trains the same again by itself."""
    words = vqgan(corpus_path, tmp_path / "run", "--trainer.max_steps=2")
    assert main(words) == 0
    config = tmp_path / "run/config.yaml"
    before = config.read_text()
    assert "max_steps: 2" in before
    more = [*words[1:], "--trainer.max_steps=7", "--ckpt_path=last"]
    metrics = ["--trainer.callbacks=mavilt_pl.callbacks.ReconstructionMetrics"]
    metrics += ["--trainer.callbacks+=mavilt_pl.evaluation.ResultsWriter"]
    assert main(["validate", *more]) == 0
    assert main(["test", *more, *metrics]) == 0
    assert config.read_text() == before
    assert "max_steps: 7" in (tmp_path / "run/test/config.yaml").read_text()

    again = ["fit", f"--config={config}", f"--trainer.default_root_dir={tmp_path / 'again'}"]
    assert main(again) == 0
    assert checkpoint(tmp_path / "again")["global_step"] == 2
    # A file of somebody else stays, and nothing is trained next to it.
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/config.yaml").write_text("mine: true\n")
    capsys.readouterr()
    assert main(vqgan(corpus_path, tmp_path / "mine", "--trainer.max_steps=1")) == 1
    assert "config.yaml was not written by this command" in capsys.readouterr().err
    assert (tmp_path / "mine/config.yaml").read_text() == "mine: true\n"
