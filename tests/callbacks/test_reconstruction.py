"""The tokenizer's figures through the command line, in validation and in the test."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torchvision
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from words import DATA, QUIET

from mavilt_pl.cli import main

METRICS = "--trainer.callbacks+=mavilt_pl.callbacks.ReconstructionMetrics"


@pytest.mark.slow
def test_validation_has_ssim_and_the_test_computes_everything_once(
    corpus_path: Path, tmp_path: Path, chain: Path
) -> None:
    """The shipped vqgan.yaml brings ReconstructionMetrics without a judge; one with a judge
    replaces it in the test.
    """
    small = {
        "image_size": 32,
        "channels": 8,
        "channel_multipliers": [1, 2, 2],
        "num_res_blocks": 1,
        "attention_resolutions": [],
        "latent_dim": 8,
    }
    words = [
        "--config",
        "vqgan.yaml",
        *QUIET,
        DATA,
        f"--data.corpora=[{corpus_path}]",
        "--data.num_workers=0",
        f"--model.init_args.autoencoder={json.dumps(small)}",
        f"--trainer.default_root_dir={tmp_path}",
    ]
    steps = ["--trainer.max_steps=2", "--trainer.val_check_interval=2", "--checkpoint_every=2"]
    assert main(["fit", *words, *steps, "--trainer.log_every_n_steps=1"]) == 0
    reader = EventAccumulator(str(tmp_path / "tensorboard"))
    reader.Reload()
    logged = {
        tag for tag in reader.Tags()["scalars"] if tag.startswith("val/phantom_mimic/tokenizer/")
    }
    assert {tag.rsplit("/", 1)[-1] for tag in logged} == {
        "psnr",
        "ssim",
        "gradient_psnr",
        "codebook_used",
        "codebook_perplexity",
    }
    torch.save(torchvision.models.alexnet(weights=None).state_dict(), tmp_path / "alexnet.pth")
    test = [
        "test",
        *words,
        METRICS,
        f"--trainer.callbacks.judge={chain}/encoder/checkpoints/last.ckpt",
    ]
    writer = "--trainer.callbacks+=mavilt_pl.evaluation.ResultsWriter"
    point = f"--ckpt_path={tmp_path}/checkpoints/last.ckpt"
    assert main([*test, f"--trainer.callbacks.lpips={tmp_path}/alexnet.pth", writer, point]) == 0
    figures = json.loads((tmp_path / "test/results.json").read_text())["figures"]
    names = [figure["metric"] for figure in figures]
    assert len(names) == len(set(names))
    assert all(figure["n"] for figure in figures)
    assert {"ssim", "gradient_psnr", "lpips", "original_auroc_macro", "fid_cxr"} <= set(names)
    assert main([*test, f"--trainer.callbacks.lpips={tmp_path}/nowhere.pth", writer, point]) == 1
