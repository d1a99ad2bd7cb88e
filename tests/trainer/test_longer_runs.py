"""A run that is extended, or ended and resumed several times, trains as one that was not."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import assert_same, checkpoint, history, vqgan

from mavilt_pl.cli import main
from mavilt_pl.vqgan.module import VQGAN

pytestmark = pytest.mark.slow
# The corpus has 43 training studies, so an epoch has 10 steps of 4 and 5 of 8.
VALIDATIONS = {
    "none": ["--trainer.limit_val_batches=0"],
    "3 steps": ["--trainer.val_check_interval=3"],
    "10 steps": ["--trainer.val_check_interval=10"],
    "epoch": ["--trainer.val_check_interval=1.0", "--trainer.check_val_every_n_epoch=1"],
}


@pytest.fixture
def studies(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[list[str]]]:
    """The studies of each batch that was trained on, in order."""
    seen: list[list[str]] = []
    train = VQGAN.training_step

    def step(self: VQGAN, batch: dict[str, Any], index: int) -> Any:
        seen.append([study["study"] for study in batch["studies"]])
        return train(self, batch, index)

    monkeypatch.setattr(VQGAN, "training_step", step)
    yield seen


def check_equal_to_uninterrupted(
    corpus: Path, tmp_path: Path, studies: list[list[str]], lengths: list[list[str]], *more: str
) -> None:
    """Train to each of `lengths` in turn, and to the last of them at once."""
    assert main(vqgan(corpus, tmp_path / "whole", *more, *lengths[-1])) == 0
    expected = list(studies)
    studies.clear()
    for length in lengths:
        assert main(vqgan(corpus, tmp_path / "parts", *more, *length, "--ckpt_path=last")) == 0
    assert studies == expected
    # The warm-up is longer than these runs, so the rate does not depend on their length.
    whole, parts = checkpoint(tmp_path / "whole"), checkpoint(tmp_path / "parts")
    assert_same(whole, parts)
    assert whole["loops"]["fit_loop"] == parts["loops"]["fit_loop"]
    assert history(tmp_path / "whole") == history(tmp_path / "parts")


def test_one_two_and_three_epochs(
    corpus_path: Path, tmp_path: Path, studies: list[list[str]]
) -> None:
    """The last step of each epoch is saved before Lightning counts the epoch."""
    lengths = [["--trainer.max_steps=-1", f"--trainer.max_epochs={n}"] for n in (1, 2, 3)]
    more = [*VALIDATIONS["none"], "--checkpoint_every=10"]
    check_equal_to_uninterrupted(corpus_path, tmp_path, studies, lengths, *more)
    assert checkpoint(tmp_path / "parts")["global_step"] == 30


def test_at_the_end_of_an_epoch_and_in_its_middle(
    corpus_path: Path, tmp_path: Path, studies: list[list[str]]
) -> None:
    lengths = [[f"--trainer.max_steps={n}"] for n in (10, 15, 33)]
    more = [*VALIDATIONS["10 steps"], "--checkpoint_every=1000"]
    check_equal_to_uninterrupted(corpus_path, tmp_path, studies, lengths, *more)


@pytest.mark.parametrize(
    "limit", ["--trainer.limit_train_batches=3", "--model.init_args.accumulate_grad_batches=2"]
)
def test_shortened_epochs_and_accumulated_batches(
    corpus_path: Path, tmp_path: Path, studies: list[list[str]], limit: str
) -> None:
    lengths = [[f"--trainer.max_steps={n}"] for n in (3, 4, 9)]
    more = [*VALIDATIONS["none"], limit, "--checkpoint_every=1000"]
    check_equal_to_uninterrupted(corpus_path, tmp_path, studies, lengths, *more)


@pytest.mark.parametrize("seed", [0, 1])
def test_any_three_breaks(
    corpus_path: Path, tmp_path: Path, studies: list[list[str]], seed: int
) -> None:
    """Random breaks within 3 epochs of 5 steps, with random intervals of saves and validations."""
    chance = random.Random(seed)
    steps = [*sorted(chance.sample(range(1, 16), 3)), 17]
    every, validation = chance.choice([1, 3, 5, 1000]), chance.choice(sorted(VALIDATIONS))
    more = ["--data.batch_size=8", f"--checkpoint_every={every}", *VALIDATIONS[validation]]
    lengths = [[f"--trainer.max_steps={step}"] for step in steps]
    check_equal_to_uninterrupted(corpus_path, tmp_path, studies, lengths, *more)
