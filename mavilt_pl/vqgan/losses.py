"""The tokenizer's loss, one function per term.

L = |x − x̂|₁ + λ_grad ‖∇x − ∇x̂‖² + λ_feat ‖φ(x) − φ(x̂)‖² + β commitment + adaptive adversarial
(arXiv 2502.05926)

Pixels are [B,1,H,W] in [-1, 1]. Every term is a mean, so its size does not depend on the batch or
the resolution. The caller skips terms whose λ is 0.

Shape legend: B batch, C channels, H W height and width in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mavilt_pl.parallel.distributed import all_reduce_sum, rank_and_size


def forward_differences(pixels_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    """∇ as forward differences along both axes, [B,C,H,W-1] and [B,C,H-1,W].

    >>> across, down = forward_differences(torch.tensor([[[[0.0, 1.0], [3.0, 3.0]]]]))
    >>> across.flatten().tolist(), down.flatten().tolist()
    ([1.0, 0.0], [3.0, 2.0])
    """
    # No padding: a difference across the border would compare pixels of no neighbours.
    across = pixels_BCHW[..., :, 1:] - pixels_BCHW[..., :, :-1]
    down = pixels_BCHW[..., 1:, :] - pixels_BCHW[..., :-1, :]
    return across, down


def gradient_term(pixels_BCHW: Tensor, recon_BCHW: Tensor) -> Tensor:
    """‖∇x − ∇x̂‖²: mean squared error of the forward differences, summed over the two axes.

    >>> image = torch.tensor([[[[0.0, 1.0], [0.0, 1.0]]]])
    >>> float(gradient_term(image, image + 0.5)), float(gradient_term(image, 0 * image))
    (0.0, 1.0)
    """
    # A sum over the axes, as the norm of a gradient has both components.
    total = pixels_BCHW.new_zeros(())
    differences = zip(forward_differences(pixels_BCHW), forward_differences(recon_BCHW))
    for real, recon in differences:
        total = total + F.mse_loss(recon, real)
    return total


def feature_term(real_maps: Sequence[Tensor], recon_maps: Sequence[Tensor]) -> Tensor:
    """‖φ(x) − φ(x̂)‖²: mean squared error, averaged over the encoder's feature maps."""
    # A mean over maps: a finer map has more numbers and would outweigh the others.
    errors = [F.mse_loss(recon, real) for real, recon in zip(real_maps, recon_maps)]
    return torch.stack(errors).mean()


def reconstruction_term(
    pixels_BCHW: Tensor, recon_BCHW: Tensor, weight_BCHW: Tensor | None = None
) -> Tensor:
    """|x − x̂|₁, weighted per pixel if a weight map of mean 1 is given.

    >>> float(reconstruction_term(torch.zeros(1, 1, 2, 2), torch.full((1, 1, 2, 2), 0.5)))
    0.5
    """
    # L1 blurs less than L2, whose optimum under doubt is the mean of all possibilities.
    error_BCHW = (pixels_BCHW - recon_BCHW).abs()
    if weight_BCHW is None:
        return error_BCHW.mean()
    return (error_BCHW * weight_BCHW).mean()


def hinge_discriminator(real_logits: Tensor, recon_logits: Tensor) -> Tensor:
    """The discriminator's hinge loss on its logits (arXiv 1705.02894).

    >>> float(hinge_discriminator(torch.tensor([2.0]), torch.tensor([-0.5])))
    0.25
    """
    # Beyond the margin of 1 nothing is gained, so the discriminator does not run away.
    real_loss = F.relu(1 - real_logits).mean()
    recon_loss = F.relu(1 + recon_logits).mean()
    return 0.5 * (real_loss + recon_loss)


def adaptive_weight(
    reconstruction: Tensor, adversarial: Tensor, last_layer: Tensor, maximum: float = 1e4
) -> Tensor:
    """λ of arXiv 2012.09841, eq. 7: ratio of the two terms' gradient norms at `last_layer`.

    The gradients are summed over all ranks first, so that every rank uses the same weight.
    """
    # In float32: the norm of many bfloat16 numbers would lose digits.
    grad_recon = torch.autograd.grad(reconstruction, last_layer, retain_graph=True)[0].float()
    grad_recon = all_reduce_sum(grad_recon)
    grad_adv = torch.autograd.grad(adversarial, last_layer, retain_graph=True)[0].float()
    grad_adv = all_reduce_sum(grad_adv)
    # The published 1e-4 is added to a mean over ranks; these are sums.
    floor = 1e-4 * rank_and_size()[1]
    # Detached: the weight balances the terms, and is no term itself.
    ratio = grad_recon.norm() / (grad_adv.norm() + floor)
    return ratio.clamp(0, maximum).detach()
