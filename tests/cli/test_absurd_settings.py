"""Absurd settings give one message and no traceback, whichever argument gets them.

The arguments are those of the constructors' signatures, so a new one is tried without a change
here.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonargparse import Namespace
from words import DATA, FINDINGS, QUIET

from mavilt_pl import callbacks
from mavilt_pl.cli import main
from mavilt_pl.cli.fit_parser import parse_fit_arguments

pytestmark = pytest.mark.slow

ABSURD = (
    *("-1", "0", "nan", "inf", "1e30", "-1e30", "99999999999999999999", "2.5"),
    *("x", "''", "null", "true", "[]", "{}", "[-1]", "[1,2,3,4,5]", "{a: 1}", "/nosuch/path"),
)
MODULES = ("encoder", "vqgan", "backbone", "stage1", "stage2")
SAMPLE = 200


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """A word may look like the name of a model on a hub."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def training(module: str, chain: Path, corpus: Path, out: Path) -> list[str]:
    """A training of one step that succeeds."""
    words = [
        *("fit", f"--config=demo/{module}.yaml", *QUIET),
        f"--data.corpora=[{corpus}]",
        "--data.weights=null",
        "--data.batch_size=4",
        f"--trainer.default_root_dir={out}",
        "--trainer.max_steps=1",
        "--trainer.limit_val_batches=1",
        "--trainer.val_check_interval=1",
        "--trainer.callbacks=[]",
    ]
    if module == "encoder":
        words += [DATA, "--model.init_args.image_size=32", f"--model.init_args.findings={FINDINGS}"]
    if module == "vqgan":
        words += [
            "--model.init_args.autoencoder={image_size: 32, channels: 8, "
            "channel_multipliers: [1, 2], num_res_blocks: 1, attention_resolutions: [], "
            "latent_dim: 8}",
            "--model.init_args.quantizer={codebook_size: 16, code_dim: 4}",
            f"--model.init_args.encoder={chain}/encoder/checkpoints/last.ckpt",
            "--model.init_args.gan_start=0",
        ]
    if module == "backbone":
        words += ["--model.init_args.width=32", "--model.init_args.heads=2"]
    if module.startswith("stage"):
        words += [
            DATA,
            f"--data.tokens=[{chain}/tokens]",
            f"--model.init_args.tokens={chain}/tokens",
            f"--model.init_args.backbone={chain}/backbone/backbone",
        ]
    return words


def leaves(settings: Any, prefix: str) -> Iterator[str]:
    """The dotted keys of all settings that have no settings below them."""
    for key, value in vars(settings).items() if isinstance(settings, Namespace) else settings:
        if isinstance(value, Namespace) and vars(value):
            yield from leaves(value, f"{prefix}{key}.")
        elif isinstance(value, dict) and value:
            yield from leaves(value.items(), f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def check(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """A training that succeeds, or fails in one message."""
    capsys.readouterr()
    status = main(words)
    error = capsys.readouterr().err
    if status == 0:
        return
    assert status == 1, words[-1]
    assert error.count("mavilt: ") == 1 and "Traceback" not in error, (words[-1], error)
    # jsonargparse's own messages have many lines.
    assert len(error) < 1500, (words[-1], error)


@pytest.mark.parametrize("module", MODULES)
def test_a_setting_of_a_module_or_its_data(
    module: str, chain: Path, corpus_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = training(module, chain, corpus_path, tmp_path)
    settings = parse_fit_arguments(words[1:])
    keys = [*leaves(settings.model.init_args, "model.init_args."), *leaves(settings.data, "data.")]
    keys += [key for key in vars(settings) if key.startswith("checkpoint_")]
    pairs = [(key, value) for key in keys for value in ABSURD]
    chosen = random.Random(module).sample(pairs, SAMPLE // len(MODULES))
    for number, (key, value) in enumerate(chosen):
        # The compiler takes a minute, and what it makes of a number is not ours.
        if key == "model.init_args.compile":
            continue
        folder = f"--trainer.default_root_dir={tmp_path}/{number}"
        check([*words, folder, f"--{key}={value}"], capsys)


@pytest.mark.parametrize("name", callbacks.__all__)
def test_a_setting_of_a_callback(
    name: str, chain: Path, corpus_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = training("vqgan", chain, corpus_path, tmp_path)
    words += [f"--trainer.callbacks=mavilt_pl.callbacks.{name}"]
    keys = ("validate", "samples", "window", "min_used", "count", "limit", "seed", "judge")
    for number, key in enumerate(keys):
        value = random.Random(name + key).choice(ABSURD)
        folder = f"--trainer.default_root_dir={tmp_path}/{number}"
        check([*words, folder, f"--trainer.callbacks.{key}={value}"], capsys)
