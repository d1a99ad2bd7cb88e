"""What a picture is worth: reconstruction, codebook use, and Fréchet distances.

Pixels are float32 [B,1,H,W] in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.functional.image import structural_similarity_index_measure

from mavilt_pl.metrics.bootstrap import Estimate, PatientBootstrapMetric, bootstrap, estimate


def psnr(real: Tensor, made: Tensor) -> Tensor:
    """Peak signal to noise ratio of each image in dB, [B]; the peak is the range, 2."""
    return 10 * torch.log10(4 / (real - made).square().flatten(1).mean(1).clamp(min=1e-10))


def gradient_psnr(real: Tensor, made: Tensor) -> Tensor:
    """PSNR in dB of the forward differences along both axes, [B]: how well edges are kept."""
    across = (real.diff(dim=-1) - made.diff(dim=-1)).square().flatten(1)
    down = (real.diff(dim=-2) - made.diff(dim=-2)).square().flatten(1)
    return 10 * torch.log10(4 / torch.cat([across, down], 1).mean(1).clamp(min=1e-10))


class ReconstructionScores(PatientBootstrapMetric):
    """Mean psnr, ssim and gradient_psnr over images, and lpips with `lpips_distance` of local
    weights.
    """

    protocol = "per image, range 2, mean over images; SSIM 11×11 Gaussian"

    def __init__(self, lpips: Callable[[Tensor, Tensor], Tensor] | None = None) -> None:
        super().__init__(3 if lpips is None else 4)
        self.lpips = lpips
        if lpips is not None:
            self.protocol += "; LPIPS on three equal channels at the images' own size"

    def update(self, real: Tensor, made: Tensor, patients: Sequence[str]) -> None:
        ssim = structural_similarity_index_measure(
            made, real, data_range=(-1.0, 1.0), reduction="none"
        )
        columns = [psnr(real, made), ssim.reshape(-1), gradient_psnr(real, made)]  # type: ignore[union-attr]
        if self.lpips is not None:
            columns.append(self.lpips(real, made))
        self.add_rows(torch.stack(columns, 1), patients)

    def compute(self) -> dict[str, Estimate]:
        rows, patients = self.table()
        found = {
            name: estimate(lambda w, c=c: float(w @ rows[:, c] / w.sum()), patients)  # type: ignore[misc]
            for c, name in enumerate(("psnr", "ssim", "gradient_psnr", "lpips")[: self.width])
            if len(rows)
        }
        return {name: value for name, value in found.items() if value is not None}


class CodebookUse(Metric):
    """codebook_used, the share of the K codes seen at least once, and codebook_perplexity, exp of
    the entropy.
    """

    protocol = "over all images of the set"
    full_state_update = False

    def __init__(self, codes: int):
        super().__init__()
        self.add_state("counts", torch.zeros(codes, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("images", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, codes_BN: Tensor) -> None:
        self.counts += torch.bincount(codes_BN.flatten(), minlength=len(self.counts))  # type: ignore[arg-type]
        self.images += len(codes_BN)  # type: ignore[operator,assignment]

    def compute(self) -> dict[str, Estimate]:
        n, counts = int(torch.as_tensor(self.images)), torch.as_tensor(self.counts).double()
        if not n:
            return {}
        share = counts / counts.sum()
        entropy = float(-(share * share.clamp(min=1e-30).log()).sum())
        used = float((counts > 0).double().mean())
        return {
            "codebook_used": Estimate(used, None, None, n),
            "codebook_perplexity": Estimate(float(np.exp(entropy)), None, None, n),
        }


def frechet_distance(real: np.ndarray, made: np.ndarray) -> float:
    """Fréchet distance of Gaussians fitted to features [n,D] (arXiv 1706.08500, eq. 6), in float64.

    The trace of the root of S₁S₂ is the sum of the roots of the eigenvalues of √S₁ S₂ √S₁, which is
    symmetric.
    """
    mean1, mean2 = real.mean(0), made.mean(0)
    cov1, cov2 = (
        np.atleast_2d(np.cov(real, rowvar=False)),
        np.atleast_2d(np.cov(made, rowvar=False)),
    )
    values, vectors = np.linalg.eigh(cov1)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    middle = np.linalg.eigvalsh(root @ cov2 @ root)
    return float(
        ((mean1 - mean2) ** 2).sum()
        + np.trace(cov1)
        + np.trace(cov2)
        - 2 * np.sqrt(middle.clip(0)).sum()
    )


class FrechetDistance(PatientBootstrapMetric):
    """Fréchet distance between features of real and of made images, under a name such as fid_cxr.

    Features are kept, so that there is an interval (where D ≤ 256); below two images a side there
    is no figure.
    """

    def __init__(self, name: str, width: int, protocol: str = ""):
        super().__init__(width + 1)
        self.name, self.protocol = name, protocol

    def update(self, features_BD: Tensor, real: bool, patients: Sequence[str]) -> None:
        mark = torch.full((len(features_BD), 1), float(real), device=features_BD.device)
        self.add_rows(torch.cat([mark, features_BD], 1), patients)

    def compute(self) -> dict[str, Estimate]:
        rows, patients = self.table()
        real = rows[:, 0] == 1
        if real.sum() < 2 or (~real).sum() < 2:
            return {}
        value = frechet_distance(rows[real, 1:], rows[~real, 1:])

        def again(weights: np.ndarray) -> float:
            drawn = np.repeat(np.arange(len(rows)), weights.astype(int))
            first, second = drawn[real[drawn]], drawn[~real[drawn]]
            return (
                frechet_distance(rows[first, 1:], rows[second, 1:])
                if min(len(first), len(second)) > 1
                else np.nan
            )

        low, high = bootstrap(again, patients, resamples=100) if self.width <= 257 else (None, None)
        return {self.name: Estimate(value, low, high, int((~real).sum()))}


def inception_features(weights: str | Path) -> Callable[[Tensor], Tensor]:
    """pytorch-fid's Inception, pooled features [B,2048], from a local file of its own weights
    (`pt_inception-2015-12-05-6726825d.pth`). Grey pixels in [-1,1] are repeated to three channels.
    """
    from pytorch_fid import inception

    if not Path(weights).exists():
        raise ValueError(
            f"Inception weights {weights} do not exist; expected pytorch-fid's "
            f"pt_inception-2015-12-05-6726825d.pth on this disk"
        )
    # The package always downloads: the same call is made to read the local file, as tensors only.
    with patch.object(
        inception,
        "load_state_dict_from_url",
        lambda *_, **__: torch.load(weights, map_location="cpu", weights_only=True),
    ):
        net: nn.Module = (
            inception.InceptionV3([3], normalize_input=True).eval().requires_grad_(False)
        )

    def features(pixels_BCHW: Tensor) -> Tensor:
        rgb = ((pixels_BCHW + 1) / 2).clamp(0, 1).expand(-1, 3, -1, -1)
        with torch.inference_mode():
            return net.to(rgb.device)(rgb)[0].flatten(1)

    return features


def lpips_distance(weights: str | Path) -> Callable[[Tensor, Tensor], Tensor]:
    """LPIPS (arXiv 1801.03924, version 0.1) of each pair of grey images in [-1,1], [B]; 0 is alike.

    The backbone comes from a local file of torchvision's own weights, `alexnet-owt-7be5be79.pth` or
    `vgg16-397923af.pth`; the heads from torchmetrics, which brings them."""
    from torchmetrics.functional.image import lpips
    from torchvision import models

    expected = "expected torchvision's alexnet-owt-7be5be79.pth or vgg16-397923af.pth on this disk"
    if not Path(weights).is_file():
        raise ValueError(
            f"LPIPS weights {weights} do not exist; {expected} (nothing is downloaded)"
        )
    state = torch.load(weights, map_location="cpu", weights_only=True)
    inside = {
        key.removeprefix("features."): value
        for key, value in state.items()
        if key.startswith("features.")
    }
    name = "alexnet" if "10.weight" in inside and "12.weight" not in inside else "vgg16"

    def local(*_: object, **__: object) -> nn.Module:
        net = getattr(models, name)(weights=None).features
        try:
            net.load_state_dict(inside)
        except RuntimeError:
            raise ValueError(
                f"LPIPS weights {weights} are neither AlexNet's nor VGG-16's; {expected}"
            ) from None
        return net

    # The package would download the backbone: it is given the local one.
    with patch.object(lpips, "_get_tv_model_features", local):
        net = lpips._NoTrainLpips(net="alex" if name == "alexnet" else "vgg")

    def distance(real_BCHW: Tensor, made_BCHW: Tensor) -> Tensor:
        real, made = (
            pixels.clamp(-1, 1).expand(-1, 3, -1, -1) for pixels in (real_BCHW, made_BCHW)
        )
        with torch.inference_mode():
            return net.to(real.device)(real, made).reshape(-1)

    return distance
