"""Small corpora and models that the tests share.

The code under test makes all of them; nothing is downloaded.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest
import torch
from words import DATA, FINDINGS, QUIET, mavilt

# Tests compare bits, which differ from GPU to GPU.
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
# One thread a test process: workers of pytest-xdist share the cores, and waiting threads spin.
torch.set_num_threads(1)
# Loggers keep the stream that pytest captured for an earlier test, and which is closed by now.
logging.raiseExceptions = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Count every test that uses trained models as slow."""
    for item in items:
        if "chain" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)


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
    sizes = "--studies 61 --validate 7 --test 11 --size 48 --workers 2"
    mavilt(f"phantom mimic {sizes}", root)
    return root


@pytest.fixture(scope="session")
def corpus_path(mimic_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of 32² images of these studies."""
    out = tmp_path_factory.mktemp("corpora") / "mimic"
    options = "--size 32 --name phantom_mimic --workers 2"
    mavilt(f"prepare mimic-cxr-jpg {options}", mimic_root, "--out", out)
    return out


@pytest.fixture(scope="session")
def chain(corpus_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every stage trained for a few steps through the command line.

    Folders: encoder, vqgan, tokens, backbone, stage1, stage2.
    """
    out = tmp_path_factory.mktemp("chain")

    def fit(name: str, *words: str) -> None:
        mavilt(
            f"fit --config demo/{name}.yaml",
            *QUIET,
            f"--data.corpora=[{corpus_path}]",
            f"--trainer.default_root_dir={out / name}",
            "--trainer.log_every_n_steps=2",
            "--trainer.max_steps=4",
            "--trainer.val_check_interval=2",
            # Last, so that a stage may replace what is above.
            *words,
        )

    fit(
        "encoder",
        DATA,
        "--data.batch_size=8",
        "--model.init_args.image_size=32",
        f"--model.init_args.findings={FINDINGS}",
    )
    fit(
        "vqgan",
        "--data.batch_size=8",
        "--data.weights=null",
        "--model.init_args.autoencoder.image_size=32",
        "--model.init_args.autoencoder.channels=8",
        "--model.init_args.quantizer.codebook_size=32",
        f"--model.init_args.encoder={out}/encoder/checkpoints/last.ckpt",
        # Four of the six steps have a discriminator, and three checkpoints are written.
        "--model.init_args.gan_start=2",
        "--trainer.max_steps=6",
        "--checkpoint_every=2",
    )
    mavilt(
        "tokenize", "--corpus", corpus_path, "--tokenizer", out / "vqgan", "--out", out / "tokens"
    )
    fit(
        "backbone",
        "--data.batch_size=16",
        "--model.init_args.width=32",
        "--model.init_args.layers=2",
        "--model.init_args.heads=2",
    )
    language = [
        DATA,
        "--data.batch_size=4",
        "--data.weights=null",
        f"--data.tokens=[{out}/tokens]",
        f"--model.init_args.backbone={out}/backbone/backbone",
        f"--model.init_args.tokens={out}/tokens",
    ]
    fit("stage1", *language)
    from_stage1 = f"--model.init_args.init_from={out}/stage1/checkpoints/last.ckpt"
    fit("stage2", *language, from_stage1)
    return out
