"""`--trainer.strategy fsdp2` learns what DDP learns, from and to the same checkpoints; what it
cannot do is refused.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
)
from tiny_runs import assert_same, checkpoint, ended, history, logged, stage1, started, vqgan

from mavilt_pl.cli.training import run
from mavilt_pl.errors import UserError
from mavilt_pl.language.fsdp import check_strategy
from mavilt_pl.language.options import TuningOptions
from mavilt_pl.trainer.fsdp_strategy import FSDP2Strategy

SHARDED, DDP = "--trainer.strategy=fsdp2", "--trainer.strategy=ddp_find_unused_parameters_true"


@pytest.mark.slow
def test_shards_learn_what_ddp_learns_and_go_on(
    chain: Path, corpus_path: Path, tmp_path: Path
) -> None:
    """Six steps on two ranks, of which now and then one alone has a plain text to read, with L2-SP
    and clipping and a validation in between. The run continues from its third step in shards to the
    same bits, and with DDP to the same losses.
    """
    more = [
        "--trainer.devices=2",
        "--trainer.max_steps=6",
        "--data.batch_size=2",
        "--checkpoint_keep=9",
        "--ckpt_path=last",
        "--model.init_args.regularization.condition_dropout=0",
        "--model.init_args.tuning.optimizer=adamw",
        "--model.init_args.tuning.learning_rate=1e-3",
        "--model.init_args.tuning.warmup_steps=0",
        "--model.init_args.regularization.lambda_reg=0.1",
        f"--data.replay={corpus_path}",
    ]

    def fit(name: str, strategy: str, begun: Path | None = None) -> Path:
        out = tmp_path / name
        if begun is not None:
            (out / "checkpoints").mkdir(parents=True)
            shutil.copy(begun / "checkpoints/step=3.ckpt", out / "checkpoints/last.ckpt")
            shutil.copytree(begun / "tensorboard", out / "tensorboard")
        ended(started(stage1(chain, corpus_path, out, *more, strategy)))
        return out

    ddp, whole = fit("ddp", DDP), fit("whole", SHARDED)
    for tag in ("train/loss", "train/l2_reg", "val/phantom_mimic/loss"):
        assert logged(whole, tag) == pytest.approx(logged(ddp, tag), abs=1e-5), tag
    one, other = checkpoint(ddp), checkpoint(whole)
    assert one["state_dict"].keys() == other["state_dict"].keys() and not one.keys() ^ other.keys()
    for name, value in one["state_dict"].items():
        torch.testing.assert_close(other["state_dict"][name], value, atol=1e-4, rtol=1e-3, msg=name)
    again = fit("again", SHARDED, whole)
    assert_same(checkpoint(whole), checkpoint(again))
    assert history(again) == history(whole)
    assert logged(fit("with_ddp", DDP, whole)) == pytest.approx(logged(ddp), abs=1e-5)
    assert logged(fit("from_ddp", SHARDED, ddp)) == pytest.approx(logged(ddp), abs=1e-5)


def unborn(kind: type[Any]) -> Any:
    """A strategy without what its constructor asks for: DeepSpeed's package need not be there."""
    return object.__new__(kind)


@pytest.mark.parametrize(
    ("kind", "settings", "fitting", "said"),
    [
        (
            DeepSpeedStrategy,
            {},
            True,
            "lambda_reg would be lost silently, .* set trainer.strategy to fsdp2",
        ),
        (FSDPStrategy, {}, True, "set it to fsdp2"),
        (ModelParallelStrategy, {}, True, "set it to fsdp2"),
        (FSDP2Strategy, {}, False, "for `mavilt fit`"),
        (FSDP2Strategy, {"method": "lora"}, True, "tuning.method lora: set it to full"),
        (
            FSDP2Strategy,
            {"optimizer": "muon"},
            True,
            "muon needs whole ones: set tuning.optimizer to adamw",
        ),
    ],
)
def test_what_would_be_wrong_is_refused(
    kind: Any, settings: dict[str, str], fitting: bool, said: str
) -> None:
    tuning = TuningOptions(**settings)
    with pytest.raises(UserError, match=said):
        check_strategy(tuning, unborn(kind), fitting)
    check_strategy(tuning, unborn(DDPStrategy), fitting)


def test_half_weights_are_refused(corpus_path: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"trainer.precision: found bf16-true, .* set it to bf16-mixed"
    ):
        run(vqgan(corpus_path, tmp_path, "--trainer.precision=bf16-true"))


def test_the_strategy_is_of_the_language_stages(
    corpus_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        os, "environ", {**os.environ}
    )  # Lightning's launcher leaves a rank and a port in it
    with pytest.raises(UserError, match="fsdp2 is for the language stages, found VQGAN"):
        run(vqgan(corpus_path, tmp_path, SHARDED, "--trainer.devices=1"))
