"""Vector quantisation with moving-average codes (arXiv 1711.00937, appendix A), in float32 whatever
the precision.

The codebook and its random draws are the same on any number of ranks: statistics are all_reduce_sum over
ranks, the first clustering sees the batches of all, and draws come from a counter that is saved,
not from the process's random state.

Shape legend: B batch, D latent width, h w grid, N = h·w, K codes, d code width, W ranks.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mavilt_pl.parallel.distributed import all_reduce_sum, gather_interleaved, rank_and_size


def rotate(from_Xd: Tensor, to_Xd: Tensor) -> Tensor:
    """`to`, with the gradient that reaches it turned and scaled onto `from` (the rotation trick,
    arXiv 2410.06424).
    """
    with torch.no_grad():
        length, reach = from_Xd.norm(dim=-1, keepdim=True), to_Xd.norm(dim=-1, keepdim=True)
        e, q = from_Xd / length.clamp(min=1e-6), to_Xd / reach.clamp(min=1e-6)
        middle = F.normalize(e + q, dim=-1, eps=1e-6)
    turned = (
        from_Xd
        - 2 * middle * (from_Xd * middle).sum(-1, keepdim=True)
        + 2 * q * (from_Xd * e).sum(-1, keepdim=True)
    )
    return turned * (reach / length.clamp(min=1e-6))


class Quantizer(nn.Module):
    """Latents [B,D,h,w] → the nearest of K codes at each place.

    Args:
        codes: K.
        latent: D, the width of the latents.
        code_width: d, width of the codes; narrower than D keeps more codes in use (LlamaGen, arXiv
            2406.06525: 8).
        cosine: compare directions (codes of length 1) rather than distances.
        decay: of the moving averages that move the codes.
        dead_code_threshold: a code whose moving count of uses falls below is set on a latent of the batch.
        commitment: β of the commitment term, on the encoder (arXiv 1711.00937, eq. 3; 0.25 there).
        kmeans: start the codes from a clustering of the first batch.
        project: a linear map from latents to codes and one back. None: where their widths differ.
            Published networks have both always (`quant_conv`, `post_quant_conv`).

    `config` holds the arguments that build it again.
    """

    # Settings that a refused checkpoint is explained with, see `checkpoint.check_compatible`.
    setting_descriptions: ClassVar[dict[str, str]] = {
        "codes": "codebook of {:,} codes",
        "code_width": "codes of width {:,}",
        "cosine": "cosine similarity {}",
        "project": "maps between latents and codes {}",
    }

    codebook: Tensor
    counts: Tensor
    sums: Tensor
    started: Tensor

    def __init__(
        self,
        codes: int = 1024,
        latent: int = 256,
        code_width: int = 8,
        cosine: bool = True,
        decay: float = 0.99,
        dead_code_threshold: float = 1.0,
        commitment: float = 0.25,
        kmeans: bool = True,
        project: bool | None = None,
    ):
        super().__init__()
        if project is False and code_width != latent:
            raise ValueError(
                f"project false: codes of width {code_width} need a map from latents of width "
                f"{latent}; set project to "
                f"null, or code_width to {latent}"
            )
        self.config: dict[str, Any] = {
            "codes": codes,
            "latent": latent,
            "code_width": code_width,
            "cosine": cosine,
            "decay": decay,
            "dead_code_threshold": dead_code_threshold,
            "commitment": commitment,
            "kmeans": kmeans,
            "project": project,
        }
        self.codes, self.cosine, self.decay = codes, cosine, decay
        self.dead_code_threshold, self.commitment = dead_code_threshold, commitment
        maps = code_width != latent if project is None else project
        self.project_in = nn.Linear(latent, code_width) if maps else nn.Identity()
        self.project_out = nn.Linear(code_width, latent) if maps else nn.Identity()
        first = torch.randn(codes, code_width) / code_width**0.5
        self.register_buffer("codebook", F.normalize(first, dim=-1) if cosine else first)
        self.register_buffer("counts", torch.ones(codes))
        self.register_buffer("sums", self.codebook.clone())
        self.register_buffer("started", torch.tensor(not kmeans))
        self.draws = 0  # how often something was drawn: the seed of the next time

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self.draws)

    def set_extra_state(self, state: Tensor) -> None:
        self.draws = int(state)

    def forward(self, latents_BDhw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Quantised latents [B,D,h,w] (gradients pass by rotation), codes int64 [B,N] in raster
        order, β-weighted commitment term. In training the codes move.
        """
        with torch.autocast(latents_BDhw.device.type, enabled=False):
            z_BNd = self.project_in(latents_BDhw.float().flatten(2).transpose(1, 2))
            if self.cosine:
                z_BNd = F.normalize(z_BNd, dim=-1, eps=1e-6)
            if (
                self.training and self.draws == 0 and not self.started
            ):  # the second waits for the device
                self._start(z_BNd.detach())
            codes_BN = self._nearest(z_BNd.detach(), self.codebook)
            chosen_BNd = self.codebook[codes_BN]
            term = self.commitment * F.mse_loss(z_BNd, chosen_BNd)
            if self.training:
                quantised_BNd = rotate(z_BNd, chosen_BNd)
                self._move(z_BNd.detach(), codes_BN)
            else:
                quantised_BNd = chosen_BNd
            out_BND = self.project_out(quantised_BNd)
        return out_BND.transpose(1, 2).unflatten(2, latents_BDhw.shape[2:]), codes_BN, term

    def lookup(self, codes_Bhw: Tensor) -> Tensor:
        """Codes int64 [B,h,w] → latents [B,D,h,w]."""
        return self.project_out(self.codebook[codes_Bhw]).permute(0, 3, 1, 2)

    def _nearest(self, z_Xd: Tensor, codebook_Kd: Tensor) -> Tensor:
        likeness_XK = z_Xd @ codebook_Kd.T
        if not self.cosine:
            likeness_XK = likeness_XK - 0.5 * codebook_Kd.square().sum(-1)
        return likeness_XK.argmax(-1)

    def _draw(self, total: int) -> Tensor:
        """K numbers below `total`, drawn without repetition as far as there are enough."""
        self.draws += 1
        order = torch.randperm(total, generator=torch.Generator().manual_seed(self.draws))
        return order.repeat(-(-self.codes // total))[: self.codes]

    @torch.no_grad()
    def _start(self, z_BNd: Tensor, rounds: int = 10) -> None:
        """k-means on the first batch, of all ranks together."""
        z_Xd = gather_interleaved(z_BNd).flatten(0, 1)
        self.codebook.copy_(z_Xd[self._draw(len(z_Xd)).to(z_Xd.device)])
        for _ in range(rounds):
            counts_K, sums_Kd = self._tally(z_Xd, self._nearest(z_Xd, self.codebook))
            self._place(counts_K, sums_Kd, counts_K > 0)
        self.counts.copy_(counts_K)
        self.sums.copy_(sums_Kd)
        self.started.fill_(True)

    @torch.no_grad()
    def _move(self, z_BNd: Tensor, codes_BN: Tensor) -> None:
        rank, size = rank_and_size()
        batch, places, width = z_BNd.shape
        counts_K, sums_Kd = self._tally(z_BNd.flatten(0, 1), codes_BN.flatten())
        # One latent for each code that may need reviving, drawn from the batches of all ranks as if
        # they were one.
        picks_K = self._draw(batch * size * places).to(z_BNd.device)
        image_K, place_K = picks_K // places, picks_K % places
        mine_K1 = (image_K % size == rank).unsqueeze(1)
        candidates_Kd = torch.where(
            mine_K1, z_BNd[(image_K // size).clamp(max=batch - 1), place_K], 0.0
        )
        merged = all_reduce_sum(torch.cat([counts_K.unsqueeze(1), sums_Kd, candidates_Kd], 1))
        counts_K, sums_Kd, candidates_Kd = (
            merged[:, 0],
            merged[:, 1 : 1 + width],
            merged[:, 1 + width :],
        )
        self.counts.lerp_(counts_K, 1 - self.decay)
        self.sums.lerp_(sums_Kd, 1 - self.decay)
        dead_K = self.counts < self.dead_code_threshold
        self.counts.copy_(torch.where(dead_K, self.dead_code_threshold, self.counts))
        self.sums.copy_(
            torch.where(dead_K[:, None], candidates_Kd * self.dead_code_threshold, self.sums)
        )
        self._place(self.counts, self.sums, self.counts > 0)

    def _tally(self, z_Xd: Tensor, codes_X: Tensor) -> tuple[Tensor, Tensor]:
        """How many latents chose each code [K], and their sums [K,d]."""
        counts_K = torch.bincount(codes_X, minlength=self.codes).to(z_Xd)
        return counts_K, z_Xd.new_zeros(self.codes, z_Xd.shape[1]).index_add_(0, codes_X, z_Xd)

    def _place(self, counts_K: Tensor, sums_Kd: Tensor, where_K: Tensor) -> None:
        """Codes on the means of what chose them."""
        means_Kd = sums_Kd / counts_K.clamp(min=1e-6)[:, None]
        if self.cosine:
            means_Kd = F.normalize(means_Kd, dim=-1, eps=1e-6)
        self.codebook.copy_(torch.where(where_K[:, None], means_Kd, self.codebook))
