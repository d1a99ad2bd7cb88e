"""Signals: saved within the step, back in the queue, and one history over all of it."""

from __future__ import annotations

import argparse
import os
import signal
from pathlib import Path

import pytest
from lightning import Callback, Trainer
from tiny_runs import assert_same, checkpoint, history, started, vqgan

from mavilt_pl.cli import main
from mavilt_pl.cli import run as run_command
from mavilt_pl.trainer.slurm import slurm_job

SEVEN = [
    "--trainer.max_steps=7",
    "--data.batch_size=8",
    "--checkpoint_every=100",
    "--ckpt_path=last",
]


@pytest.fixture
def queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `scontrol` that writes down how it was called."""
    calls = tmp_path / "calls"
    fake = tmp_path / "bin" / "scontrol"
    fake.parent.mkdir()
    fake.write_text(f'#!/bin/sh\necho "$@" >> {calls}\n')
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    return calls


def signalled(monkeypatch: pytest.MonkeyPatch, at: dict[int, signal.Signals]) -> None:
    """Stands where the learning-rate monitor stands, and sends this process a signal within the
    step after N.
    """

    class Sender(Callback):
        def __init__(self, interval: str):
            self.interval = interval

        def on_train_batch_start(self, trainer: Trainer, *_: object) -> None:
            if number := at.pop(trainer.global_step, None):
                os.kill(os.getpid(), number)

    monkeypatch.setattr("mavilt_pl.cli.training.LearningRateMonitor", Sender)


@pytest.mark.slow
def test_interrupted_by_signals_and_resumed_by_the_same_command(
    corpus_path: Path,
    tmp_path: Path,
    queue: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    signalled(monkeypatch, {})
    assert main(vqgan(corpus_path, tmp_path / "whole", *SEVEN)) == 0
    command = vqgan(corpus_path, tmp_path / "run", *SEVEN)
    before = signal.getsignal(signal.SIGTERM)
    signalled(monkeypatch, {2: signal.SIGUSR1, 4: signal.SIGTERM})
    capsys.readouterr()

    assert main(command) == 128 + signal.SIGUSR1
    said = capsys.readouterr().err
    assert "SIGUSR1: saved " in said and "at step 3; job 4711 is back in the queue" in said
    assert (
        checkpoint(tmp_path / "run")["global_step"] == 3 and queue.read_text() == "requeue 4711\n"
    )

    assert main(command) == 128 + signal.SIGTERM
    said = capsys.readouterr().err
    assert (
        "SIGTERM: saved " in said
        and "at step 5; the same command with --ckpt_path last continues" in said
    )
    assert queue.read_text() == "requeue 4711\n"  # who ends a job does not want it back
    assert signal.getsignal(signal.SIGTERM) == before

    assert main(command) == 0
    assert_same(checkpoint(tmp_path / "whole"), checkpoint(tmp_path / "run"))
    assert history(tmp_path / "run") == history(tmp_path / "whole")


@pytest.mark.slow
def test_a_failed_requeue_is_reported_and_nothing_is_lost(
    corpus_path: Path,
    tmp_path: Path,
    queue: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "bin" / "scontrol").write_text(
        "#!/bin/sh\necho 'Requested operation is presently disabled' >&2\nexit 1\n"
    )
    signalled(monkeypatch, {0: signal.SIGUSR1})
    assert main(vqgan(corpus_path, tmp_path / "run", *SEVEN)) == 128 + signal.SIGUSR1
    said = capsys.readouterr().err
    assert "job 4711 could not be requeued (Requested operation is presently disabled)" in said
    assert checkpoint(tmp_path / "run")["global_step"] == 1


@pytest.mark.slow
def test_one_rank_hears_it_and_all_leave_at_the_same_step(
    corpus_path: Path, tmp_path: Path, queue: Path
) -> None:
    out = tmp_path / "run"
    ranks = [
        "--trainer.devices=2",
        "--trainer.strategy=ddp_find_unused_parameters_true",
        "--trainer.max_steps=100000",
    ]
    running = started(
        vqgan(corpus_path, out, *ranks, "--trainer.limit_val_batches=0", "--ckpt_path=last")
    )
    while running.poll() is None and not (out / "checkpoints" / "step=2.ckpt").exists():
        pass
    os.kill(running.pid, signal.SIGUSR1)
    said, _ = running.communicate(timeout=300)
    assert running.returncode == 128 + signal.SIGUSR1, said[-3000:]
    assert "is back in the queue" in said and queue.read_text() == "requeue 4711\n"
    assert f"at step {checkpoint(out)['global_step']};" in said


def test_a_task_of_an_array_is_named_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert slurm_job() is None
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    assert slurm_job() == "12"
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "10")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "2")
    assert slurm_job() == "10_2"


@pytest.mark.parametrize("verb", ["tokenize", "prepare", "reading", "test"])
def test_other_steps_are_requeued_if_they_can_resume(
    tmp_path: Path,
    queue: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    verb: str,
) -> None:
    """Work in shards is queued again.

    What would start from nothing, and meet its limit again, is not: a test, and a corpus whose
    tables are still being read.
    """

    def asked_to_leave(words: list[str]) -> int:
        if verb == "prepare":
            (tmp_path / "run/made/parts").mkdir(parents=True)
            (tmp_path / "run/made/parts/read.json").touch()
        os.kill(os.getpid(), signal.SIGUSR1)
        raise AssertionError("it went on")

    monkeypatch.setattr("mavilt_pl.cli.execute", asked_to_leave)
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        f"steps: [{{name: step, run: {verb.replace('reading', 'prepare')} x, writes: made}}]"
    )
    before = signal.getsignal(signal.SIGUSR1)
    parser = argparse.ArgumentParser()
    run_command.add_arguments(parser)
    assert (
        run_command.run(
            parser.parse_args([str(recipe), "--out", str(tmp_path / "run"), "--only=step"])
        )
        == 128 + signal.SIGUSR1
    )
    said = capsys.readouterr().err
    assert (
        signal.getsignal(signal.SIGUSR1) == before
        and not (tmp_path / "run/.steps/step.json").exists()
    )
    if verb in ("tokenize", "prepare"):
        assert (
            "SIGUSR1: finished work is kept; job 4711 is back in the queue" in said
            and queue.exists()
        )
    else:
        assert "give it more time (--time)" in said and not queue.exists()


@pytest.mark.slow
def test_an_interrupt_saves_the_step(
    corpus_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With Ctrl-C; and the log of a run without a terminal shows its steps."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signalled(monkeypatch, {2: signal.SIGINT})
    assert main(vqgan(corpus_path, tmp_path, *SEVEN)) == 128 + signal.SIGINT
    error = capsys.readouterr().err
    assert "interrupted: saving at the end of this step" in error
    assert "at step 3; the same command with --ckpt_path last continues" in error
    assert "step 2 of 7, loss " in error
    assert checkpoint(tmp_path)["global_step"] == 3
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler
