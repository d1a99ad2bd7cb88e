"""Checkpoints: damaged ones are noticed and the one before is used, a full disk harms none, and the
wanted ones stay.
"""

from __future__ import annotations

import os
import resource
import shutil
import threading
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from tiny_runs import assert_same, checkpoint, vqgan

from mavilt_pl.checkpoint import DamagedCheckpointError, sequence_number, verify
from mavilt_pl.cli import main
from mavilt_pl.trainer.checkpoint_callbacks import StepCheckpoints
from mavilt_pl.trainer.checkpoint_io import (
    BackgroundCheckpointIO,
    VerifiedCheckpointIO,
    newest_whole,
)


def saved(folder: Path, name: str = "step=1.ckpt", size: int = 300) -> Path:
    VerifiedCheckpointIO().save_checkpoint(
        {"weights": torch.arange(size), "empty": torch.empty(0), "step": 1}, folder / name
    )
    return folder / name


def test_every_damaged_byte_and_every_missing_end_is_noticed(tmp_path: Path) -> None:
    path = saved(tmp_path)
    verify(path)
    raw = path.read_bytes()
    broken = tmp_path / "broken.ckpt"
    for place in [*range(0, len(raw) - 120, 61), *range(len(raw) - 120, len(raw))]:
        broken.write_bytes(raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :])
        with pytest.raises(DamagedCheckpointError):
            verify(broken)
        broken.write_bytes(raw[:place])
        with pytest.raises(DamagedCheckpointError):
            verify(broken)


def test_the_seal_survives_names_and_copies_and_other_readers(tmp_path: Path) -> None:
    path = saved(tmp_path)
    copy = tmp_path / "elsewhere" / "mine.ckpt"
    copy.parent.mkdir()
    shutil.copyfile(path, copy)
    verify(copy)
    for mapped in (False, True):
        assert torch.equal(
            torch.load(copy, weights_only=True, mmap=mapped)["weights"], torch.arange(300)
        )
    assert zipfile.ZipFile(copy).testzip() is None
    torch.save(
        {"weights": torch.ones(3)}, tmp_path / "plain.ckpt"
    )  # not ours: checked as far as it can be
    verify(tmp_path / "plain.ckpt")
    assert [sequence_number(p) for p in (path, copy, tmp_path / "plain.ckpt")] == [0, 0, -1]


def test_the_newest_is_the_last_saved_whatever_clocks_and_names_say(tmp_path: Path) -> None:
    saved(tmp_path, "step=900.ckpt")  # of an earlier training in the same folder
    newer = saved(tmp_path, "step=2.ckpt")
    newer.touch()
    os.utime(newer, (1, 1))
    with pytest.warns(UserWarning, match="last.ckpt is missing"):
        assert newest_whole(tmp_path) == newer


@pytest.fixture(scope="module")
def trained(corpus_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained")
    assert (
        main(
            vqgan(
                corpus_path,
                out,
                "--trainer.max_steps=4",
                "--checkpoint_keep=3",
                "--checkpoint_best=max:val/phantom_mimic/psnr",
            )
        )
        == 0
    )
    return out


@pytest.mark.slow
def test_the_last_ones_stay_and_the_best(trained: Path) -> None:
    found = sorted(path.name for path in (trained / "checkpoints").iterdir())
    assert found == ["best.ckpt", "last.ckpt", "step=2.ckpt", "step=3.ckpt", "step=4.ckpt"]
    assert (trained / "checkpoints/last.ckpt").samefile(trained / "checkpoints/step=4.ckpt")
    assert torch.load(trained / "checkpoints/best.ckpt", weights_only=True)["global_step"] == 3


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 3] ^= 4
    path.write_bytes(raw)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def delete(path: Path) -> None:
    path.unlink()
    path.with_name("step=4.ckpt").unlink()


