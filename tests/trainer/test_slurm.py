"""On a real SLURM: a recipe as dependent jobs, two tasks that are preempted and go on, a rank that
dies, and a wrong word.
"""

from __future__ import annotations

import shlex
import subprocess
import time
from pathlib import Path

import pytest
import yaml
from one_node import Slurm
from tiny_runs import assert_same, checkpoint, ended, history, started, vqgan

from mavilt_pl.cli import main

TWO = ["--trainer.devices=2", "--trainer.strategy=ddp_find_unused_parameters_true"]
TRAINING = [
    "--trainer.max_steps=30",
    "--trainer.val_check_interval=7",
    "--ckpt_path=last",
    "--data.batch_size=2",
]


def recipe(path: Path, *more: str) -> Path:
    """A phantom (that of `corpus_path`), prepared, tokenized; the tokenizer trained and tested."""
    escaped = (
        shlex.join(vqgan(Path("OUT/corpus"), Path("OUT/vqgan"), *TRAINING, *more))
        .replace("{", "{{")
        .replace("}", "}}")
    )
    fit = escaped.replace("OUT", "{out}")
    test = (
        "test"
        + fit.removeprefix("fit").split(" --checkpoint_every", 1)[0]
        + " --ckpt_path={out}/vqgan/checkpoints/last.ckpt"
        + " --trainer.callbacks+=mavilt_pl.callbacks.ReconstructionMetrics"
        + " --trainer.callbacks+=mavilt_pl.evaluation.ResultsWriter"
    )
    steps = [
        {
            "name": "phantom",
            "run": "phantom mimic {out}/raw --studies 61 --validate 7 --test 11 --size 48 "
            "--workers 1",
            "writes": "raw",
        },
        {
            "name": "prepare",
            "run": "prepare mimic-cxr-jpg {out}/raw --out {out}/corpus --size 32 --workers 1 "
            "--name phantom_mimic",
            "reads": ["raw"],
            "writes": "corpus",
        },
        {"name": "vqgan", "run": fit, "reads": ["corpus"], "writes": "vqgan"},
        {
            "name": "tokenize",
            "run": "tokenize --corpus {out}/corpus --tokenizer {out}/vqgan --out {out}/tokens",
            "reads": ["corpus", "vqgan"],
            "writes": "tokens",
        },
        {"name": "test", "run": test, "reads": ["vqgan"], "writes": "vqgan/test"},
    ]
    path.write_text(yaml.safe_dump({"steps": steps}))
    return path


def submitted(said: str) -> dict[str, str]:
    """Step → job, from what `mavilt submit` prints."""
    return {line.split()[1]: line.split()[0] for line in said.splitlines()}


def log(out: Path, step: str) -> str:
    return "".join(path.read_text() for path in sorted((out / "slurm").glob(f"{step}-*.log")))


@pytest.mark.slow
def test_a_recipe_as_jobs_whose_training_is_preempted(
    slurm: Slurm, corpus_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two tasks hear SIGUSR1 within an epoch, are put back in the queue, go on: as never broken
    off, to the bit.
    """
    out = tmp_path / "run"
    command = [
        "submit",
        str(recipe(tmp_path / "r.yaml")),
        "--out",
        str(out),
        "--partition=cpu",
        "--time=10",
        "--cpus=1",
        "--tasks=2",
        "--array=2",
    ]
    capsys.readouterr()
    assert main(command) == 0
    jobs = submitted(capsys.readouterr().out)
    assert [*jobs] == ["phantom", "prepare", "vqgan", "tokenize", "test"]
    whole = started(vqgan(corpus_path, tmp_path / "whole", *TRAINING, *TWO))
    end = time.monotonic() + 240
    while not (out / "vqgan/checkpoints/step=3.ckpt").exists():
        assert time.monotonic() < end and slurm.state(jobs["vqgan"]) in ("PENDING", "RUNNING"), log(
            out, "vqgan"
        )
        time.sleep(0.05)
    slurm.said("scancel", "--signal=USR1", jobs["vqgan"])
    slurm.wait(jobs["vqgan"], "PENDING")
    said = log(out, "vqgan")
    assert "SIGUSR1: saved " in said and f"job {jobs['vqgan']} goes back into the queue" in said
    assert 3 <= checkpoint(out / "vqgan")["global_step"] < 30
    for step, job in jobs.items():
        assert slurm.wait(job, "COMPLETED", "FAILED", "CANCELLED") == "COMPLETED", log(out, step)
    ended(whole)
    assert_same(checkpoint(tmp_path / "whole"), checkpoint(out / "vqgan"))
    assert history(out / "vqgan") == history(tmp_path / "whole")
    assert (out / "tokens/tokens.json").exists() and (out / "vqgan/test/results.json").exists()
    assert main(command) == 0
    assert "every step is done" in capsys.readouterr().err


@pytest.mark.slow
def test_a_rank_that_fails_ends_its_job_and_those_that_wait_for_it(
    slurm: Slurm,
    corpus_path: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=":")
    out, mark = tmp_path / "run", tmp_path / "mark"
    dies = [
        "--trainer.callbacks+=dying.Dies",
        "--trainer.callbacks.rank=1",
        "--trainer.callbacks.how=raises",
        f"--trainer.callbacks.mark={mark}",
    ]
    fit = vqgan(corpus_path, out / "vqgan", *TRAINING, *dies)
    steps = [
        {
            "name": "vqgan",
            "run": shlex.join(fit).replace("{", "{{").replace("}", "}}"),
            "writes": "vqgan",
        },
        {"name": "later", "run": "results {out}", "reads": ["vqgan"], "writes": "report.html"},
    ]
    (tmp_path / "r.yaml").write_text(yaml.safe_dump({"steps": steps}))
    capsys.readouterr()
    assert (
        main(
            [
                "submit",
                str(tmp_path / "r.yaml"),
                "--out",
                str(out),
                "--partition=cpu",
                "--time=10",
                "--cpus=1",
                "--tasks=2",
            ]
        )
        == 0
    )
    jobs = submitted(capsys.readouterr().out)
    assert slurm.wait(jobs["vqgan"], "COMPLETED", "FAILED") == "FAILED"
    end = time.monotonic() + 240
    while left := subprocess.run(
        ["pgrep", "-f", str(out / "vqgan")], capture_output=True, text=True
    ).stdout:
        assert time.monotonic() < end, f"processes {left.split()} still run"
        time.sleep(0.2)
    assert mark.exists()
    said = log(out, "vqgan")
    assert "Traceback" in said and "the card of rank 1 is broken" in said
    assert slurm.wait(jobs["later"], "CANCELLED", "RUNNING", "COMPLETED") == "CANCELLED"


def test_a_wrong_partition_is_reported_in_one_message(
    slurm: Slurm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [
        "submit",
        str(recipe(tmp_path / "r.yaml")),
        "--out",
        str(tmp_path / "run"),
        "--time=5",
    ]
    assert main([*command, "--partition=nope"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("mavilt: SLURM refused step phantom (") and said.count("\n") == 1
    assert "invalid partition specified: nope" in said and "sbatch: error" not in said
    assert main([*command[:-1], "--time=soon", "--partition=cpu"]) == 1
    said = capsys.readouterr().err
    assert (
        said.startswith("mavilt: SLURM refused step phantom (")
        and said.count("\n") == 1
        and "time" in said
    )
