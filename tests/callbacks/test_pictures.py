"""What the VQ-GAN's validation leaves in TensorBoard, read back as pictures."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import DataLoader

from mavilt_pl.callbacks import Pictures
from mavilt_pl.data.corpus import Corpus


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
