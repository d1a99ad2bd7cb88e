"""The clinical encoder's part in the tokenizer's loss: where its findings are, and a blur.

Averaged over pixels, a nodule is negligible: 25 of 4,096. `finding_map` gives its pixels the weight
that the clinical encoder gives them (Grad-CAM, arXiv 1610.02391), the same for every finding
whatever its size.

Speckles that no reader would call a nodule can still convince a network that there is one.
`blurred` removes such patterns from both images before they are compared, so that only patterns as
large as a finding count.

Shape legend: B batch, C channels, H W height and width in pixels, h w feature map, F findings.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mavilt_pl.encoders.findings import Classifier
from mavilt_pl.encoders.loading import load_encoder
from mavilt_pl.errors import UserError
from mavilt_pl.vqgan.losses import feature_term


def load_phi(settings: Mapping[str, Any]) -> list[Any]:
    """Check the settings that concern φ; return it in a list, which is empty if none needs it.

    Args:
        settings: arguments of `VQGAN`.

    Raises:
        UserError: an encoder is missing, or is of the wrong kind for a setting.
    """
    # Also if no term needs it yet: a misspelt path is not what the user means.
    if settings["encoder"] is not None and not Path(settings["encoder"]).exists():
        raise UserError(
            f"model.init_args.encoder: {settings['encoder']} does not exist; expected the weights "
            "of an encoder, such as runs/cxrclassifier/checkpoints/last.ckpt"
        )
    needs_classifier = settings["finding_weight"] > 0 or settings["clinical_input"]
    compares = settings["lambda_feat"] > 0 or settings["lambda_finding"] > 0
    if not (compares or needs_classifier):
        return []
    encoder, kind = settings["encoder"], settings["encoder_kind"]
    if encoder is None:
        raise UserError(
            "model.encoder: lambda_feat, lambda_finding, finding_weight and clinical_input need "
            "an encoder; name its weights, or set them to 0"
        )
    if needs_classifier and kind != "classifier":
        raise UserError(
            f"model.encoder_kind {kind}: finding_weight and clinical_input need `classifier`; set "
            "finding_weight to 0 and clinical_input to false"
        )
    # Loaded last: settings that contradict each other are refused without reading a large file.
    phi = load_encoder(encoder, kind)
    if settings["lambda_finding"] > 0 and not phi.findings:
        raise UserError(
            f"model.lambda_finding {settings['lambda_finding']}: the encoder {encoder} has no "
            "outputs for findings; set it to 0"
        )
    return [phi]


class ClinicalTerms:
    """The terms of one batch that look through φ.

    Args:
        phi: the frozen encoder, on the device of the batch.
        settings: arguments of `VQGAN`.
        step: generator step, which seeds the blur.
    """

    def __init__(self, phi: Any, settings: Mapping[str, Any], step: int):
        self.phi, self.settings, self.step = phi, settings, step

    def maps_of_originals(self, pixels_BCHW: Tensor) -> Any:
        """φ's maps of the sharp originals; None if no setting uses them."""
        s = self.settings
        compares_sharp = s["feature_blur_sigma"] == 0
        # One pass of φ less a step if only blurred images are compared.
        if not (compares_sharp or s["finding_weight"] > 0 or s["clinical_input"]):
            return None
        with torch.no_grad():
            return self.phi.maps(pixels_BCHW)

    def pixel_weight(self, maps: Any, size: int) -> Tensor | None:
        """Weights of |x − x̂| with mean 1 in each image, [B,1,size,size]; None for equal ones."""
        factor = self.settings["finding_weight"]
        if factor <= 0:
            return None
        # 1 + …, so the background keeps a weight; divided by the mean, so the term keeps its size
        # and `finding_weight` shifts error between pixels instead of raising the learning rate.
        weight_B1HW = 1 + factor * finding_map(self.phi, maps, size)
        return weight_B1HW / weight_B1HW.mean((1, 2, 3), keepdim=True)

    def comparisons(self, pixels_BCHW: Tensor, recon_BCHW: Tensor, maps: Any) -> dict[str, Tensor]:
        """The terms `feature` and `finding`, weighted; those of weight 0 are left out."""
        s = self.settings
        terms: dict[str, Tensor] = {}
        if s["lambda_feat"] <= 0 and s["lambda_finding"] <= 0:
            return terms
        if s["feature_blur_sigma"] > 0:
            # Both through the same blur, or the comparison would measure the blur.
            images = (pixels_BCHW, recon_BCHW)
            pixels_BCHW, recon_BCHW = blurred(images, s["feature_blur_sigma"], self.step)
            # The originals are a constant target: only the reconstruction learns from the
            # comparison.
            with torch.no_grad():
                maps = self.phi.maps(pixels_BCHW)
        recon_maps = self.phi.maps(recon_BCHW)
        if s["lambda_feat"] > 0:
            terms["feature"] = s["lambda_feat"] * feature_term(maps, recon_maps)
        if s["lambda_finding"] > 0:
            terms["finding"] = s["lambda_finding"] * self._finding_term(maps, recon_maps)
        return terms

    def _finding_term(self, maps: Any, recon_maps: list[Tensor]) -> Tensor:
        """Cross-entropy of φ's findings on the reconstruction, given those on the original."""
        # φ's own probabilities, not the labels: the codes must keep what the image shows to φ, also
        # where φ and the report disagree.
        target_BF = self.phi.logits(maps).sigmoid()
        return F.binary_cross_entropy_with_logits(self.phi.logits(recon_maps), target_BF)


