"""What the tokenizer's loss owes to the clinical encoder: where its findings are, and eyes that
fine patterns cannot please.

Averaged over pixels, a nodule is nothing: 25 of 4,096. `finding_map` gives its pixels the weight
that the clinical encoder gives them (Grad-CAM, arXiv 1610.02391), each finding the same whatever
its size.

A network can be told of a nodule by speckles that no reader would call one. `blurred` takes such
patterns away from both images before they are compared, so that only what is as large as a finding
can stand for it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mavilt_pl.encoders.loading import Classifier


def finding_map(encoder: Classifier, maps: list[Tensor], size: int) -> Tensor:
    """Where the encoder reads its findings, float32 [B,1,size,size], at least 0.

    Each finding's map has mean 1 over the image and counts by its probability; the sum is divided
    by the number of findings that are seen, where that is above 1. So the mean is 1 where something
    is found and near 0 where nothing is. `maps` are the encoder's feature maps of the images; the
    gradient runs through its last level only.
    """
    with torch.enable_grad(), torch.autocast(maps[-2].device.type, enabled=False):
        fine = maps[-2].detach().float().requires_grad_(True)
        logits_BF = encoder.logits([encoder.last_level(fine)])
        slopes = [
            torch.autograd.grad(column.sum(), fine, retain_graph=True)[0]
            for column in logits_BF.unbind(1)
        ]
    found_BFhw = torch.stack([(slope * fine.detach()).sum(1) for slope in slopes], 1).relu()
    found_BFhw = found_BFhw / (found_BFhw.mean((2, 3), keepdim=True) + 1e-6)
    seen_BF = logits_BF.detach().sigmoid()
    share_BF = seen_BF / seen_BF.sum(1, keepdim=True).clamp(min=1)
    found = torch.einsum("bfhw,bf->bhw", found_BFhw, share_BF)[:, None]
    return F.interpolate(found, size=(size, size), mode="bilinear")


def blurred(images: tuple[Tensor, ...], most: float, step: int) -> tuple[Tensor, ...]:
    """Images [B,1,H,W] through one Gaussian blur; its deviation is drawn between 0 and `most`
    pixels, by the step, so that all ranks and a resumed training see the same.
    """
    deviation = float(torch.rand((), generator=torch.Generator().manual_seed(step))) * most + 1e-3
    reach = int(3 * most + 1)
    offsets = torch.arange(-reach, reach + 1, device=images[0].device, dtype=torch.float32)
    kernel = torch.exp(-0.5 * (offsets / deviation).square())
    kernel = kernel / kernel.sum()

    def blur(pixels_BCHW: Tensor) -> Tensor:
        padded = F.pad(pixels_BCHW, (reach,) * 4, mode="replicate")
        return F.conv2d(F.conv2d(padded, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1))

    return tuple(blur(image) for image in images)
