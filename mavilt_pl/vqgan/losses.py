"""The tokenizer's loss, one function a term; every λ of 0 leaves its term uncomputed (that is the
caller's part).

L = |x − x̂|₁ + λ_grad ‖∇x − ∇x̂‖² + λ_feat ‖φ(x) − φ(x̂)‖² + β commitment + adaptive adversarial
(arXiv 2502.05926)

Pixels are [B,1,H,W] in [-1, 1]; every term is a mean, so its size does not depend on batch or
resolution.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mavilt_pl.parallel.distributed import all_reduce_sum, rank_and_size


def forward_differences(pixels_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    """∇ as forward differences along both axes: [B,C,H,W-1] and [B,C,H-1,W]."""
    return pixels_BCHW[..., :, 1:] - pixels_BCHW[..., :, :-1], pixels_BCHW[
        ..., 1:, :
    ] - pixels_BCHW[..., :-1, :]


def gradient_term(pixels_BCHW: Tensor, made_BCHW: Tensor) -> Tensor:
    """‖∇x − ∇x̂‖²: the mean squared difference of forward differences, all_reduce_sum over the two axes."""
    pairs = zip(forward_differences(pixels_BCHW), forward_differences(made_BCHW))
    return sum((F.mse_loss(made, real) for real, made in pairs), start=pixels_BCHW.new_zeros(()))


def feature_term(real: Sequence[Tensor], made: Sequence[Tensor]) -> Tensor:
    """‖φ(x) − φ(x̂)‖²: the mean squared difference, averaged over the encoder's feature maps."""
    return torch.stack([F.mse_loss(m, r) for r, m in zip(real, made)]).mean()


def reconstruction_term(
    pixels_BCHW: Tensor, made_BCHW: Tensor, weight_BCHW: Tensor | None = None
) -> Tensor:
    """|x − x̂|₁, each pixel counted `weight` times where a weight map of mean 1 is given."""
    error = (pixels_BCHW - made_BCHW).abs()
    return error.mean() if weight_BCHW is None else (error * weight_BCHW).mean()


def hinge_discriminator(real: Tensor, made: Tensor) -> Tensor:
    """The discriminator's hinge loss on its logits (arXiv 1705.02894)."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + made).mean())


def adaptive_weight(
    reconstruction: Tensor, adversarial: Tensor, last_layer: Tensor, most: float = 1e4
) -> Tensor:
    """λ of arXiv 2012.09841, eq. 7: ratio of both terms' gradient norms at the decoder's last
    layer, over all ranks.
    """
    wanted, given = (
        all_reduce_sum(torch.autograd.grad(term, last_layer, retain_graph=True)[0].float())
        for term in (reconstruction, adversarial)
    )
    return (wanted.norm() / (given.norm() + 1e-4 * rank_and_size()[1])).clamp(0, most).detach()
