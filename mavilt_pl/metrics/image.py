"""Quality of images: reconstruction, use of the codebook; Inception and LPIPS from local files.

Pixels are float32 [B,1,H,W] in [-1, 1].

Shape legend: B batch, C channels, H W height and width in pixels, N codes of an image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.functional.image import structural_similarity_index_measure

from mavilt_pl.metrics.bootstrap import (
    Estimate,
    PatientBootstrapMetric,
    drop_undefined,
    weighted_mean_ci,
)

Distance = Callable[[Tensor, Tensor], Tensor]  # two batches of pixels → [B]


def psnr(real_BCHW: Tensor, recon_BCHW: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image in dB, [B]; the peak is the range, 2.

    >>> psnr(torch.zeros(1, 1, 8, 8), torch.full((1, 1, 8, 8), 0.2)).round()
    tensor([20.])
    """
    # The clamp bounds PSNR at 106 dB for equal images, so means stay finite.
    error_B = (real_BCHW - recon_BCHW).square().flatten(1).mean(1)
    return 10 * torch.log10(4 / error_B.clamp(min=1e-10))


def gradient_psnr(real_BCHW: Tensor, recon_BCHW: Tensor) -> Tensor:
    """PSNR in dB of the forward differences along both axes, [B]: how well edges are kept.

    >>> image = torch.eye(8)[None, None]
    >>> gradient_psnr(image, image + 0.5) > gradient_psnr(image, 0.9 * image)
    tensor([True])
    """
    # Pooled over both axes, so a picture of vertical edges only is not averaged with its empty
    # axis.
    squared_errors = []
    for axis in (-1, -2):
        error = real_BCHW.diff(dim=axis) - recon_BCHW.diff(dim=axis)
        squared_errors.append(error.square().flatten(1))
    error_B = torch.cat(squared_errors, 1).mean(1)
    return 10 * torch.log10(4 / error_B.clamp(min=1e-10))


class ReconstructionScores(PatientBootstrapMetric):
    """Mean psnr, ssim and gradient_psnr over images, and lpips if a distance is given.

    Args:
        lpips: a distance of images, see `lpips_distance`.
    """

    protocol = "per image, range 2, mean over images; SSIM 11×11 Gaussian"

    def __init__(self, lpips: Distance | None = None) -> None:
        names = ["psnr", "ssim", "gradient_psnr"]
        if lpips is not None:
            names.append("lpips")
        super().__init__(len(names))
        self.names, self.lpips = names, lpips
        if lpips is not None:
            # An instance's protocol, so the class's stays as it is.
            self.protocol += "; LPIPS on three equal channels at the images' own size"

    def update(self, real_BCHW: Tensor, recon_BCHW: Tensor, patients: Sequence[str]) -> None:
        """Add images with their reconstructions."""
        # A range as a pair clamps both images to it, as they are shown.
        ssim: Any = structural_similarity_index_measure(
            recon_BCHW, real_BCHW, data_range=(-1.0, 1.0), reduction="none"
        )
        columns = [
            psnr(real_BCHW, recon_BCHW),
            ssim.reshape(-1),
            gradient_psnr(real_BCHW, recon_BCHW),
        ]
        if self.lpips is not None:
            columns.append(self.lpips(real_BCHW, recon_BCHW))
        self.add_rows(torch.stack(columns, 1), patients)

    def compute(self) -> dict[str, Estimate]:
        """All figures."""
        rows, patients = self.table()
        if not len(rows):
            return {}
        figures = {}
        for column, name in enumerate(self.names):
            figures[name] = weighted_mean_ci(rows[:, column], patients)
        return drop_undefined(figures)


class CodebookUse(Metric):
    """Use of the K codes over a set of images.

    `codebook_used` is the share of codes seen at least once; `codebook_perplexity` is exp of the
    entropy of their use, the number of codes that would have the same entropy if used equally.

    Args:
        codebook_size: K.
    """

    protocol = "over all images of the set"
    full_state_update = False
    counts: Tensor
    images: Tensor

    def __init__(self, codebook_size: int):
        super().__init__()
        zeros_K = torch.zeros(codebook_size, dtype=torch.int64)
        self.add_state("counts", zeros_K, dist_reduce_fx="sum")
        self.add_state("images", torch.tensor(0), dist_reduce_fx="sum")

    def protocol_of(self, name: str) -> str:
        """How the figure of this name is computed."""
        return self.protocol

    def update(self, codes_BN: Tensor) -> None:
        """Add the codes int64 [B,N] of images."""
        self.counts += torch.bincount(codes_BN.flatten(), minlength=len(self.counts))
        self.images += len(codes_BN)

    def compute(self) -> dict[str, Estimate]:
        """Both figures; none without images."""
        images, counts_K = int(self.images), self.counts.double()
        if not images:
            return {}
        # 0 log 0 counts as 0, by the clamp.
        share_K = counts_K / counts_K.sum()
        log_share_K = share_K.clamp(min=1e-30).log()
        entropy = float(-(share_K * log_share_K).sum())
        used = float((counts_K > 0).double().mean())
        return {
            "codebook_used": Estimate(used, None, None, images),
            "codebook_perplexity": Estimate(float(np.exp(entropy)), None, None, images),
        }