def finding_map(encoder: Classifier, maps: list[Tensor], size: int) -> Tensor:
    """Where the encoder reads its findings, float32 [B,1,size,size], at least 0.

    Each finding's map has mean 1 over the image and is weighted by the finding's probability. The
    weighted sum is divided by the expected number of findings if that is above 1. So the mean is 1
    in an image with findings and near 0 in one without.

    Args:
        encoder: the frozen classifier.
        maps: its feature maps of the images; the gradient is taken at the last but one.
        size: side of the result in pixels.
    """
    # The level before the last: on it Grad-CAM lands on a nodule; the plain input gradient spreads
    # over both lungs (EXPERIMENTS.md, "What the tokenizer keeps").
    device = maps[-2].device.type
    with torch.enable_grad(), torch.autocast(device, enabled=False):
        # A leaf of its own: gradients stop here and never reach φ's weights or the pixels.
        features_BChw = maps[-2].detach().float().requires_grad_(True)
        logits_BF = encoder.logits([encoder.last_level(features_BChw)])
        found = []
        # One backward pass of the last level for each finding. All findings at once, not one at
        # random: that gave nodules an AUROC of 0.796 instead of 0.724 (EXPERIMENTS.md).
        for logits_B in logits_BF.unbind(1):
            (slope_BChw,) = torch.autograd.grad(logits_B.sum(), features_BChw, retain_graph=True)
            found.append((slope_BChw * features_BChw.detach()).sum(1))
    found_BFhw = torch.stack(found, 1).relu()
    # Each finding's own mean: a nodule's few pixels weigh as much in sum as an enlarged heart's
    # many.
    found_BFhw = found_BFhw / (found_BFhw.mean((2, 3), keepdim=True) + 1e-6)
    probability_BF = logits_BF.detach().sigmoid()
    # Clamped at 1: an image without findings must not have its doubts scaled up to a whole finding.
    share_BF = probability_BF / probability_BF.sum(1, keepdim=True).clamp(min=1)
    map_B1hw = torch.einsum("bfhw,bf->bhw", found_BFhw, share_BF)[:, None]
    return F.interpolate(map_B1hw, size=(size, size), mode="bilinear")


def blurred(images: tuple[Tensor, ...], max_sigma: float, step: int) -> tuple[Tensor, ...]:
    """All images through one Gaussian blur of a random standard deviation.

    Own code: torchvision's `gaussian_blur` pads by reflection, which differs from the replicated
    border here by far more than rounding.

    Args:
        images: pixels [B,1,H,W] each.
        max_sigma: the standard deviation is uniform between 0 and this, in pixels.
        step: seed of the random standard deviation, so that all ranks and a resumed run use the
            same one.
    """
    generator = torch.Generator().manual_seed(step)
    # Never 0, which would divide by 0 below.
    sigma = float(torch.rand((), generator=generator)) * max_sigma + 1e-3
    # By the largest sigma, so the kernel has the same shape at every step.
    reach = int(3 * max_sigma + 1)
    device = images[0].device
    offsets = torch.arange(-reach, reach + 1, device=device, dtype=torch.float32)
    kernel = torch.exp(-0.5 * (offsets / sigma).square())
    kernel = kernel / kernel.sum()
    row = kernel.view(1, 1, 1, -1)
    column = kernel.view(1, 1, -1, 1)

    results = []
    for pixels_BCHW in images:
        # Two passes along the axes are the two-dimensional Gaussian, since it is separable.
        padded_BCHW = F.pad(pixels_BCHW, (reach,) * 4, mode="replicate")
        results.append(F.conv2d(F.conv2d(padded_BCHW, row), column))
    return tuple(results)