class Program:
    """What creates a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)


@pytest.mark.slow
@pytest.mark.parametrize("damage", [truncate, flip, empty, delete])
def test_a_damaged_last_checkpoint_is_passed_over(
    trained: Path, corpus_path: Path, tmp_path: Path, damage: object
) -> None:
    out = tmp_path / "run"
    shutil.copytree(trained, out, copy_function=shutil.copy)
    for name in ("last.ckpt", "step=4.ckpt"):  # one file by two names, as it was
        (out / "checkpoints" / name).unlink()
    shutil.copy(trained / "checkpoints/last.ckpt", out / "checkpoints/step=4.ckpt")
    (out / "checkpoints/last.ckpt").hardlink_to(out / "checkpoints/step=4.ckpt")
    damage(out / "checkpoints/last.ckpt")  # type: ignore[operator]
    with pytest.warns(UserWarning) as warned:
        assert main(vqgan(corpus_path, out, "--trainer.max_steps=5", "--ckpt_path=last")) == 0
    [said] = [str(w.message) for w in warned if "Continuing from" in str(w.message)]
    assert "checkpoints/last.ckpt is" in said and said.endswith("checkpoints/step=3.ckpt")
    assert checkpoint(out)["global_step"] == 5
    verify(out / "checkpoints/last.ckpt")


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["test", "validate"])
def test_a_damaged_checkpoint_is_not_tested(
    verb: str, trained: Path, corpus_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = shutil.copy(trained / "checkpoints/last.ckpt", tmp_path / "bad.ckpt")
    flip(path)
    words = [verb, *vqgan(corpus_path, tmp_path)[1:], f"--ckpt_path={path}"]
    words = [word for word in words if not word.startswith("--checkpoint")]
    assert main(words) == 1
    assert "is damaged: its checksum is wrong" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["fit", "test"])
def test_a_checkpoint_that_would_run_a_program(
    verb: str, trained: Path, corpus_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    held = checkpoint(trained)
    held["extra"] = Program(tmp_path / "ran")
    path = tmp_path / "evil.ckpt"
    torch.save(held, path)
    words = [verb, *vqgan(corpus_path, tmp_path / "run")[1:], f"--ckpt_path={path}"]
    if verb == "test":
        words = [word for word in words if not word.startswith("--checkpoint")]
    assert main(words) == 1
    message = capsys.readouterr().err
    assert "holds pickled objects" in message and "Traceback" not in message
    assert not (tmp_path / "ran").exists()


@pytest.mark.slow
def test_where_all_are_damaged_nothing_is_trained(
    trained: Path, corpus_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(trained, tmp_path / "run")
    for path in (tmp_path / "run/checkpoints").glob("*.ckpt"):
        truncate(path)
    assert (
        main(vqgan(corpus_path, tmp_path / "run", "--trainer.max_steps=5", "--ckpt_path=last")) == 1
    )
    assert "no checkpoint in" in capsys.readouterr().err
    bad = tmp_path / "run/checkpoints/step=3.ckpt"
    assert (
        main(vqgan(corpus_path, tmp_path / "run", "--trainer.max_steps=5", f"--ckpt_path={bad}"))
        == 1
    )
    assert "step=3.ckpt is damaged" in capsys.readouterr().err


@pytest.mark.slow
def test_saved_in_the_background(
    trained: Path, corpus_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first save is written only when the second step is made; what is saved is the first step
    all the same.
    """
    made, save, ended = threading.Event(), torch.save, StepCheckpoints.on_train_batch_end

    def late(*args: Any) -> None:
        assert made.wait(60)
        save(*args)

    def end(self: StepCheckpoints, trainer: Trainer, *more: Any) -> None:
        if trainer.global_step >= 2:
            made.set()
        ended(self, trainer, *more)

    monkeypatch.setattr(torch, "save", late)
    monkeypatch.setattr(StepCheckpoints, "on_train_batch_end", end)
    more = [
        "--trainer.max_steps=4",
        "--checkpoint_keep=9",
        "--checkpoint_async=true",
        "--checkpoint_every=1",
    ]
    assert main(vqgan(corpus_path, tmp_path / "run", *more)) == 0
    monkeypatch.undo()
    assert main(vqgan(corpus_path, tmp_path / "one", "--trainer.max_steps=1")) == 0
    folder = tmp_path / "run/checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == [
        "last.ckpt",
        *(f"step={n}.ckpt" for n in range(1, 5)),
    ]
    assert_same(checkpoint(trained), checkpoint(tmp_path / "run"))
    first = torch.load(folder / "step=1.ckpt", weights_only=True)
    assert_same(
        {**checkpoint(tmp_path / "one"), "lr_schedulers": []}, {**first, "lr_schedulers": []}
    )
    assert first["state_dict"].keys() == checkpoint(trained)["state_dict"].keys()


def test_what_is_one_tensor_is_saved_once_in_the_background_too(tmp_path: Path) -> None:
    weight = torch.arange(50_000.0)
    tied = {
        "state_dict": OrderedDict(
            a=weight, b=weight.view_as(weight), c=torch.empty(0), d=torch.empty(0, 2)
        )
    }
    files = BackgroundCheckpointIO()
    files.save_checkpoint(tied, tmp_path / "step=1.ckpt")
    weight.zero_()
    files.wait()
    found = torch.load(tmp_path / "step=1.ckpt", weights_only=True)["state_dict"]
    assert isinstance(found, OrderedDict) and [value.shape for value in found.values()][2:] == [
        (0,),
        (0, 2),
    ]
    assert torch.equal(found["a"], torch.arange(50_000.0)) and torch.equal(found["a"], found["b"])
    assert (tmp_path / "step=1.ckpt").stat().st_size < 1.5 * 4 * len(weight)


@pytest.mark.slow
@pytest.mark.parametrize("background", ["false", "true"])
def test_a_full_disk_leaves_the_one_before_whole(
    background: str,
    trained: Path,
    corpus_path: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Files may not grow beyond half a checkpoint: the write itself fails, as it does on a full
    disk.
    """
    shutil.copytree(trained, tmp_path / "run")
    last = tmp_path / "run/checkpoints/last.ckpt"
    before, limits = last.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))
    try:
        code = main(
            vqgan(
                corpus_path,
                tmp_path / "run",
                "--trainer.max_steps=6",
                "--ckpt_path=last",
                f"--checkpoint_async={background}",
            )
        )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    said = capsys.readouterr().err
    assert (
        code == 1
        and "step=5.ckpt" in said
        and said.count("mavilt:") == 1
        and "Traceback" not in said
    )
    assert last.read_bytes() == before and not list(last.parent.glob(".*"))
