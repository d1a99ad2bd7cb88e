"""The trained part of a VQ-GAN that the rest of the chain uses: pixels to codes and back.

Shape legend: B batch, H W height and width in pixels, D latent width, h w grid, N = h·w codes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mavilt_pl.encoders.findings import Classifier
from mavilt_pl.vqgan.autoencoder import Autoencoder
from mavilt_pl.vqgan.quantizer import Quantizer


class Tokenizer(nn.Module):
    """Pixels to codes and back.

    With `clinical`, the last feature map of a frozen classifier is added to the latents before they
    are quantised: what a clinical encoder sees need not be learned again from pixels.

    Args:
        autoencoder: arguments of `Autoencoder`.
        quantizer: arguments of `Quantizer`; `latent_dim` is the autoencoder's.
        clinical: arguments of `Classifier`, or None for a tokenizer that sees pixels only.

    >>> net = Tokenizer(
    ...     {"image_size": 16, "channels": 8, "channel_multipliers": [1, 2], "latent_dim": 8},
    ...     {"codebook_size": 32, "code_dim": 4},
    ... ).eval()
    >>> codes_BN = net.encode(torch.zeros(2, 1, 16, 16))
    >>> codes_BN.shape, net.decode(codes_BN).shape
    (torch.Size([2, 64]), torch.Size([2, 1, 16, 16]))
    """

    def __init__(
        self,
        autoencoder: Mapping[str, Any],
        quantizer: Mapping[str, Any],
        clinical: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        self.autoencoder = Autoencoder(**autoencoder)
        latent_dim = self.autoencoder.latent_dim
        self.quantizer = Quantizer(**{**quantizer, "latent_dim": latent_dim})
        self.clinical: Classifier | None = None
        if clinical is not None:
            # Part of the tokenizer and of its checkpoint: codes of another φ would mean other
            # things.
            self.clinical = Classifier(**clinical).eval().requires_grad_(False)
            self.adapter = nn.Conv2d(self.clinical.widths[-1], latent_dim, 1)

    @property
    def grid(self) -> int:
        """Side h = w of an image in codes."""
        return self.autoencoder.grid

    @property
    def codebook_size(self) -> int:
        """K, the number of codes in the codebook."""
        return self.quantizer.codebook_size

    def train(self, mode: bool = True) -> Tokenizer:
        """Set the mode of all parts but the frozen classifier, which stays in evaluation mode."""
        super().train(mode)
        # Its batch statistics would follow the tokenizer's data.
        if self.clinical is not None:
            self.clinical.eval()
        return self

    def latents(self, pixels_BCHW: Tensor, maps: list[Tensor] | None = None) -> Tensor:
        """Latents before quantisation, [B,D,h,w].

        Args:
            pixels_BCHW: pixels [B,1,H,W] in [-1, 1].
            maps: the classifier's feature maps of these pixels, to save a second pass.
        """
        latents_BDhw = self.autoencoder.encode(pixels_BCHW)
        if self.clinical is None:
            return latents_BDhw
        # In training the clinical terms have computed them already.
        if maps is None:
            with torch.no_grad():
                maps = self.clinical.maps(pixels_BCHW)
        # φ may see another image size, so its last map is averaged to the grid of codes.
        last_map_BChw = F.adaptive_avg_pool2d(maps[-1].detach(), self.grid)
        return latents_BDhw + self.adapter(last_map_BChw)

    def encode(self, pixels_BCHW: Tensor) -> Tensor:
        """Pixels [B,1,H,W] in [-1, 1] → codes int64 [B,N] in raster order."""
        _, codes_BN, _ = self.quantizer(self.latents(pixels_BCHW))
        return codes_BN

    def decode(self, codes_BN: Tensor) -> Tensor:
        """Codes int64 [B,N] → pixels [B,1,H,W] in [-1, 1].

        Raises:
            ValueError: the number of codes is not that of an image.
        """
        if codes_BN.shape[1] != self.grid**2:
            raise ValueError(
                f"an image of this tokenizer is {self.grid**2} codes, found {codes_BN.shape[1]}"
            )
        quantised_BDhw = self.quantizer.lookup(codes_BN.view(-1, self.grid, self.grid))
        return self.autoencoder.decode(quantised_BDhw).clamp(-1, 1)
