"""Encoder and decoder of the VQ-GAN.

The plain blocks of taming-transformers (arXiv 2012.09841, appendix A): residual blocks with group
norm and swish, attention at chosen resolutions, strided convolution down, nearest-neighbour and
convolution up. What differs:
- one channel in, one out;
- `patch` folds p × p pixels into channels before the first convolution and unfolds them after the
  last: the levels at full resolution cost most of the time and hold least of the meaning; 1 is the
  published network;
- attention is torch's fused one;
- published networks differ in group norm, padding and attention of the middle: see the arguments,
  and `loading.py`.

Shape legend: B batch, C channels, H W height and width, D code width, N = h·w.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn


def _norm(channels: int, groups: int | None) -> nn.GroupNorm:
    fitting = next(
        g for g in (32, 16, 8, 4, 2, 1) if (channels % g == 0 and channels // g >= 4) or g == 1
    )
    return nn.GroupNorm(groups or fitting, channels, eps=1e-6)


class ResidualBlock(nn.Module):
    """norm, swish, convolution, twice, beside a shortcut. [B,C,H,W] → [B,C',H,W]"""

    def __init__(self, inside: int, outside: int, groups: int | None = None):
        super().__init__()
        self.norm1, self.conv1 = _norm(inside, groups), nn.Conv2d(inside, outside, 3, padding=1)
        self.norm2, self.conv2 = _norm(outside, groups), nn.Conv2d(outside, outside, 3, padding=1)
        self.shortcut = nn.Conv2d(inside, outside, 1) if inside != outside else nn.Identity()

    def forward(self, x_BCHW: Tensor) -> Tensor:
        h_BCHW = self.conv1(F.silu(self.norm1(x_BCHW)))
        return self.shortcut(x_BCHW) + self.conv2(F.silu(self.norm2(h_BCHW)))


class AttentionBlock(nn.Module):
    """One head of self-attention over all places. [B,C,H,W] → [B,C,H,W]"""

    def __init__(self, channels: int, groups: int | None = None):
        super().__init__()
        self.norm, self.qkv = _norm(channels, groups), nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        q_BNC, k_BNC, v_BNC = (
            self.qkv(self.norm(x_BCHW)).flatten(2).transpose(1, 2).chunk(3, dim=-1)
        )
        mixed_BNC = F.scaled_dot_product_attention(q_BNC[:, None], k_BNC[:, None], v_BNC[:, None])[
            :, 0
        ]
        return x_BCHW + self.out(mixed_BNC.transpose(1, 2).reshape_as(x_BCHW))


class Up(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.conv(F.interpolate(x_BCHW, scale_factor=2.0, mode="nearest"))


class Autoencoder(nn.Module):
    """Pixels [B,1,H,W] in [-1,1] → latents [B,D,h,w] → pixels.

    Args:
        image_size: H = W in pixels.
        channels: width of the first level.
        multipliers: width of each level over `channels`; the resolution halves between levels.
        blocks: residual blocks a level (the decoder has one more, as published).
        attention: resolutions (of the feature map, in pixels) that get attention.
        latent: D, the width of what is quantised.
        patch: pixels folded into channels on each side; see the module's text.
        groups: of every group norm; 32 in the published networks. None: the most, up to 32, of at
            least 4 channels.
        asymmetric: pad the strided convolutions on the right and below only, as published, not all
            around.
        middle_attention: attention between the two middle blocks, as published whatever their
            resolution. None: where `attention` names their resolution.

    The defaults are taming's `custom_vqgan.yaml` with LLM-CXR's factor 16 (arXiv 2305.11490,
    appendix A). `config` holds the arguments that build it again.
    """

    # Settings that a refused checkpoint is explained with, see `checkpoint.check_compatible`.
    setting_descriptions: ClassVar[dict[str, str]] = {
        "image_size": "image size of {:,} pixels",
        "channels": "{:,} channels at the first level",
        "multipliers": "multipliers {} of the channels",
        "blocks": "{} residual blocks a level",
        "latent": "latents of width {:,}",
        "patch": "patches of {} pixels",
        "groups": "group norm of {} groups",
        "asymmetric": "asymmetric padding {}",
    }

    def __init__(
        self,
        image_size: int = 256,
        channels: int = 128,
        multipliers: Sequence[int] = (1, 1, 2, 2, 4),
        blocks: int = 2,
        attention: Sequence[int] = (16,),
        latent: int = 256,
        patch: int = 1,
        groups: int | None = None,
        asymmetric: bool = False,
        middle_attention: bool | None = None,
    ):
        super().__init__()
        self.factor = patch * 2 ** (len(multipliers) - 1)
        if image_size % self.factor:
            raise ValueError(
                f"image_size {image_size} is not a multiple of {self.factor} (patch {patch} times "
                f"2 for each of "
                f"{len(multipliers) - 1} halvings); choose another image_size, patch or multipliers"
            )
        self.image_size, self.patch, self.latent = image_size, patch, latent
        self.grid = image_size // self.factor
        self.config: dict[str, Any] = {
            "image_size": image_size,
            "channels": channels,
            "multipliers": [*multipliers],
            "blocks": blocks,
            "attention": [*attention],
            "latent": latent,
            "patch": patch,
            "groups": groups,
            "asymmetric": asymmetric,
            "middle_attention": middle_attention,
        }
        widths = [channels * m for m in multipliers]

        size, width = image_size // patch, channels
        down: list[nn.Module] = [nn.PixelUnshuffle(patch), nn.Conv2d(patch**2, width, 3, padding=1)]
        for level, wide in enumerate(widths):
            for _ in range(blocks):
                down.append(ResidualBlock(width, wide, groups))
                width = wide
                if size in attention:
                    down.append(AttentionBlock(width, groups))
            if level < len(widths) - 1:
                if asymmetric:
                    down.append(nn.ZeroPad2d((0, 1, 0, 1)))
                down.append(nn.Conv2d(width, width, 3, stride=2, padding=0 if asymmetric else 1))
                size //= 2
        attends = size in attention if middle_attention is None else middle_attention
        down += self._middle(width, attends, groups)
        down += [_norm(width, groups), nn.SiLU(), nn.Conv2d(width, latent, 3, padding=1)]
        self.encoder = nn.Sequential(*down)

        up: list[nn.Module] = [
            nn.Conv2d(latent, width, 3, padding=1),
            *self._middle(width, attends, groups),
        ]
        for level, wide in reversed(list(enumerate(widths))):
            for _ in range(blocks + 1):
                up.append(ResidualBlock(width, wide, groups))
                width = wide
                if size in attention:
                    up.append(AttentionBlock(width, groups))
            if level > 0:
                up.append(Up(width))
                size *= 2
        up += [_norm(width, groups), nn.SiLU()]
        self.decoder = nn.Sequential(*up)
        self.out = nn.Conv2d(width, patch**2, 3, padding=1)
        self.unfold = nn.PixelShuffle(patch)

    @staticmethod
    def _middle(width: int, attends: bool, groups: int | None) -> list[nn.Module]:
        blocks: list[nn.Module] = [
            ResidualBlock(width, width, groups),
            ResidualBlock(width, width, groups),
        ]
        return [blocks[0], AttentionBlock(width, groups), blocks[1]] if attends else blocks

    @property
    def last_layer(self) -> Tensor:
        """The weight that the adaptive weight of the adversarial term is measured at (arXiv
        2012.09841, eq. 7).
        """
        return self.out.weight

    def encode(self, pixels_BCHW: Tensor) -> Tensor:
        if pixels_BCHW.ndim == 4 and pixels_BCHW.shape[1] != 1:
            raise ValueError(
                f"the tokenizer takes 1 channel, grey pixels [B,1,H,W] in [-1,1], and was given "
                f"{pixels_BCHW.shape[1]} "
                "channels; of a grey image repeated over its channels pass the first"
            )
        if pixels_BCHW.shape[1:] != (1, self.image_size, self.image_size):
            raise ValueError(
                f"the tokenizer takes 1 × {self.image_size} × {self.image_size} pixels and was "
                f"given "
                f"{' × '.join(map(str, pixels_BCHW.shape[1:]))}; prepare the corpus with --size "
                f"{self.image_size}"
            )
        return self.encoder(pixels_BCHW)

    def decode(self, latents_BDhw: Tensor) -> Tensor:
        return self.unfold(self.out(self.decoder(latents_BDhw)))
