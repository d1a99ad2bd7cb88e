"""Several ranks: one that dies ends all, and two learn what one learns."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
from tiny_runs import ended, logged, stage1, started, vqgan
from words import DATA, FINDINGS, QUIET

from mavilt_pl.cli import main

TWO = ["--trainer.devices=2", "--trainer.strategy=ddp_find_unused_parameters_true"]


def alive(session: int) -> list[str]:
    """What still runs of a session, zombies aside."""
    listed = subprocess.run(
        ["ps", "-o", "stat=,args=", "-s", str(session)], capture_output=True, text=True
    ).stdout
    return [line for line in listed.splitlines() if not line.startswith("Z")]


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("how", ["raises", "killed"])
def test_a_rank_that_dies_ends_the_others(
    corpus_path: Path, tmp_path: Path, rank: int, how: str
) -> None:
    mark, words = tmp_path / "mark", ["--trainer.max_steps=100000", "--trainer.limit_val_batches=0"]
    dies = [
        "--trainer.callbacks+=dying.Dies",
        f"--trainer.callbacks.rank={rank}",
        f"--trainer.callbacks.how={how}",
        f"--trainer.callbacks.mark={mark}",
    ]
    paths = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    running = started(vqgan(corpus_path, tmp_path / "run", *words, *TWO, *dies), PYTHONPATH=paths)
    try:
        said, _ = running.communicate(timeout=240)
        assert mark.exists(), said[-3000:]
        assert running.returncode not in (0, None)
        end = time.monotonic() + 240
        while alive(running.pid) and time.monotonic() < end:
            time.sleep(0.2)
        assert not alive(running.pid), said[-3000:]
        if how == "raises":
            assert "Traceback" in said and f"the card of rank {rank} is broken" in said
    finally:
        if alive(running.pid):
            os.killpg(running.pid, signal.SIGKILL)


@pytest.mark.slow
def test_two_ranks_learn_what_one_learns(chain: Path, corpus_path: Path, tmp_path: Path) -> None:
    """Fifty steps of Stage 1 on the same global batches, whose ranks have texts of other lengths:
    the same loss at each to 1e-5.
    """
    more = [
        "--trainer.max_steps=50",
        "--checkpoint_every=50",
        "--model.init_args.regularization.condition_dropout=0.5",
        "--trainer.log_every_n_steps=1",
        "--model.init_args.tuning.optimizer=adamw",
        "--model.init_args.tuning.learning_rate=1e-3",
        "--trainer.limit_val_batches=0",
    ]
    one = started(stage1(chain, corpus_path, tmp_path / "one", *more, "--data.batch_size=4"))
    two = started(stage1(chain, corpus_path, tmp_path / "two", *more, "--data.batch_size=2", *TWO))
    ended(one)
    ended(two)
    first, second = logged(tmp_path / "one"), logged(tmp_path / "two")
    assert len(first) == len(second) == 50 and first[0] - first[-1] > 0.1
    assert first == pytest.approx(second, abs=1e-5)


@pytest.mark.slow
def test_fewer_test_studies_than_processes_give_the_figures_of_one(
    corpus_path: Path, tmp_path: Path
) -> None:
    """Two studies: the third process has none of its own, and its copy does not count."""
    assert main(vqgan(corpus_path, tmp_path, "--trainer.max_steps=1")) == 0
    words = [
        *vqgan(corpus_path, tmp_path)[1:],
        f"--ckpt_path={tmp_path}/checkpoints/last.ckpt",
        "--data.limit_test=2",
        "--trainer.callbacks+=mavilt_pl.callbacks.ReconstructionMetrics",
        "--trainer.callbacks+=mavilt_pl.evaluation.ResultsWriter",
    ]
    results = tmp_path / "test/results.json"
    found = []
    for devices in (1, 3):
        ended(started(["test", *words, f"--trainer.devices={devices}", "--trainer.strategy=ddp"]))
        figures = json.loads(results.read_text())["figures"]
        found.append({(figure["metric"], figure["source"]): figure for figure in figures})
        results.unlink()
    one, three = found
    assert [*one] == [*three]
    for key, figure in one.items():
        assert three[key]["n"] == figure["n"] == 2
        assert three[key]["value"] == pytest.approx(figure["value"], rel=1e-5)


@pytest.mark.slow
def test_a_classifier_of_rare_findings_validates_on_two_ranks(
    corpus_path: Path, tmp_path: Path
) -> None:
    """A rank without a case of a finding logs what the other one logs: the AUROC of all studies."""
    words = [
        *("--config=demo/encoder.yaml", *QUIET, DATA),
        f"--data.corpora=[{corpus_path}]",
        "--data.batch_size=4",
        "--data.eval_batch_size=2",
        f"--model.init_args.findings={FINDINGS}",
        "--model.init_args.image_size=32",
        f"--trainer.default_root_dir={tmp_path}",
    ]
    ended(started(["fit", *words, "--trainer.max_steps=2", "--trainer.val_check_interval=2"]))
    found = []
    for more in ([], TWO):
        said = ended(started(["validate", *words, *more], COLUMNS="200"))
        found.append(dict(re.findall(r"(val/auroc[\w/ ]*?)\s+│\s+([\d.]+)", said)))
    assert len(found[0]) > 2 and found[0] == found[1]
