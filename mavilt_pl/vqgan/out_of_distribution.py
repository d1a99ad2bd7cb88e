"""Measure how far images are from the training images of a corpus.

`mavilt_pl.data.ood_reference` says how measurements become a score.

Shape legend: B images, N codes an image, D features, H W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mavilt_pl.data.corpus import Corpus
from mavilt_pl.data.ood_reference import FEWEST_CALIBRATION, Measured, OODReference
from mavilt_pl.data.pixels import to_float
from mavilt_pl.data.records import OTHER, SIDES, Side, Split
from mavilt_pl.vqgan.tokenizer import Tokenizer

FEWEST_TRAINING = 20
# A mean and a covariance of some hundred features need no more, and a minute on a CPU is enough.
MOST_TRAINING, MOST_CALIBRATION = 1000, 500


@torch.inference_mode()
def measure(tokenizer: Tokenizer, pixels_BCHW: Tensor) -> Measured:
    """Codes, features and reconstruction errors of pixels [B,1,H,W] in [-1, 1]."""
    latents_BDhw, features_BD = _features(tokenizer, pixels_BCHW)
    _, codes_BN, _ = tokenizer.quantizer(latents_BDhw)
    # From codes, not from latents: what the language model does not get counts as lost.
    differences = tokenizer.decode(codes_BN) - pixels_BCHW
    # From a range of 2 to grey levels.
    errors_B = differences.abs().mean((1, 2, 3)) * 127.5
    return Measured(codes_BN.cpu().numpy(), features_BD, errors_B.double().cpu().numpy())


def _features(tokenizer: Tokenizer, pixels_BCHW: Tensor) -> tuple[Tensor, np.ndarray]:
    """Latents before quantisation [B,D,h,w], and features [B,D] of the images.

    Features are the means of the latents over each quarter of the image, so that an image that is
    turned over has others, and of the frozen classifier's last map if the tokenizer has one.
    """
    # φ runs once for both, its map and the latents that it is added to.
    maps = None
    if tokenizer.clinical is not None:
        maps = tokenizer.clinical.maps(pixels_BCHW)
    latents_BDhw = tokenizer.latents(pixels_BCHW, maps)
    means = [F.adaptive_avg_pool2d(latents_BDhw, 2).flatten(1)]
    if maps is not None:
        means.append(maps[-1].mean((2, 3)))
    return latents_BDhw, torch.cat(means, 1).double().cpu().numpy()


@torch.inference_mode()
def fit_references(corpus: Corpus, tokenizer: Tokenizer, batch_size: int) -> list[OODReference]:
    """A reference for each view that a corpus has enough images of.

    Args:
        corpus: whose training and validation images are measured, some of them if there are many.
        tokenizer: on its device.
        batch_size: images at a time.
    """
    references = []
    for side in OTHER:
        training = _image_rows(corpus, "train", side, MOST_TRAINING)
        calibration = _image_rows(corpus, "val", side, MOST_CALIBRATION)
        # No promise is better than one that is not kept.
        if len(training) < FEWEST_TRAINING or len(calibration) < FEWEST_CALIBRATION:
            continue
        # Decoding takes half of the time, and of training images it would say nothing.
        features = []
        for pixels in _batches(corpus, tokenizer, training, batch_size):
            features.append(_features(tokenizer, pixels)[1])
        measured = []
        for pixels in _batches(corpus, tokenizer, calibration, batch_size):
            measured.append(measure(tokenizer, pixels))
        reference = OODReference.fit(
            side,
            np.concatenate(features),
            np.concatenate([one.features for one in measured]),
            np.concatenate([one.errors for one in measured]),
        )
        references.append(reference)
    return references


def _image_rows(corpus: Corpus, split: Split, side: Side, most: int) -> list[int]:
    """Image rows of a view, spread evenly over the studies of a split."""
    rows = []
    for study in corpus.rows(split):
        for image, view in corpus.image_rows(int(study)):
            # An unnamed view counts as frontal, as it does when a model reads it.
            if SIDES.get(view, "frontal") == side:
                rows.append(image)
                break
    # Spread evenly: tables are often in the order of years or scanners.
    step = max(len(rows) / most, 1)
    return [rows[int(number * step)] for number in range(min(len(rows), most))]


def _batches(
    corpus: Corpus, tokenizer: Tokenizer, rows: Sequence[int], batch_size: int
) -> Iterator[Tensor]:
    """Pixels [B,1,H,W] in [-1, 1] of the images, on the tokenizer's device."""
    device = tokenizer.quantizer.codebook.device
    for start in range(0, len(rows), batch_size):
        images = np.stack([corpus.pixels(row) for row in rows[start : start + batch_size]])
        yield to_float(torch.from_numpy(images).to(device))[:, None]
