"""Trainings of seconds that the tests of this folder start, here or as processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from words import DATA, QUIET

VQGAN = {
    "autoencoder": "{image_size: 32, channels: 8, channel_multipliers: [1, 2], num_res_blocks: 1, "
    "attention_resolutions: [], "
    "latent_dim: 8}",
    "quantizer": "{codebook_size: 16, code_dim: 4}",
    "gan_weight": 0,
    "lambda_feat": 0,
    "lambda_finding": 0,
    "finding_weight": 0,
    "clinical_input": "false",
}


def vqgan(corpus: Path, out: Path, *more: str) -> list[str]:
    return [
        "fit",
        "--config=demo/vqgan.yaml",
        *QUIET,
        f"--data.corpora=[{corpus}]",
        "--data.weights=null",
        "--data.batch_size=4",
        *(f"--model.init_args.{k}={v}" for k, v in VQGAN.items()),
        f"--trainer.default_root_dir={out}",
        "--trainer.log_every_n_steps=1",
        "--trainer.limit_val_batches=1",
        "--trainer.val_check_interval=3",
        "--trainer.callbacks=[]",
        "--checkpoint_every=1",
        *more,
    ]


def stage1(chain: Path, corpus: Path, out: Path, *more: str) -> list[str]:
    return [
        "fit",
        "--config=demo/stage1.yaml",
        *QUIET,
        DATA,
        f"--data.corpora=[{corpus}]",
        "--data.weights=null",
        "--data.batch_size=4",
        f"--data.tokens=[{chain}/tokens]",
        f"--model.init_args.tokens={chain}/tokens",
        f"--model.init_args.backbone={chain}/backbone/backbone",
        "--model.init_args.regularization.condition_dropout=0.5",
        f"--trainer.default_root_dir={out}",
        "--trainer.log_every_n_steps=1",
        "--trainer.limit_val_batches=1",
        "--trainer.val_check_interval=3",
        "--checkpoint_every=1",
        *more,
    ]


def started(arguments: list[str], **environment: str) -> subprocess.Popen[str]:
    """The command as a process group of its own."""
    command = [sys.executable, "-m", "mavilt_pl.cli", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        start_new_session=True,
    )


def ended(process: subprocess.Popen[str]) -> str:
    said, _ = process.communicate(timeout=600)
    assert process.returncode == 0, said[-3000:]
    return said


def checkpoint(out: Path) -> dict[str, Any]:
    return torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Weights, optimizers and schedules, bit for bit."""
    assert (
        one["global_step"] == other["global_step"]
        and one["lr_schedulers"] == other["lr_schedulers"]
    )
    for name, value in one["state_dict"].items():
        assert torch.equal(value, other["state_dict"][name]), name
    for mine, theirs in zip(one["optimizer_states"], other["optimizer_states"], strict=True):
        for key, state in mine["state"].items():
            assert all(
                torch.equal(torch.as_tensor(v), torch.as_tensor(theirs["state"][key][k]))
                for k, v in state.items()
            )


def history(out: Path) -> dict[str, list[int]]:
    """The steps at which each tag was logged, ascending: files of one second come in any order."""
    events = EventAccumulator(str(out / "tensorboard"), purge_orphaned_data=False)
    events.Reload()
    return {
        tag: sorted(event.step for event in events.Scalars(tag)) for tag in events.Tags()["scalars"]
    }


def logged(out: Path, tag: str = "train/loss") -> list[float]:
    events = EventAccumulator(str(out / "tensorboard"))
    events.Reload()
    return [event.value for event in events.Scalars(tag)]