def inception_features(weights: str | Path) -> Callable[[Tensor], Tensor]:
    """pytorch-fid's Inception: pixels [B,1,H,W] → pooled features [B,2048].

    Grey pixels are repeated to three channels.

    Args:
        weights: a local file of pytorch-fid's own, `pt_inception-2015-12-05-6726825d.pth`.

    Raises:
        ValueError: the file does not exist.

    >>> inception_features("nowhere.pth")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ValueError: Inception weights nowhere.pth do not exist; expected pytorch-fid's ...
    """
    from pytorch_fid import inception

    if not Path(weights).exists():
        raise ValueError(
            f"Inception weights {weights} do not exist; expected pytorch-fid's "
            "pt_inception-2015-12-05-6726825d.pth on this disk"
        )

    def read_local(*_: Any, **__: Any) -> Any:
        """Stands in for the download."""
        return torch.load(weights, map_location="cpu", weights_only=True)

    # The package always downloads; its download is replaced by reading the local file.
    with patch.object(inception, "load_state_dict_from_url", read_local):
        net = inception.InceptionV3([3], normalize_input=True).eval().requires_grad_(False)

    def features(pixels_BCHW: Tensor) -> Tensor:
        """[B,1,H,W] → [B,2048]."""
        # pytorch-fid expects [0, 1] and normalises by itself.
        unit_BCHW = ((pixels_BCHW + 1) / 2).clamp(0, 1)
        rgb_B3HW = unit_BCHW.expand(-1, 3, -1, -1)
        with torch.inference_mode():
            return net.to(rgb_B3HW.device)(rgb_B3HW)[0].flatten(1)

    return features


def lpips_distance(weights: str | Path) -> Distance:
    """LPIPS (arXiv 1801.03924, version 0.1) of each pair of grey images, [B]; 0 if equal.

    Args:
        weights: a local file of torchvision's own backbone, `alexnet-owt-7be5be79.pth` or
            `vgg16-397923af.pth`. The linear heads are part of torchmetrics.

    Raises:
        ValueError: the file does not exist, or is of another network.

    >>> lpips_distance("nowhere.pth")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ValueError: LPIPS weights nowhere.pth do not exist; expected torchvision's ...
    """
    from torchmetrics.functional.image import lpips
    from torchvision import models

    expected = "expected torchvision's alexnet-owt-7be5be79.pth or vgg16-397923af.pth on this disk"
    if not Path(weights).is_file():
        raise ValueError(
            f"LPIPS weights {weights} do not exist; {expected} (nothing is downloaded)"
        )
    # torchvision's file has the classifier too; LPIPS reads convolutions only.
    state = torch.load(weights, map_location="cpu", weights_only=True)
    prefix = "features."
    backbone = {}
    for key, value in state.items():
        if key.startswith(prefix):
            backbone[key.removeprefix(prefix)] = value
    # AlexNet has five convolutions, the last two at 8 and 10; VGG-16 has one at 12 too.
    is_alexnet = "10.weight" in backbone and "12.weight" not in backbone
    build = models.alexnet if is_alexnet else models.vgg16

    def local_backbone(*_: Any, **__: Any) -> nn.Module:
        """Stands in for the download."""
        net = build(weights=None).features
        try:
            net.load_state_dict(backbone)
        except RuntimeError:
            raise ValueError(
                f"LPIPS weights {weights} are neither AlexNet's nor VGG-16's; {expected}"
            ) from None
        return net

    # The package would download the backbone; it is given the local one.
    with patch.object(lpips, "_get_tv_model_features", local_backbone):
        net = lpips._NoTrainLpips(net="alex" if is_alexnet else "vgg")

    def distance(real_BCHW: Tensor, recon_BCHW: Tensor) -> Tensor:
        """[B,1,H,W] twice → [B]."""
        # LPIPS expects three channels in [-1, 1].
        real_B3HW = real_BCHW.clamp(-1, 1).expand(-1, 3, -1, -1)
        recon_B3HW = recon_BCHW.clamp(-1, 1).expand(-1, 3, -1, -1)
        with torch.inference_mode():
            return net.to(real_B3HW.device)(real_B3HW, recon_B3HW).reshape(-1)

    return distance
