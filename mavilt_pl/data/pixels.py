"""Convert between the bytes of a prepared image and the floats that a network sees.

Shapes: B batch, C channels (1), H height, W width.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def to_float(pixels: np.ndarray | Tensor) -> Tensor:
    """uint8 of any shape → float32 in [-1, 1], on the same device.

    >>> to_float(np.array([0, 255], np.uint8))
    tensor([-1.,  1.])
    """
    if isinstance(pixels, Tensor):
        floats = pixels.float()
    else:
        # astype copies: the pixels of a corpus are mapped read-only.
        floats = torch.from_numpy(pixels.astype(np.float32))
    # In place on a copy that is ours: a batch of images is the largest tensor of the loader.
    return floats.div_(127.5).sub_(1)


def to_uint8(pixels_BCHW: Tensor) -> np.ndarray:
    """[B,1,H,W] in [-1, 1] → uint8 [B,H,W]; values outside the range are clipped.

    >>> to_uint8(torch.tensor([-1.0, 0.2, 3.0]).view(1, 1, 1, 3))
    array([[[  0, 153, 255]]], dtype=uint8)
    """
    # A network's output exceeds the range a little, and a byte would wrap around.
    pixels_BHW = pixels_BCHW[:, 0].detach().cpu().clamp(-1, 1)
    return ((pixels_BHW + 1) * 127.5).round().byte().numpy()
