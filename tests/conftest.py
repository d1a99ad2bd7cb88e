"""Small corpora and models that the tests share; everything is made by the code under test, nothing
is downloaded.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest
import torch
from words import DATA, FINDINGS, QUIET

from mavilt_pl.cli import main

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
torch.set_num_threads(2)
logging.raiseExceptions = False  # loggers keep the stream that pytest captured for an earlier test


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real files named by MAVILT_REAL_DATA; skips without."""
    folder = os.environ.get("MAVILT_REAL_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("MAVILT_REAL_DATA names no folder of real radiographs")
    return Path(folder)


@pytest.fixture(scope="session")
def mimic_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """61 phantom studies in the MIMIC-CXR-JPG layout: an odd number, 11 of them for the test."""
    root = tmp_path_factory.mktemp("raw") / "mimic"
    arguments = [
        "--studies",
        "61",
        "--validate",
        "7",
        "--test",
        "11",
        "--size",
        "48",
        "--workers",
        "2",
    ]
    assert main(["phantom", "mimic", str(root), *arguments]) == 0
    return root


@pytest.fixture(scope="session")
def corpus_path(mimic_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("corpora") / "mimic"
    arguments = ["--out", str(out), "--size", "32", "--name", "phantom_mimic", "--workers", "2"]
    assert main(["prepare", "mimic-cxr-jpg", str(mimic_root), *arguments]) == 0
    return out


@pytest.fixture(scope="session")
def chain(corpus_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every stage trained for a few steps through the command line: encoder, vqgan, tokens,
    backbone, stage1, stage2.
    """
    out = tmp_path_factory.mktemp("chain")
    corpora = f"--data.corpora=[{corpus_path}]"
    short = [
        *QUIET,
        corpora,
        "--trainer.log_every_n_steps=2",
        "--trainer.max_steps=4",
        "--trainer.val_check_interval=2",
    ]

    def fit(config: str, name: str, *more: str) -> None:
        assert (
            main(
                [
                    "fit",
                    "--config",
                    f"demo/{config}.yaml",
                    *short,
                    f"--trainer.default_root_dir={out / name}",
                    *more,
                ]
            )
            == 0
        )

    fit(
        "encoder",
        "encoder",
        "--model.init_args.image_size=32",
        DATA,
        f"--model.init_args.findings={FINDINGS}",
        "--data.batch_size=8",
    )
    vqgan = [
        "--model.init_args.autoencoder.image_size=32",
        "--model.init_args.autoencoder.channels=8",
        "--model.init_args.quantizer.codebook_size=32",
    ]
    vqgan += [
        f"--model.init_args.encoder={out}/encoder/checkpoints/last.ckpt",
        "--model.init_args.gan_start=2",
        "--data.batch_size=8",
    ]
    fit(
        "vqgan",
        "vqgan",
        *vqgan,
        "--data.weights=null",
        "--trainer.max_steps=6",
        "--checkpoint_every=2",
    )
    assert (
        main(
            [
                "tokenize",
                "--corpus",
                str(corpus_path),
                "--tokenizer",
                str(out / "vqgan"),
                "--out",
                str(out / "tokens"),
            ]
        )
        == 0
    )
    fit(
        "backbone",
        "backbone",
        "--model.init_args.width=32",
        "--model.init_args.layers=2",
        "--model.init_args.heads=2",
        "--data.batch_size=16",
    )
    language = [
        f"--model.init_args.backbone={out}/backbone/backbone",
        f"--model.init_args.tokens={out}/tokens",
    ]
    language += [
        f"--data.tokens=[{out}/tokens]",
        "--data.weights=null",
        DATA,
        "--data.batch_size=4",
    ]
    fit("stage1", "stage1", *language)
    fit(
        "stage2",
        "stage2",
        *language,
        f"--model.init_args.init_from={out}/stage1/checkpoints/last.ckpt",
    )
    return out
