"""What the VQ-GAN's validation leaves in TensorBoard, read back as pictures."""

from __future__ import annotations

import io
import json
import shutil
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import DataLoader
from words import DATA, QUIET

from mavilt_pl.callbacks import Pictures
from mavilt_pl.cli import main
from mavilt_pl.data.corpus import Corpus
from mavilt_pl.errors import MaviltWarning


class StandIn(LightningModule):
    """Reconstructs a blurred image; uses few codes often, some once and most never."""

    tokenizer = SimpleNamespace(codebook_size=64)

    def validation_step(self, batch: dict, index: int, dataloader_idx: int = 0) -> dict:
        recon = torch.nn.functional.avg_pool2d(batch["pixels"], 5, 1, 2)
        return {"reconstruction": recon, "codes": batch["codes"]}


def pictures(root: Path, data: list[dict], batch: int = 4) -> dict[str, np.ndarray]:
    trainer = Trainer(
        accelerator="cpu",
        logger=TensorBoardLogger(root, "", "tb"),
        enable_progress_bar=False,
        callbacks=[Pictures(4)],
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.validate(StandIn(), DataLoader(data, batch), verbose=False)
    reader = EventAccumulator(str(root / "tb"))
    reader.Reload()
    return {
        tag: np.array(
            Image.open(io.BytesIO(reader.Images(tag)[0].encoded_image_string)).convert("L")
        ).astype(int)
        for tag in reader.Tags()["images"]
    }


def test_rows_and_code_usage(corpus_path: Path, tmp_path: Path) -> None:
    corpus = Corpus(corpus_path)
    pixels = torch.stack(
        [torch.from_numpy(corpus.pixels(row)).float() / 127.5 - 1 for row in range(8)]
    )[:, None]
    codes = torch.arange(16).repeat(8, 1)
    # Half of the positions are code 0; codes 9 to 15 are used 8 times; the others never.
    codes[:, :8] = 0
    shown = pictures(tmp_path, [{"pixels": x, "codes": c} for x, c in zip(pixels, codes)])
    assert set(shown) == {"val/original, reconstruction, difference, edges", "val/code usage"}

    rows = shown["val/original, reconstruction, difference, edges"]
    size = pixels.shape[-1]
    margin = rows.shape[1] - 4 * size
    # The names of the rows are in the margin.
    assert rows.shape[0] == 5 * size
    assert rows[:, :margin].max() > 100
    original, _, _, edges, blurred = (rows[i * size : (i + 1) * size, margin:] for i in range(5))
    expected = ((torch.cat(list(pixels[:4, 0]), 1) + 1) * 127.5).round().numpy()
    assert np.abs(original - expected).max() <= 1
    # Both rows of edges are on one scale, so that blur shows.
    assert 0 < blurred.mean() < 0.75 * edges.mean()
    assert edges.max() == 255

    bars = shown["val/code usage"][44:238, 44:550]
    heights = (bars > 100).sum(0)  # one column of bars a pixel
    assert heights[0] > heights[40] > heights[200]
    assert heights[-1] <= 2
    dead = (heights <= 2).mean()  # only the line of equal use
    assert abs(dead - 56 / 64) < 0.03


def fit(stage: str, chain: Path, corpus: Path, tokens: Path, out: Path) -> list[str]:
    """One step by the shipped config, and one validation."""
    return [
        "fit",
        f"--config={stage}.yaml",
        *QUIET,
        DATA,
        f"--data.corpora={corpus}",
        f"--data.tokens={tokens}",
        "--data.eval_batch_size=4",
        f"--model.init_args.tokens={tokens}",
        f"--model.init_args.backbone={chain}/backbone/backbone",
        "--model.init_args.model.max_text_tokens=16",
        "--trainer.max_steps=1",
        "--trainer.val_check_interval=1",
        "--trainer.limit_val_batches=1",
        f"--trainer.default_root_dir={out}",
    ]


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_a_stage_shows_images_and_texts(
    stage: str, chain: Path, corpus_path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The tokenizer is found by the token cache's record."""
    assert main(fit(stage, chain, corpus_path, chain / "tokens", tmp_path)) == 0
    reader = EventAccumulator(str(tmp_path / "tensorboard"))
    reader.Reload()
    (shown,) = reader.Images("val/real, drawn from its text")
    assert (shown.width, shown.height) == (4 * 32, 2 * 32)
    texts = {}
    for tag in ("val/reports", "val/notice"):
        (event,) = reader.Tensors(f"{tag}/text_summary")
        texts[tag] = event.tensor_proto.string_val[0]
    assert b"| generated | reference |" in texts["val/reports"]
    # What holds patients' data says so, in the file and in the log.
    assert b"images and texts of the studies" in texts["val/notice"]
    assert f"{tmp_path}/tensorboard: the event files hold images and texts" in caplog.text


def test_a_tokenizer_that_is_gone_costs_the_images_only(
    chain: Path, corpus_path: Path, tmp_path: Path
) -> None:
    tokens = shutil.copytree(chain / "tokens", tmp_path / "tokens")
    facts = json.loads((tokens / "tokens.json").read_text())
    facts["tokenizer_path"] = str(tmp_path / "absent.ckpt")
    (tokens / "tokens.json").write_text(json.dumps(facts))
    with pytest.warns(MaviltWarning, match=r"no generated images: .* is not found"):
        assert main(fit("stage1", chain, corpus_path, tokens, tmp_path / "run")) == 0
