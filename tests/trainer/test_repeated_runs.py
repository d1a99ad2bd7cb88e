"""A training that is repeated in a used folder: continued with the same settings, or refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_runs import checkpoint, vqgan
from words import DATA, FINDINGS, QUIET

from mavilt_pl.cli import main

pytestmark = pytest.mark.slow
SHORT = ["--trainer.max_steps=2", "--trainer.limit_val_batches=0"]


@pytest.fixture(scope="module")
def trained(corpus_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two steps."""
    out = tmp_path_factory.mktemp("trained")
    assert main(vqgan(corpus_path, out, *SHORT)) == 0
    return out


def files(folder: Path) -> dict[str, tuple[int, int]]:
    found = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path): (path.stat().st_ino, path.stat().st_mtime_ns) for path in found}


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    assert main(list(words)) == 1
    error = capsys.readouterr().err
    assert error.count("mavilt:") == 1
    return error


def test_a_finished_run_is_not_replaced(
    trained: Path, corpus_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files(trained)
    message = refused(capsys, *vqgan(corpus_path, trained, *SHORT))
    assert f"{trained} holds a run already" in message
    assert "step=2.ckpt, step 2)" in message
    assert "--ckpt_path last" in message
    # A checkpoint of another run would replace this one just the same.
    other = tmp_path / "other.ckpt"
    other.write_bytes((trained / "checkpoints/last.ckpt").read_bytes())
    refused(capsys, *vqgan(corpus_path, trained, *SHORT, f"--ckpt_path={other}"))
    assert files(trained) == before


def test_an_earlier_step_of_the_same_run_may_be_taken_again(
    trained: Path, corpus_path: Path
) -> None:
    first = trained / "checkpoints" / "step=1.ckpt"
    assert main(vqgan(corpus_path, trained, *SHORT, f"--ckpt_path={first}")) == 0
    assert checkpoint(trained)["global_step"] == 2


@pytest.mark.parametrize(
    ("key", "value", "saved"),
    [
        ("learning_rate", "5e-05", "0.001"),
        ("lambda_grad", "2.0", "1.0"),
        # Not named before: the checkpoint was trained with the default.
        ("quantizer.decay", "0.5", "0.99"),
        ("quantizer.commitment", "1.0", "0.25"),
        ("warmup", "3", "60"),
    ],
)
def test_changed_settings_are_refused(
    trained: Path,
    corpus_path: Path,
    capsys: pytest.CaptureFixture[str],
    key: str,
    value: str,
    saved: str,
) -> None:
    changed = f"--model.init_args.{key}={value}"
    message = refused(capsys, *vqgan(corpus_path, trained, *SHORT, changed, "--ckpt_path=last"))
    assert f"model.init_args.{key}: the checkpoint was trained with {saved}" in message
    assert f"resumed with {value}" in message
    assert f"--model.init_args.{key} {saved}" in message


def test_settings_that_do_not_change_the_training_may_change(
    trained: Path, corpus_path: Path
) -> None:
    more = ["--model.init_args.channels_last=true", "--ckpt_path=last"]
    assert main(vqgan(corpus_path, trained, *SHORT, *more)) == 0


def test_a_one_cycle_schedule_is_extended(corpus_path: Path, tmp_path: Path) -> None:
    words = [
        "fit",
        "--config=demo/encoder.yaml",
        *QUIET,
        DATA,
        f"--data.corpora=[{corpus_path}]",
        "--data.batch_size=16",
        "--model.init_args.image_size=32",
        f"--model.init_args.findings={FINDINGS}",
        f"--trainer.default_root_dir={tmp_path}",
        "--trainer.limit_val_batches=0",
        "--trainer.max_steps=-1",
        "--ckpt_path=last",
    ]
    for epochs in (1, 2):
        assert main([*words, f"--trainer.max_epochs={epochs}"]) == 0
    found = checkpoint(tmp_path)
    assert found["global_step"] == 4
    assert found["lr_schedulers"][0]["total_steps"] == 4
