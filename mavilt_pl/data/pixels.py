"""Between the bytes of a prepared image and the floats that a network sees."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def to_float(pixels: np.ndarray | Tensor) -> Tensor:
    """uint8 of any shape → float32 in [-1,1], on the device they lie on."""
    floats = (
        pixels.float()
        if isinstance(pixels, Tensor)
        else torch.from_numpy(pixels.astype(np.float32))
    )
    return floats.div_(127.5).sub_(1)


def to_uint8(pixels_BCHW: Tensor) -> np.ndarray:
    """[B,1,H,W] in [-1,1] (what lies outside is cut off) → uint8 [B,H,W]."""
    return ((pixels_BCHW[:, 0].detach().cpu().clamp(-1, 1) + 1) * 127.5).round().byte().numpy()
