"""The gradient of the tokenizer's loss at the reconstruction, and each term's share of it.

With θ the weights of the autoencoder, x̂ = x̂(θ), J = ∂x̂/∂θ and φ, D the two networks that look at
the reconstruction:

    g      = ∂L_recon/∂x̂ + w ∂L_adv/∂x̂            one backward pass through φ, one through D
    dL/dθ  = Jᵀ g + ∂L_commit/∂θ                   the chain rule
    dL/dθ  = ∂/∂θ [ ⟨x̂, g⟩ + L_commit ]           the same with g held constant

Backpropagate through φ and the discriminator once, to get ∂L/∂x̂; reuse it instead of a second
pass. The adaptive weight w needs the norms of Jᵀ ∂L/∂x̂ at the last layer, and so do the shares:
both use the same products ⟨x̂, g⟩.

Shape legend: B batch, C channels, H W height and width in pixels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mavilt_pl.vqgan.losses import adaptive_weight


class ImageGradient:
    """Collects the gradients of a batch at its reconstruction.

    Args:
        terms: weighted terms of the loss by name. `commitment` does not depend on the
            reconstruction; the adversarial term is added here.
        recon_BCHW: the reconstruction, with the graph of the autoencoder.
        last_layer: the decoder's last weight, at which gradients are compared.
    """

    total_BCHW: Tensor  # g

    def __init__(self, terms: dict[str, Tensor], recon_BCHW: Tensor, last_layer: Tensor):
        self.terms, self.recon_BCHW, self.last_layer = terms, recon_BCHW, last_layer
        self.by_term: dict[str, Tensor] = {}

    def add_reconstruction(self, per_term: bool) -> None:
        """Differentiate all terms but commitment; each by itself too if `per_term`."""
        # Commitment depends on the latents, not on the reconstruction; it joins in `surrogate`.
        compared = {name: term for name, term in self.terms.items() if name != "commitment"}
        recon_loss = torch.stack(list(compared.values())).sum()
        (self.total_BCHW,) = torch.autograd.grad(recon_loss, self.recon_BCHW, retain_graph=per_term)
        # Only at logged steps: every term is one more backward pass through φ.
        if per_term:
            for name, term in compared.items():
                (grad_BCHW,) = torch.autograd.grad(term, self.recon_BCHW, retain_graph=True)
                self.by_term[name] = grad_BCHW

    def add_adversarial(self, discriminator: Callable[[Tensor], Tensor], gan_weight: float) -> None:
        """Add the adversarial term with its adaptive weight (arXiv 2012.09841, eq. 7)."""
        # Non-saturating: the generator maximises the logits of its reconstructions.
        adv_loss = -discriminator(self.recon_BCHW).float().mean()
        grad_recon_BCHW = self.total_BCHW
        (grad_adv_BCHW,) = torch.autograd.grad(adv_loss, self.recon_BCHW)
        # ∂⟨x̂, g⟩/∂W = Jᵀg with g constant, so neither φ nor the discriminator is run again for the
        # norms.
        weight = gan_weight * adaptive_weight(
            (self.recon_BCHW * grad_recon_BCHW).sum(),
            (self.recon_BCHW * grad_adv_BCHW).sum(),
            self.last_layer,
        )
        # The term has the value that is logged; its gradient enters by `total_BCHW`.
        self.terms["adversarial"] = weight * adv_loss
        self.total_BCHW = grad_recon_BCHW + weight * grad_adv_BCHW
        self.by_term["adversarial"] = weight * grad_adv_BCHW

    def surrogate(self) -> Tensor:
        """⟨x̂, g⟩ + L_commit: a scalar with the gradient of the loss, and not its value."""
        return self.terms["commitment"] + (self.recon_BCHW * self.total_BCHW).sum()

    def shares(self) -> dict[str, Tensor]:
        """Each term's share of the gradient at the last layer, in [0, 1], as `share/<term>`."""
        norms = {}
        for name, grad_BCHW in self.by_term.items():
            # `retain_graph`: the backward pass of the step is still to come.
            (grad,) = torch.autograd.grad(
                self.recon_BCHW, self.last_layer, grad_BCHW, retain_graph=True
            )
            norms[name] = grad.norm()
        total = torch.stack(list(norms.values())).sum().clamp(min=1e-12)
        return {f"share/{name}": norm / total for name, norm in norms.items()}
