"""Vector quantisation, on vector-quantize-pytorch: moving-average codes, cosine or Euclidean, revival of dead codes,
agreement between ranks. Always in float32."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from vector_quantize_pytorch import VectorQuantize


class Quantizer(nn.Module):
    """Latents [B,D,h,w] → the nearest of K codes at each place.

    Args:
        codes: K.
        latent: D, the width of the latents.
        code_width: width of the codes; narrower than D keeps more codes in use (LlamaGen, arXiv 2406.06525: 8).
        cosine: compare directions (unit length codes) rather than distances.
        decay: of the moving averages that move the codes.
        revive_below: a code whose moving count of uses falls below is set on a latent of the batch.
        commitment: β of the commitment term, on the encoder (arXiv 1711.00937, eq. 3; 0.25 there).
        kmeans: start the codes from a clustering of the first batch.
        project: a linear map from latents to codes and one back. None: where their widths differ. Published networks
            have both always (`quant_conv`, `post_quant_conv`).

    `shape` holds the arguments that build it again.
    """

    # Settings that a refused checkpoint is explained with, see `checkpoint.refuse_others`.
    settings_in_words: ClassVar[dict[str, str]] = {
        "codes": "codebook of {:,} codes",
        "code_width": "codes of width {:,}",
        "cosine": "cosine similarity {}",
        "project": "maps between latents and codes {}",
    }

    def __init__(
        self,
        codes: int = 1024,
        latent: int = 256,
        code_width: int = 8,
        cosine: bool = True,
        decay: float = 0.99,
        revive_below: float = 1.0,
        commitment: float = 0.25,
        kmeans: bool = True,
        project: bool | None = None,
    ):
        super().__init__()
        self.codes = codes
        self.commitment = commitment
        if project is False and code_width != latent:
            raise ValueError(
                f"project false: codes of width {code_width} need a map from latents of width {latent}; set project to "
                f"null, or code_width to {latent}"
            )
        self.shape: dict[str, Any] = {
            "codes": codes,
            "latent": latent,
            "code_width": code_width,
            "cosine": cosine,
            "decay": decay,
            "revive_below": revive_below,
            "commitment": commitment,
            "kmeans": kmeans,
            "project": project,
        }
        self.vq = VectorQuantize(
            dim=latent,
            codebook_size=codes,
            codebook_dim=code_width,
            use_cosine_sim=cosine,
            decay=decay,
            threshold_ema_dead_code=revive_below,
            commitment_weight=1.0,
            kmeans_init=kmeans,
            kmeans_iters=10,
            accept_image_fmap=True,
        )
        if project and code_width == latent:  # the package makes them only where the widths differ
            self.vq.project_in, self.vq.project_out = nn.Linear(latent, code_width), nn.Linear(code_width, latent)

    def forward(self, latents_BDhw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Quantised latents [B,D,h,w] (straight-through), codes int64 [B,N] in raster order, commitment term."""
        with torch.autocast(latents_BDhw.device.type, enabled=False):
            quantized_BDhw, codes_Bhw, term = self.vq(latents_BDhw.float())
        return quantized_BDhw, codes_Bhw.flatten(1), self.commitment * term.sum()

    def lookup(self, codes_Bhw: Tensor) -> Tensor:
        """Codes int64 [B,h,w] → latents [B,D,h,w]."""
        return self.vq.project_out(self.vq.codebook[codes_Bhw]).permute(0, 3, 1, 2)

    @property
    def codebook(self) -> Tensor:
        """The codes, float32 [K, code_width]."""
        return self.vq.codebook
