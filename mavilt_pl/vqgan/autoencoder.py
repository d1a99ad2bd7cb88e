"""Encoder and decoder of the VQ-GAN.

The plain blocks of taming-transformers (arXiv 2012.09841, appendix A): residual blocks with group
norm and swish, attention at chosen resolutions, strided convolution down, nearest-neighbour and
convolution up. The differences:

- one channel in, one out;
- `patch` folds p × p pixels into channels before the first convolution and unfolds them after the
  last. The levels at full resolution cost most of the time and carry the least meaning. A patch of
  1 is the published network;
- attention uses torch's fused kernel;
- published networks differ in group norm, padding and attention of the middle. See the arguments
  and `taming.py`.

Own code, not a library's: the layers must load the published weights one by one, and `patch` is in
no published implementation.

Shape legend: B batch, C channels, H W height and width, D latent width, N = h·w positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from mavilt_pl.ranges import Size, Sizes


def _default_groups(channels: int) -> int:
    """The most groups, a power of two up to 32, of at least 4 channels each."""
    # Fewer than 4 channels a group would normalise away most of what they carry; small networks of
    # 8 channels need this.
    for groups in (32, 16, 8, 4, 2):
        if channels % groups == 0 and channels // groups >= 4:
            return groups
    return 1


def _norm(channels: int, groups: int | None) -> nn.GroupNorm:
    # 1e-6 as published, not torch's 1e-5: published weights must give the published outputs.
    return nn.GroupNorm(groups or _default_groups(channels), channels, eps=1e-6)


class ResidualBlock(nn.Module):
    """Norm, swish and convolution, twice, plus a shortcut. [B,C,H,W] → [B,C',H,W].

    Args:
        in_channels: C.
        out_channels: C'; if it differs from C, the shortcut is a 1 × 1 convolution.
        groups: of both group norms; None for the default of that many channels.
    """

    def __init__(self, in_channels: int, out_channels: int, groups: int | None = None):
        super().__init__()
        # Names and order of taming's blocks, so that published weights map one to one
        # (`taming_weights`).
        self.norm1 = _norm(in_channels, groups)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = _norm(out_channels, groups)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.shortcut: nn.Module = nn.Identity()
        if in_channels != out_channels:
            self.shortcut = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """[B,C,H,W] → [B,C',H,W]."""
        h_BCHW = self.conv1(F.silu(self.norm1(x_BCHW)))
        return self.shortcut(x_BCHW) + self.conv2(F.silu(self.norm2(h_BCHW)))


class AttentionBlock(nn.Module):
    """Single-head self-attention over all positions, with a shortcut. [B,C,H,W] → [B,C,H,W]."""

    def __init__(self, channels: int, groups: int | None = None):
        super().__init__()
        self.norm = _norm(channels, groups)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """[B,C,H,W] → [B,C,H,W]."""
        # One convolution for q, k and v instead of three; published weights are concatenated.
        qkv_BNC = self.qkv(self.norm(x_BCHW)).flatten(2).transpose(1, 2)
        # The fused kernel takes a dimension of heads.
        parts = [part_BNC[:, None] for part_BNC in qkv_BNC.chunk(3, dim=-1)]
        q_B1NC, k_B1NC, v_B1NC = parts
        mixed_BNC = F.scaled_dot_product_attention(q_B1NC, k_B1NC, v_B1NC)[:, 0]
        return x_BCHW + self.out(mixed_BNC.transpose(1, 2).reshape_as(x_BCHW))


class Up(nn.Module):
    """Nearest-neighbour upsampling by 2, then a convolution. [B,C,H,W] → [B,C,2H,2W]."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """[B,C,H,W] → [B,C,2H,2W]."""
        # Not a transposed convolution, which leaves a checkerboard pattern.
        return self.conv(F.interpolate(x_BCHW, scale_factor=2.0, mode="nearest"))


class Autoencoder(nn.Module):
    """Pixels [B,1,H,W] in [-1, 1] → latents [B,D,h,w] → pixels.

    The defaults are taming's `custom_vqgan.yaml` with LLM-CXR's factor 16 (arXiv 2305.11490,
    appendix A). `config` holds the arguments that build the network again.

    Args:
        image_size: H = W in pixels.
        channels: width of the first level.
        channel_multipliers: width of each level over `channels`; the resolution halves between
            levels.
        num_res_blocks: residual blocks per level (the decoder has one more, as published).
        attention_resolutions: resolutions of the feature map, in pixels, that get attention.
        latent_dim: D, the width of what is quantised.
        patch: pixels folded into channels on each side; see the module's text.
        groups: of every group norm; 32 in the published networks. None: the most, up to 32, of at
            least 4 channels each.
        asymmetric: pad the strided convolutions on the right and at the bottom only, as published,
            instead of on all sides.
        middle_attention: attention between the two middle blocks, which the published networks
            have at any resolution. None: if `attention_resolutions` contains their resolution.

    Raises:
        ValueError: `image_size` cannot be halved that often.
    """

    # Settings that an error about an incompatible checkpoint describes in words, see
    # `checkpoint.check_compatible`.
    setting_descriptions: ClassVar[dict[str, str]] = {
        "image_size": "image size of {:,} pixels",
        "channels": "{:,} channels at the first level",
        "channel_multipliers": "channel multipliers {}",
        "num_res_blocks": "{} residual blocks per level",
        "latent_dim": "latents of width {:,}",
        "patch": "patches of {} pixels",
        "groups": "group norm of {} groups",
        "asymmetric": "asymmetric padding {}",
    }

    def __init__(
        self,
        image_size: Size = 256,
        channels: Size = 128,
        channel_multipliers: Sizes = (1, 1, 2, 2, 4),
        num_res_blocks: Size = 2,
        attention_resolutions: Sequence[Size] = (16,),
        latent_dim: Size = 256,
        patch: Size = 1,
        groups: Size | None = None,
        asymmetric: bool = False,
        middle_attention: bool | None = None,
    ):
        super().__init__()
        # The resolution halves between levels, so one time less than there are levels.
        halvings = len(channel_multipliers) - 1
        self.factor = patch * 2**halvings
        if image_size % self.factor:
            raise ValueError(
                f"image_size {image_size} is not a multiple of {self.factor} (patch {patch} times "
                f"2 for each of {halvings} halvings); choose another image_size, patch or "
                "channel_multipliers"
            )
        self.image_size, self.patch, self.latent_dim = image_size, patch, latent_dim
        self.grid = image_size // self.factor
        # Plain lists and numbers: it is saved in checkpoints, which are read as tensors and plain
        # values.
        self.config: dict[str, Any] = {
            "image_size": image_size,
            "channels": channels,
            "channel_multipliers": [*channel_multipliers],
            "num_res_blocks": num_res_blocks,
            "attention_resolutions": [*attention_resolutions],
            "latent_dim": latent_dim,
            "patch": patch,
            "groups": groups,
            "asymmetric": asymmetric,
            "middle_attention": middle_attention,
        }
        self.encoder = nn.Sequential(*self._encoder_layers())
        self.decoder = nn.Sequential(*self._decoder_layers())
        self.out = nn.Conv2d(channels * channel_multipliers[0], patch**2, 3, padding=1)
        # The last convolution gives p² channels, one for each pixel of a patch.
        self.unfold = nn.PixelShuffle(patch)

    def _encoder_layers(self) -> list[nn.Module]:
        c = self.config
        size, width = self.image_size // self.patch, c["channels"]
        layers: list[nn.Module] = [
            nn.PixelUnshuffle(self.patch),
            nn.Conv2d(self.patch**2, width, 3, padding=1),
        ]
        last = len(c["channel_multipliers"]) - 1
        for level, multiplier in enumerate(c["channel_multipliers"]):
            level_width = c["channels"] * multiplier
            layers += self._level(width, level_width, size, c["num_res_blocks"])
            width = level_width
            # The last level stays at the grid's resolution.
            if level < last:
                # taming pads by hand, because torch's `padding` is the same on both sides.
                if c["asymmetric"]:
                    layers.append(nn.ZeroPad2d((0, 1, 0, 1)))
                padding = 0 if c["asymmetric"] else 1
                layers.append(nn.Conv2d(width, width, 3, stride=2, padding=padding))
                size //= 2
        layers += self._middle(width, size)
        layers += [
            _norm(width, c["groups"]),
            nn.SiLU(),
            nn.Conv2d(width, self.latent_dim, 3, padding=1),
        ]
        return layers

    def _decoder_layers(self) -> list[nn.Module]:
        c = self.config
        size = self.grid
        width = c["channels"] * c["channel_multipliers"][-1]
        layers: list[nn.Module] = [nn.Conv2d(self.latent_dim, width, 3, padding=1)]
        layers += self._middle(width, size)
        for level in reversed(range(len(c["channel_multipliers"]))):
            # The decoder mirrors the encoder; one more block a level, as published.
            level_width = c["channels"] * c["channel_multipliers"][level]
            layers += self._level(width, level_width, size, c["num_res_blocks"] + 1)
            width = level_width
            if level > 0:
                layers.append(Up(width))
                size *= 2
        layers += [_norm(width, c["groups"]), nn.SiLU()]
        return layers

    def _level(self, in_width: int, width: int, size: int, blocks: int) -> list[nn.Module]:
        """Residual blocks of one resolution, each with attention behind it if that is chosen."""
        groups = self.config["groups"]
        layers: list[nn.Module] = []
        for _ in range(blocks):
            layers.append(ResidualBlock(in_width, width, groups))
            in_width = width
            if size in self.config["attention_resolutions"]:
                layers.append(AttentionBlock(width, groups))
        return layers

    def _middle(self, width: int, size: int) -> list[nn.Module]:
        groups = self.config["groups"]
        attends = self.config["middle_attention"]
        if attends is None:
            attends = size in self.config["attention_resolutions"]
        # The attention is built last: the order of construction decides which random numbers
        # initialise which weights.
        first = ResidualBlock(width, width, groups)
        second = ResidualBlock(width, width, groups)
        if not attends:
            return [first, second]
        return [first, AttentionBlock(width, groups), second]

    @property
    def last_layer(self) -> Tensor:
        """The weight at which the adversarial term's adaptive weight is measured.

        arXiv 2012.09841, eq. 7.
        """
        return self.out.weight

    def encode(self, pixels_BCHW: Tensor) -> Tensor:
        """Pixels [B,1,H,W] in [-1, 1] → latents [B,D,h,w].

        Raises:
            ValueError: more than one channel, or another size than `image_size`.
        """
        # Checked here, where every use passes, since a wrong size would still run through the
        # convolutions and give a grid of other size.
        channels = pixels_BCHW.shape[1] if pixels_BCHW.ndim == 4 else 1
        if channels != 1:
            raise ValueError(
                "the tokenizer takes 1 channel, grey pixels [B,1,H,W] in [-1,1], and was given "
                f"{channels} channels; pass the first one of a grey image in colour"
            )
        if pixels_BCHW.shape[1:] != (1, self.image_size, self.image_size):
            given = " × ".join(str(length) for length in pixels_BCHW.shape[1:])
            raise ValueError(
                f"the tokenizer takes 1 × {self.image_size} × {self.image_size} pixels and was "
                f"given {given}; prepare the corpus with --size {self.image_size}"
            )
        return self.encoder(pixels_BCHW)

    def decode(self, latents_BDhw: Tensor) -> Tensor:
        """Latents [B,D,h,w] → pixels [B,1,H,W], not clamped."""
        return self.unfold(self.out(self.decoder(latents_BDhw)))
