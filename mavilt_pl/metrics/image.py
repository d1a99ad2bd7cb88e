"""Quality of images: reconstruction, use of the codebook, and Fréchet distances.

Pixels are float32 [B,1,H,W] in [-1, 1].

Shape legend: B batch, C channels, H W height and width in pixels, N codes of an image, D features,
n images.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.functional.image import structural_similarity_index_measure

from mavilt_pl.errors import MaviltWarning
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


def frechet_distance(real_nD: np.ndarray, other_nD: np.ndarray) -> float:
    """Fréchet distance of Gaussians fitted to features (arXiv 1706.08500, eq. 6), in float64.

    The trace of √(S₁S₂) is the sum of the roots of the eigenvalues of √S₁ S₂ √S₁, which is
    symmetric: exact, real and faster than the matrix root that pytorch-fid takes.

    >>> features = np.array([[0.0], [1.0], [2.0]])
    >>> round(frechet_distance(features, features + 3), 6)
    9.0
    """
    mean1, mean2 = real_nD.mean(0), other_nD.mean(0)
    cov1 = np.atleast_2d(np.cov(real_nD, rowvar=False))
    cov2 = np.atleast_2d(np.cov(other_nD, rowvar=False))
    # √S₁ from its eigenvectors; `atleast_2d` above is for a single feature.
    values, vectors = np.linalg.eigh(cov1)
    # Rounding leaves eigenvalues just below 0.
    root1 = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    middle = np.linalg.eigvalsh(root1 @ cov2 @ root1)
    trace_of_root = np.sqrt(middle.clip(0)).sum()
    shift = ((mean1 - mean2) ** 2).sum()
    distance = shift + np.trace(cov1) + np.trace(cov2) - 2 * trace_of_root
    return float(distance)


class FrechetDistance(PatientBootstrapMetric):
    """Fréchet distance between features of real and of generated images.

    There is no interval: a resample repeats images, which moves the distance away from 0, so the
    distance itself lies outside of the resamples'. With fewer than two images on one side there is
    no figure; with no more images than features a warning says what the figure is worth.

    Args:
        name: of the figure, such as fid_cxr.
        width: D.
        protocol: how the features are computed.
    """

    def __init__(self, name: str, width: int, protocol: str = ""):
        # The first column is 1 for real images.
        super().__init__(width + 1)
        self.name, self.protocol = name, protocol

    def update(self, features_BD: Tensor, real: bool, patients: Sequence[str]) -> None:
        """Add features [B,D] of real or of generated images."""
        # In one table with the features, so that one gather and one sort serve both sides.
        is_real_B1 = torch.full((len(features_BD), 1), float(real), device=features_BD.device)
        self.add_rows(torch.cat([is_real_B1, features_BD], 1), patients)

    def compute(self) -> dict[str, Estimate]:
        """The figure under its name."""
        rows, _ = self.table()
        is_real = rows[:, 0] == 1
        features = rows[:, 1:]
        # A covariance needs two images.
        if is_real.sum() < 2 or (~is_real).sum() < 2:
            return {}
        num_images = int(min(is_real.sum(), (~is_real).sum()))
        width = features.shape[1]
        # Then a covariance is singular, and the distance of equal distributions far from 0.
        if num_images <= width:
            warnings.warn(
                f"{self.name} of {num_images:,} images has {width:,} features: with fewer images "
                "than features it depends more on their number than on the images. Compare it "
                f"with figures of {num_images:,} images only",
                MaviltWarning,
                stacklevel=2,
            )
        value = frechet_distance(features[is_real], features[~is_real])
        num_generated = int((~is_real).sum())
        return {self.name: Estimate(value, None, None, num_generated)}


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
