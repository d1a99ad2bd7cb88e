"""However often a training is interrupted, wherever, it ends as if it had not been: to the bit.

The breaks are random; MAVILT_BREAKS sets how many sets of breaks each module gets (default 1).

    MAVILT_BREAKS=10 python -m pytest tests/trainer/test_random_breaks.py    # 50 sets
"""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from test_ranks import TWO
from tiny_runs import assert_same, checkpoint, ended, history, stage1, started, vqgan
from words import DATA, FINDINGS, QUIET

from mavilt_pl.cli import main

pytestmark = pytest.mark.slow
STEPS = 23  # of 4 studies: 2 epochs of 10 steps, and 3 steps
EXAMPLES = int(os.environ.get("MAVILT_BREAKS", "1"))
VALIDATIONS = {
    "never": ["--trainer.limit_val_batches=0"],
    "each 3 steps": ["--trainer.val_check_interval=3"],
    "each epoch": ["--trainer.val_check_interval=1.0", "--trainer.check_val_every_n_epoch=1"],
}


@dataclass(frozen=True)
class Breaks:
    """Where a training is interrupted, and how often it saves and validates.

    Args:
        steps: within the step after each of them SIGTERM comes, and the step is finished.
        every: steps between two checkpoints.
        validation: a key of `VALIDATIONS`.
    """

    steps: tuple[int, ...]
    every: int
    validation: str


@st.composite
def breaks(draw: st.DrawFn) -> Breaks:
    steps = draw(st.lists(st.integers(0, STEPS - 2), min_size=3, max_size=10, unique=True))
    every = draw(st.sampled_from([1, 5, 10, 1000]))
    return Breaks(tuple(sorted(steps)), every, draw(st.sampled_from(sorted(VALIDATIONS))))


def command(module: str, chain: Path, corpus: Path, out: Path) -> list[str]:
    if module == "vqgan":
        return vqgan(corpus, out)
    if module == "stage1":
        return stage1(chain, corpus, out)
    if module == "stage2":
        words = stage1(chain, corpus, out)
        words[words.index("--config=demo/stage1.yaml")] = "--config=demo/stage2.yaml"
        return [*words, f"--model.init_args.init_from={chain}/stage1/checkpoints/last.ckpt"]
    shapes = {
        "encoder": [
            DATA,
            "--model.init_args.image_size=32",
            f"--model.init_args.findings={FINDINGS}",
        ],
        "backbone": [f"--model.init_args.{key}=2" for key in ("layers", "heads")],
    }
    return [
        "fit",
        f"--config=demo/{module}.yaml",
        *QUIET,
        f"--data.corpora=[{corpus}]",
        "--data.batch_size=4",
        f"--trainer.default_root_dir={out}",
        "--trainer.log_every_n_steps=1",
        "--trainer.limit_val_batches=1",
        *shapes[module],
    ]


@pytest.mark.parametrize("module", ["vqgan", "encoder", "backbone", "stage1", "stage2"])
def test_any_breaks(module: str, chain: Path, corpus_path: Path, tmp_path: Path) -> None:
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        # A failure names its breaks; to find smaller ones takes many trainings.
        phases=[Phase.generate],
        suppress_health_check=[HealthCheck.function_scoped_fixture],
        derandomize=EXAMPLES == 1,
        database=None,
    )
    @given(breaks())
    def check(broken_at: Breaks) -> None:
        folder = Path(tempfile.mkdtemp(dir=tmp_path))
        more = [
            f"--trainer.max_steps={STEPS}",
            f"--checkpoint_every={broken_at.every}",
            *VALIDATIONS[broken_at.validation],
        ]
        assert main([*command(module, chain, corpus_path, folder / "whole"), *more]) == 0
        words = [*command(module, chain, corpus_path, folder / "broken"), *more, "--ckpt_path=last"]
        for step in broken_at.steps:
            terminated = [
                "--trainer.callbacks+=dying.Terminated",
                f"--trainer.callbacks.step={step}",
            ]
            with suppress(SystemExit):
                main([*words, *terminated])
            assert checkpoint(folder / "broken")["global_step"] == step + 1
        assert main(words) == 0
        whole, broken = checkpoint(folder / "whole"), checkpoint(folder / "broken")
        assert whole["global_step"] == STEPS
        assert_same(whole, broken)
        # Where the run is. Lightning's other counters of an epoch count from a resumption on.
        for position in ("epoch_progress", "epoch_loop.batch_progress"):
            expected = whole["loops"]["fit_loop"][position]
            assert broken["loops"]["fit_loop"][position] == expected
        assert history(folder / "whole") == history(folder / "broken")
        shutil.rmtree(folder)

    check()


@pytest.mark.parametrize(
    ("module", "kills"), [("vqgan", ((0, 2), (1, 3), (0, 6))), ("stage1", ((1, 3),))]
)
def test_one_of_two_processes_is_killed(
    module: str,
    kills: tuple[tuple[int, int], ...],
    chain: Path,
    corpus_path: Path,
    tmp_path: Path,
) -> None:
    """Each kill is of a rank, within the step after one."""
    paths = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    more = [*TWO, "--data.batch_size=2", "--trainer.max_steps=8", "--trainer.limit_val_batches=0"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    ended(started([*command(module, chain, corpus_path, whole), *more]))
    words = [*command(module, chain, corpus_path, broken), *more, "--ckpt_path=last"]
    for rank, step in kills:
        mark = tmp_path / f"mark{step}"
        dies = {"rank": rank, "how": "killed", "mark": mark, "step": step}
        killed = started(
            [
                *words,
                "--trainer.callbacks+=dying.Dies",
                *(f"--trainer.callbacks.{key}={value}" for key, value in dies.items()),
            ],
            PYTHONPATH=paths,
        )
        killed.communicate(timeout=240)
        assert mark.exists() and killed.returncode != 0
    ended(started(words))
    assert_same(checkpoint(whole), checkpoint(broken))
    assert history(whole) == history(broken)
