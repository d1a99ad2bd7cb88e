"""Vector quantisation with moving-average codes (arXiv 1711.00937, appendix A), always in float32.

The codebook and its random draws are the same on any number of ranks: statistics are summed over
ranks, the first clustering sees the batches of all ranks, and random draws are seeded by a saved
counter instead of the process's random state.

Own code: vector-quantize-pytorch, which the tests compare with, seeds its draws from the process's
random state, so its codebook depends on the number of ranks and on where a run was resumed.

Shape legend: B batch, D latent width, h w grid, N = h·w, K codes, d code width, X any number of
latents.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mavilt_pl.parallel.device import copy_to
from mavilt_pl.parallel.distributed import all_reduce_sum, gather_interleaved, rank_and_size
from mavilt_pl.ranges import NonNegativeFloat, Probability, Size


def rotate(from_Xd: Tensor, to_Xd: Tensor) -> Tensor:
    """`to`, with its gradient rotated and scaled onto `from` (rotation trick, arXiv 2410.06424).

    >>> z = torch.tensor([[3.0, 0.0]], requires_grad=True)
    >>> rotate(z, torch.tensor([[0.0, 1.0]])).detach().round(decimals=4)
    tensor([[0., 1.]])
    """
    # R is a constant of the step: the gradient passes through `from` alone.
    with torch.no_grad():
        from_norm = from_Xd.norm(dim=-1, keepdim=True)
        to_norm = to_Xd.norm(dim=-1, keepdim=True)
        e_Xd = from_Xd / from_norm.clamp(min=1e-6)
        q_Xd = to_Xd / to_norm.clamp(min=1e-6)
        middle_Xd = F.normalize(e_Xd + q_Xd, dim=-1, eps=1e-6)
    # R = I - 2 m mᵀ + 2 q eᵀ maps the direction e to q (arXiv 2410.06424).
    rotated_Xd = (
        from_Xd
        - 2 * middle_Xd * (from_Xd * middle_Xd).sum(-1, keepdim=True)
        + 2 * q_Xd * (from_Xd * e_Xd).sum(-1, keepdim=True)
    )
    # Scaled by the ratio of lengths; the clamp keeps a latent of length 0 finite.
    return rotated_Xd * (to_norm / from_norm.clamp(min=1e-6))


class Quantizer(nn.Module):
    """Latents [B,D,h,w] → the nearest of K codes at each position.

    `config` holds the arguments that build the quantizer again.

    Args:
        codebook_size: K.
        latent_dim: D, the width of the latents.
        code_dim: d, the width of the codes; narrower than D keeps more codes in use (LlamaGen,
            arXiv 2406.06525: 8).
        cosine: compare directions (codes of length 1) instead of distances.
        decay: of the moving averages that update the codes.
        dead_code_threshold: a code whose moving count of uses falls below this is replaced by a
            latent of the batch.
        commitment: β of the commitment term, on the encoder (arXiv 1711.00937, eq. 3; 0.25 there).
        kmeans: initialise the codes by clustering the first batch.
        project: a linear map from latents to codes and one back. None: only if their widths differ.
            Published networks always have both (`quant_conv`, `post_quant_conv`).

    Raises:
        ValueError: the widths differ and `project` is false.
    """

    # Settings that an error about an incompatible checkpoint describes in words, see
    # `checkpoint.check_compatible`.
    setting_descriptions: ClassVar[dict[str, str]] = {
        "codebook_size": "codebook of {:,} codes",
        "code_dim": "codes of width {:,}",
        "cosine": "cosine similarity {}",
        "project": "maps between latents and codes {}",
    }

    codebook: Tensor
    counts: Tensor
    sums: Tensor
    started: Tensor

    def __init__(
        self,
        codebook_size: Size = 1024,
        latent_dim: int = 256,
        code_dim: Size = 8,
        cosine: bool = True,
        decay: Probability = 0.99,
        dead_code_threshold: NonNegativeFloat = 1.0,
        commitment: NonNegativeFloat = 0.25,
        kmeans: bool = True,
        project: bool | None = None,
    ):
        super().__init__()
        if project is False and code_dim != latent_dim:
            raise ValueError(
                f"project false: codes of width {code_dim} need a map from latents of width "
                f"{latent_dim}; set project to null, or code_dim to {latent_dim}"
            )
        self.config: dict[str, Any] = {
            "codebook_size": codebook_size,
            "latent_dim": latent_dim,
            "code_dim": code_dim,
            "cosine": cosine,
            "decay": decay,
            "dead_code_threshold": dead_code_threshold,
            "commitment": commitment,
            "kmeans": kmeans,
            "project": project,
        }
        self.codebook_size, self.cosine, self.decay = codebook_size, cosine, decay
        self.dead_code_threshold, self.commitment = dead_code_threshold, commitment
        self.project_in: nn.Module = nn.Identity()
        self.project_out: nn.Module = nn.Identity()
        if project or code_dim != latent_dim:
            self.project_in = nn.Linear(latent_dim, code_dim)
            self.project_out = nn.Linear(code_dim, latent_dim)
        # Random only until the first batch, unless `kmeans` is off.
        codes_Kd = torch.randn(codebook_size, code_dim) / code_dim**0.5
        if cosine:
            codes_Kd = F.normalize(codes_Kd, dim=-1)
        self.register_buffer("codebook", codes_Kd)
        # Buffers, not parameters: codes move by averages, and DDP hands rank 0's out, which is
        # harmless as all ranks have the same.
        self.register_buffer("counts", torch.ones(codebook_size))
        self.register_buffer("sums", self.codebook.clone())
        self.register_buffer("started", torch.tensor(not kmeans))
        self.draws = 0  # number of random draws, which seeds the next one

    def get_extra_state(self) -> Tensor:
        """The number of draws, for the state dict."""
        # In the state dict, so a resumed run draws what an uninterrupted one would.
        return torch.tensor(self.draws)

    def set_extra_state(self, state: Tensor) -> None:
        """Restore the number of draws."""
        self.draws = int(state)

    def forward(self, latents_BDhw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Quantise latents; in training, update the codes.

        Returns:
            Quantised latents [B,D,h,w] (gradients pass by rotation), codes int64 [B,N] in raster
            order, and the commitment term times β.
        """
        # In bfloat16, with eight bits, near codes could not be distinguished and moving averages
        # would stop moving.
        with torch.autocast(latents_BDhw.device.type, enabled=False):
            latents_BND = latents_BDhw.float().flatten(2).transpose(1, 2)
            z_BNd = self.project_in(latents_BND)
            if self.cosine:
                z_BNd = F.normalize(z_BNd, dim=-1, eps=1e-6)
            # `started` is read last: reading it waits for the device, `draws` is a plain number.
            if self.training and self.draws == 0 and not self.started:
                self.kmeans_init(z_BNd.detach())
            codes_BN = self._nearest(z_BNd.detach(), self.codebook)
            chosen_BNd = self.codebook[codes_BN]
            # Only the encoder is moved towards the code; the codes follow by moving averages.
            commitment = self.commitment * F.mse_loss(z_BNd, chosen_BNd)
            if self.training:
                quantised_BNd = rotate(z_BNd, chosen_BNd)
                self.ema_update(z_BNd.detach(), codes_BN)
            else:
                quantised_BNd = chosen_BNd
            out_BND = self.project_out(quantised_BNd)
        out_BDhw = out_BND.transpose(1, 2).unflatten(2, latents_BDhw.shape[2:])
        return out_BDhw, codes_BN, commitment

    def lookup(self, codes_Bhw: Tensor) -> Tensor:
        """Codes int64 [B,h,w] → latents [B,D,h,w]."""
        return self.project_out(self.codebook[codes_Bhw]).permute(0, 3, 1, 2)

    def _nearest(self, z_Xd: Tensor, codebook_Kd: Tensor) -> Tensor:
        similarity_XK = z_Xd @ codebook_Kd.T
        if not self.cosine:
            # argmin ‖z − c‖² = argmax z·c − ‖c‖²/2
            similarity_XK = similarity_XK - 0.5 * codebook_Kd.square().sum(-1)
        return similarity_XK.argmax(-1)

    def _random_rows(self, total: int) -> Tensor:
        """K row numbers below `total`, repeated only if there are fewer than K rows."""
        # A seed of its own for each draw, the same on all ranks and after a resume.
        self.draws += 1
        order = torch.randperm(total, generator=torch.Generator().manual_seed(self.draws))
        # A first batch of fewer latents than codes starts some codes alike; dead ones are replaced
        # later.
        repeats = -(-self.codebook_size // total)
        return order.repeat(repeats)[: self.codebook_size]

    @torch.no_grad()
    def kmeans_init(self, z_BNd: Tensor, rounds: int = 10) -> None:
        """Initialise the codes by k-means on the first batch, of all ranks together."""
        # In the order of one process with the whole batch, so the draws pick the same latents.
        z_Xd = gather_interleaved(z_BNd).flatten(0, 1)
        first_K = self._random_rows(len(z_Xd)).to(z_Xd.device)
        self.codebook.copy_(z_Xd[first_K])
        # A cluster without latents keeps its code.
        for _ in range(rounds):
            codes_X = self._nearest(z_Xd, self.codebook)
            counts_K, sums_Kd = self._count_and_sum(z_Xd, codes_X)
            self.set_codes(counts_K, sums_Kd, counts_K > 0)
        self.counts.copy_(counts_K)
        self.sums.copy_(sums_Kd)
        # Only now, so that an interrupted initialisation would run again.
        self.started.fill_(True)

    @torch.no_grad()
    def ema_update(self, z_BNd: Tensor, codes_BN: Tensor) -> None:
        """Move each code towards the latents that chose it; replace codes that are not used."""
        counts_K, sums_Kd = self._count_and_sum(z_BNd.flatten(0, 1), codes_BN.flatten())
        candidates_Kd = self._replacement_candidates(z_BNd)
        # One reduction instead of three.
        summed = all_reduce_sum(torch.cat([counts_K.unsqueeze(1), sums_Kd, candidates_Kd], 1))
        width = z_BNd.shape[-1]
        counts_K = summed[:, 0]
        sums_Kd = summed[:, 1 : 1 + width]
        candidates_Kd = summed[:, 1 + width :]

        # count ← decay · count + (1 − decay) · new, and the same for the sums.
        self.counts.lerp_(counts_K, 1 - self.decay)
        self.sums.lerp_(sums_Kd, 1 - self.decay)
        threshold = self.dead_code_threshold
        # A replaced code starts with a count just at the threshold: it has one chance to be used
        # before it is replaced again.
        dead_K = self.counts < threshold
        self.counts.copy_(torch.where(dead_K, threshold, self.counts))
        # The sum of `threshold` latents at the candidate.
        replaced_Kd = candidates_Kd * threshold
        self.sums.copy_(torch.where(dead_K[:, None], replaced_Kd, self.sums))
        self.set_codes(self.counts, self.sums, self.counts > 0)

    def _replacement_candidates(self, z_BNd: Tensor) -> Tensor:
        """This rank's part of one random latent per code [K,d]; rows of other ranks are 0.

        The latents are drawn from the batches of all ranks as if they were one, in the order of a
        distributed sampler: image i of the whole batch is on rank i mod W.
        """
        rank, size = rank_and_size()
        batch, positions, _ = z_BNd.shape
        picks_K = copy_to(self._random_rows(batch * size * positions), z_BNd.device)
        # The flat index counts through the images of all ranks.
        image_K, position_K = picks_K // positions, picks_K % positions
        is_here_K1 = (image_K % size == rank).unsqueeze(1)
        # Clamped, since a rank computes rows of other ranks too, and masks them below.
        latents_Kd = z_BNd[(image_K // size).clamp(max=batch - 1), position_K]
        return torch.where(is_here_K1, latents_Kd, 0.0)

    def _count_and_sum(self, z_Xd: Tensor, codes_X: Tensor) -> tuple[Tensor, Tensor]:
        """How many latents chose each code [K], and the sums of these latents [K,d]."""
        # index_add_ instead of a one-hot matrix [X,K] and a product with it, nor bincount, whose
        # length the host would wait for.
        zeros_Kd = z_Xd.new_zeros(self.codebook_size, z_Xd.shape[1])
        counts_K = z_Xd.new_zeros(self.codebook_size).index_add_(
            0, codes_X, z_Xd.new_ones(len(codes_X))
        )
        return counts_K, zeros_Kd.index_add_(0, codes_X, z_Xd)

    def set_codes(self, counts_K: Tensor, sums_Kd: Tensor, mask_K: Tensor) -> None:
        """Set the codes in `mask_K` to the means of the latents that chose them."""
        # The clamp is for codes outside the mask; inside it counts are positive.
        means_Kd = sums_Kd / counts_K.clamp(min=1e-6)[:, None]
        if self.cosine:
            means_Kd = F.normalize(means_Kd, dim=-1, eps=1e-6)
        self.codebook.copy_(torch.where(mask_K[:, None], means_Kd, self.codebook))
