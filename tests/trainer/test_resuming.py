"""Interrupted anywhere and resumed: the same weights and order of studies, one history without
gap or overlap.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_runs import assert_same, checkpoint, ended, history, stage1, started, vqgan

from mavilt_pl.cli import main
from mavilt_pl.data.datamodule import ResumableLoader, WeightedSourceSampler


def loader(world: int, rank: int, batch: int) -> ResumableLoader:
    sampler = WeightedSourceSampler([40, 21], [0.7, 0.3], 3, rank, world)
    return ResumableLoader(range(61), batch_size=batch, sampler=sampler, drop_last=True)


def drawn(loaders: list[ResumableLoader], batches: int | None = None) -> list[int]:
    """Items in the order in which the ranks take turns."""
    out = []
    for number, batch in enumerate(zip(*loaders, strict=True)):
        out += torch.stack(batch, 1).flatten().tolist()
        if number + 1 == batches:
            break
    return out


@pytest.mark.parametrize("before", [(1, 6), (2, 3), (3, 4)])
@pytest.mark.parametrize("after", [(1, 5), (2, 6), (4, 2)])
def test_another_number_of_ranks_continues_at_the_same_item(
    before: tuple[int, int], after: tuple[int, int]
) -> None:
    (world, batch), (later, other) = before, after
    order = drawn([loader(1, 0, 1)])
    first = [loader(world, rank, batch) for rank in range(world)]
    begun = drawn(first, 4)
    assert begun == order[: 4 * world * batch]
    states = [one.state_dict() for one in first]
    assert all(state == states[0] for state in states)
    second = [loader(later, rank, other) for rank in range(later)]
    for one in second:
        one.load_state_dict(states[0])
    left = (61 - len(begun)) // (later * other)
    assert [one.batches_left for one in second] == [left] * later
    assert begun + drawn(second) == order[: len(begun) + left * later * other]
    assert drawn(second) == drawn(
        [loader(later, rank, other) for rank in range(later)]
    )  # the next epoch is whole again


SEVEN = ["--trainer.max_steps=7", "--data.batch_size=8", "--checkpoint_keep=9"]


@pytest.fixture(scope="module", params=[3, 5])
def whole(
    request: pytest.FixtureRequest, corpus_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[str]]:
    """7 steps, uninterrupted; 5 are an epoch. Validated after each 3, so within an epoch, or
    after each epoch.
    """
    out, more = (
        tmp_path_factory.mktemp("whole"),
        [*SEVEN, f"--trainer.val_check_interval={request.param}"],
    )
    assert main(vqgan(corpus_path, out, *more)) == 0
    return out, more


@pytest.mark.slow
@pytest.mark.parametrize("step", [3, 5, 6])
def test_resuming_from_any_step_equals_an_uninterrupted_run(
    whole: tuple[Path, list[str]], corpus_path: Path, tmp_path: Path, step: int
) -> None:
    """In the middle of an epoch, before a validation, at the epoch's end; with a history that had
    run ahead.
    """
    (tmp_path / "checkpoints").mkdir()
    shutil.copy(whole[0] / f"checkpoints/step={step}.ckpt", tmp_path / "checkpoints/last.ckpt")
    shutil.copytree(whole[0] / "tensorboard", tmp_path / "tensorboard")
    assert main(vqgan(corpus_path, tmp_path, *whole[1], "--ckpt_path=last")) == 0
    assert_same(checkpoint(whole[0]), checkpoint(tmp_path))
    assert history(tmp_path) == history(whole[0])


@pytest.mark.slow
def test_augmented_images_of_workers_go_on_too(corpus_path: Path, tmp_path: Path) -> None:
    """In the middle of an epoch, with two augmenting workers; without workers the same."""
    more = [*SEVEN, "--data.augment=true", "--trainer.limit_val_batches=0"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert main(vqgan(corpus_path, whole, *more, "--data.num_workers=2")) == 0
    (broken / "checkpoints").mkdir(parents=True)
    shutil.copy(whole / "checkpoints/step=3.ckpt", broken / "checkpoints/last.ckpt")
    assert main(vqgan(corpus_path, broken, *more, "--data.num_workers=2", "--ckpt_path=last")) == 0
    assert_same(checkpoint(whole), checkpoint(broken))
    assert main(vqgan(corpus_path, tmp_path / "none", *more, "--data.num_workers=0")) == 0
    assert_same(checkpoint(whole), checkpoint(tmp_path / "none"))
    assert (
        main(vqgan(corpus_path, tmp_path / "plain", *SEVEN, "--trainer.limit_val_batches=0")) == 0
    )
    names = [
        name
        for name, value in checkpoint(whole)["state_dict"].items()
        if name.endswith("out.weight")
    ]
    assert any(
        not torch.equal(
            checkpoint(whole)["state_dict"][n], checkpoint(tmp_path / "plain")["state_dict"][n]
        )
        for n in names
    )


@pytest.mark.slow
def test_stage1_resumes_from_any_step(chain: Path, corpus_path: Path, tmp_path: Path) -> None:
    """Lightning steps its optimizer, and logs its metrics after the save."""
    more = ["--trainer.max_steps=4", "--checkpoint_keep=9", "--trainer.limit_val_batches=1"]
    whole = tmp_path / "whole"
    assert main(stage1(chain, corpus_path, whole, *more)) == 0
    for step in (2, 3, 4):  # after the last, only its metrics remain to be logged
        out = tmp_path / str(step)
        (out / "checkpoints").mkdir(parents=True)
        shutil.copy(whole / f"checkpoints/step={step}.ckpt", out / "checkpoints/last.ckpt")
        shutil.copytree(whole / "tensorboard", out / "tensorboard")
        assert main(stage1(chain, corpus_path, out, *more, "--ckpt_path=last")) == 0
        assert_same(checkpoint(whole), checkpoint(out))
        assert history(out) == history(whole)


@pytest.mark.slow
def test_the_last_validation_is_made_up_for(corpus_path: Path, tmp_path: Path) -> None:
    """Interrupted between the last step and its validation.

    A third time there is nothing to do, and nothing is lost.
    """
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert main(vqgan(corpus_path, whole, "--trainer.max_steps=3")) == 0
    again = vqgan(corpus_path, broken, "--trainer.max_steps=3", "--ckpt_path=last")
    with pytest.raises(RuntimeError, match="the machine is gone"):
        main([*again, "--trainer.callbacks+=dying.FailsInValidation"])
    assert checkpoint(broken)["global_step"] == 3 and not any(
        tag.startswith("val/") for tag in history(broken)
    )
    assert (
        main([*again, "--trainer.limit_val_batches=0"]) == 0
    )  # what is not wanted is not waited for
    assert checkpoint(broken)["global_step"] == 3
    for _ in range(2):
        assert main(again) == 0
        assert_same(checkpoint(whole), checkpoint(broken))
        assert history(broken) == history(whole)


@pytest.mark.slow
def test_steps_before_the_first_save_are_not_logged_twice(
    corpus_path: Path, tmp_path: Path
) -> None:
    words = vqgan(corpus_path, tmp_path, "--trainer.max_steps=2", "--ckpt_path=last")
    with pytest.raises(OSError, match="no space"):
        main([*words, "--trainer.callbacks+=dying.FillsTheDisk"])
    assert history(tmp_path)["train/loss"] == [1]
    assert main(words) == 0
    assert history(tmp_path)["train/loss"] == [1, 2]
    assert len([*(tmp_path / "tensorboard").glob("events.out.aside.*")]) == 1


@pytest.mark.slow
def test_two_ranks_go_on_from_one(corpus_path: Path, tmp_path: Path) -> None:
    """One rank with batches of 8, then two with 4: the same studies, so the same weights but for
    rounding.
    """
    more = [
        "--trainer.max_steps=8",
        "--trainer.limit_val_batches=0",
        "--checkpoint_keep=9",
        "--ckpt_path=last",
    ]
    assert main(vqgan(corpus_path, tmp_path / "one", *more, "--data.batch_size=8")) == 0
    (tmp_path / "two" / "checkpoints").mkdir(parents=True)
    shutil.copy(tmp_path / "one/checkpoints/step=3.ckpt", tmp_path / "two/checkpoints/last.ckpt")
    two = [
        "--trainer.devices=2",
        "--trainer.strategy=ddp_find_unused_parameters_true",
        "--data.batch_size=4",
    ]
    ended(started(vqgan(corpus_path, tmp_path / "two", *more, *two)))
    one, other = checkpoint(tmp_path / "one"), checkpoint(tmp_path / "two")
    assert one["global_step"] == other["global_step"] == 8 and one["epoch"] == other["epoch"]
    assert (
        one["loops"]["fit_loop"]["state_dict"] == other["loops"]["fit_loop"]["state_dict"]
    )  # where in the epoch
    for name, value in one["state_dict"].items():
        if not name.endswith("_extra_state"):
            torch.testing.assert_close(
                value, other["state_dict"][name], atol=1e-4, rtol=1e-3, msg=name
            )


RANKS = """
import random, sys
from types import SimpleNamespace
import numpy as np, torch, torch.distributed as dist
from mavilt_pl.trainer.rng_state import RNGStates
rank, path = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{path}/store", rank=rank, world_size=2)
torch.manual_seed(rank); np.random.seed(rank); random.seed(rank)
draw = lambda: (
    torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random(), random.gauss(0, 1)
)
draw()
state = RNGStates().state_dict()
if rank == 0:
    torch.save(state, f"{path}/state.pt")
expected = draw()
dist.barrier()
later = RNGStates()
later.load_state_dict(torch.load(f"{path}/state.pt", weights_only=True))
later.on_train_start(SimpleNamespace(global_rank=rank), None)
assert draw() == expected, rank
if rank == 1:  # a third rank that there was not draws what no other draws, and the same every time
    seen = []
    for number in (2, 2, 3, 0):
        later.load_state_dict(torch.load(f"{path}/state.pt", weights_only=True))
        later.on_train_start(SimpleNamespace(global_rank=number), None)
        seen.append(draw())
    assert seen[0] == seen[1] and seen[1] != seen[2] and seen[3] not in seen[:3]
"""


@pytest.mark.slow
def test_every_rank_draws_on_with_its_own_state(tmp_path: Path) -> None:
    ranks = [
        subprocess.Popen([sys.executable, "-c", RANKS, str(rank), str(tmp_path)])
        for rank in range(2)
    ]
    assert [rank.wait(timeout=600) for rank in ranks] == [0, 0]
