"""Features of training images, which tested images are compared with.

Shape legend: B images of a batch, H W height and width in pixels, D features, n training images.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from lightning import Trainer
from torch import Tensor

from mavilt_pl.data.pixels import to_float
from mavilt_pl.data.training_split import TrainingImage, training_images
from mavilt_pl.parallel.distributed import gather_lists

BATCH = 64  # images that an encoder reads at once


def pooled(encoder: Any) -> Callable[[Tensor], Tensor]:
    """Pixels → pooled features of an encoder, moved to where the pixels are."""
    return lambda pixels_BCHW: encoder.to(pixels_BCHW.device).features(encoder.maps(pixels_BCHW))


def training_features(
    trainer: Trainer,
    source: int,
    features: Callable[[Tensor], Tensor],
    limit: int,
    device: torch.device,
) -> tuple[Tensor, list[TrainingImage]]:
    """This process's share of at most `limit` training images of a source.

    Args:
        trainer: with a `CXRDataModule`.
        source: number of the source.
        features: pixels [B,1,H,W] in [-1, 1] → [B,D].
        limit: over all processes.
        device: of the pixels.

    Returns:
        Features float32 [n,D] on the CPU, and the images.
    """
    data = trainer.datamodule
    corpus = data.corpora[source]
    # Every process takes each n-th, so that all have about as many.
    images = training_images(corpus, data.options, limit)[trainer.global_rank :: trainer.world_size]
    read = []
    for start in range(0, len(images), BATCH):
        batch = images[start : start + BATCH]
        pixels = np.stack([corpus.pixels(image.image) for image in batch])
        with torch.inference_mode():
            # On the CPU: 10,000 images of 2,048 features would take a GPU's memory for long.
            read.append(features(to_float(pixels)[:, None].to(device)).float().cpu())
    return torch.cat(read) if read else torch.empty(0, 0), images


class NearestReports:
    """The reports of the training studies whose images are nearest under an encoder.

    Args:
        trainer: with a `CXRDataModule`.
        source: number of the source.
        features: pixels [B,1,H,W] in [-1, 1] → [B,D].
        limit: of training images.
        device: of the features.
    """

    def __init__(
        self,
        trainer: Trainer,
        source: int,
        features: Callable[[Tensor], Tensor],
        limit: int,
        device: torch.device,
    ):
        data = trainer.datamodule
        own, images = training_features(trainer, source, features, limit, device)
        found = []
        for feature_D, image in zip(own, images):
            text = data.options.text_of(data.corpora[source].text(image.row))
            # A study without a report has none to give.
            if text:
                found.append((image.row, feature_D, text))
        # In the order of the table, so that ties do not depend on the number of processes.
        everywhere = sorted(gather_lists(found), key=lambda one: one[0])
        self.texts = [text for _, _, text in everywhere]
        self.features, self.device = features, device
        self.known_nD = torch.empty(0, 0)
        if everywhere:
            self.known_nD = torch.stack([feature_D for _, feature_D, _ in everywhere]).to(device)

    def of(self, pixels_BCHW: Tensor) -> list[str] | None:
        """A report for each image; None without training reports."""
        if not self.texts:
            return None
        with torch.inference_mode():
            read_BD = self.features(pixels_BCHW.to(self.device)).float()
        # Cosine, since the length of a pooled feature says little about what an image shows.
        unit_BD, unit_nD = (
            torch.nn.functional.normalize(x, dim=1) for x in (read_BD, self.known_nD)
        )
        return [self.texts[row] for row in (unit_BD @ unit_nD.T).argmax(1).tolist()]
