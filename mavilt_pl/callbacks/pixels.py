"""Pixels for callbacks of modules that know only codes: a study's own image, and images of codes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from lightning import Trainer
from torch import Tensor


def originals(trainer: Trainer, studies: Sequence[Mapping[str, Any]], source: int) -> Tensor:
    """The prepared images of studies of a source, float32 [B,1,H,W] in [-1,1]."""
    corpus = trainer.datamodule.opened[source]  # type: ignore[attr-defined]
    pixels = np.stack([corpus.pixels(study["image_row"]) for study in studies])
    return torch.from_numpy(pixels.astype(np.float32)).div_(127.5).sub_(1)[:, None]


def to_uint8(pixels_BCHW: Tensor) -> np.ndarray:
    """[-1,1] → uint8 [B,H,W]."""
    return ((pixels_BCHW[:, 0].detach().cpu().clamp(-1, 1) + 1) * 127.5).round().byte().numpy()
