"""Where the findings are: the clinical encoder's own gradient says which pixels it reads a finding from.

Averaged over pixels, a nodule is nothing: 25 of 4,096. The map of this file gives its pixels the weight that the
clinical encoder gives them (Grad-CAM, arXiv 1610.02391), for one finding of each image at a time, so that a small
finding weighs as much as a large one.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mavilt_pl.encoders.frozen import Classifier


def finding_map(encoder: Classifier, maps: list[Tensor], size: int) -> Tensor:
    """Where the encoder reads one finding of each image, float32 [B,1,size,size], mean 1 over each image.

    The finding is drawn among those that the encoder sees (logit above 0); where it sees none, any. `maps` are the
    encoder's feature maps of the images; the gradient runs through its last level only.
    """
    with torch.enable_grad():
        fine = maps[-2].detach().requires_grad_(True)
        logits_BF = encoder.logits([encoder.last_level(fine)])
        picked = torch.multinomial((logits_BF.detach() > 0).float() + 1e-3, 1)
        (slope,) = torch.autograd.grad(logits_BF.gather(1, picked).sum(), fine)
    found = (slope * fine.detach()).sum(1, keepdim=True).relu()
    found = F.interpolate(found, size=(size, size), mode="bilinear")
    return found / (found.mean((1, 2, 3), keepdim=True) + 1e-6)
