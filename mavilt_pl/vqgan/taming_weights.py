"""Weights of a published VQ-GAN under the names of our `Tokenizer`.

A network of three channels becomes one of one channel, exactly so for a grey image that is given
three times: the first convolution is summed over its input channels, and the choice of the output
channel is folded into the last convolution. The 1 × 1 convolutions around the codebook stay linear
maps (`project_in`, `project_out`): folding their bias into the padded 3 × 3 convolution behind them
would be wrong at the border.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mavilt_pl.errors import UserError
from mavilt_pl.vqgan.autoencoder import AttentionBlock, Autoencoder, ResidualBlock, Up
from mavilt_pl.vqgan.taming import CODEBOOK, PublishedVQGAN

# Moving averages of a codebook: training starts new ones.
UNUSED = {"quantize.embedding.cluster_size", "quantize.embedding.embed_avg"}
# Initial count of uses of every published code when training continues. At a decay of 0.99 an
# unused code is then replaced after some 460 steps (ln 100 / 0.01), not after the first.
INITIAL_COUNT = 100.0


class TamingConversion:
    """Copies the layers of a published network to their names in a `Tokenizer`.

    Args:
        published: the network; its image size does not matter.
    """

    def __init__(self, published: PublishedVQGAN):
        self.published = published
        self.converted: dict[str, Tensor] = {}
        self.read: set[str] = set()

    def state_dict(self) -> dict[str, Tensor]:
        """Convert all weights; raise `UserError` if some of the file's were not used."""
        # At this size every level has a resolution of its own, so that levels with and without
        # attention are distinguished. The names are the same at any size.
        shape, _ = self.published.shape(2 ** (self.published.levels - 1))
        # Only the layers' kinds and order are needed, no memory.
        with torch.device("meta"):
            net = Autoencoder(**shape)
        for side in ("encoder", "decoder"):
            names = _encoder_names(shape) if side == "encoder" else _decoder_names(shape)
            self._copy_blocks(f"autoencoder.{side}", getattr(net, side), names)
        self._copy("autoencoder.out", "decoder.conv_out")
        self._reduce_to_one_channel()
        self._copy_quantizer()
        # A weight that is not used means a network that computes something else.
        unread = sorted(self.published.weights.keys() - self.read - UNUSED)
        if unread:
            raise UserError(
                f"{self.published.path} has {len(unread)} weights that a VQ-GAN of "
                f"taming-transformers does not have, such as {unread[0]}; expected its blocks of "
                "residuals and attention, and a plain codebook"
            )
        return self.converted

    def _copy(self, ours: str, *theirs: str) -> None:
        """Copy a layer, or several of theirs concatenated into one of ours."""
        for kind in ("weight", "bias"):
            keys = [f"{name}.{kind}" for name in theirs]
            parts = [self.published.weight(key) for key in keys]
            self.converted[f"{ours}.{kind}"] = torch.cat(parts).float()
            self.read.update(keys)

    def _copy_blocks(self, prefix: str, layers: nn.Sequential, names: list[str]) -> None:
        """Copy the layers with weights of a `Sequential`, one published block after the other."""
        # Activations, padding and pixel folding have no weights and no published name.
        kinds = (nn.Conv2d, nn.GroupNorm, ResidualBlock, AttentionBlock, Up)
        blocks: list[tuple[str, nn.Module]] = []
        for index, layer in enumerate(layers):
            if isinstance(layer, kinds):
                blocks.append((f"{prefix}.{index}", layer))
        # `strict`: a wrong order of names would copy weights of the same shape to wrong layers.
        for (ours, block), name in zip(blocks, names, strict=True):
            self._copy_block(ours, block, name)

    def _copy_block(self, ours: str, block: nn.Module, name: str) -> None:
        if isinstance(block, ResidualBlock):
            for part in ("norm1", "conv1", "norm2", "conv2"):
                self._copy(f"{ours}.{part}", f"{name}.{part}")
            if isinstance(block.shortcut, nn.Conv2d):
                self._copy(f"{ours}.shortcut", f"{name}.nin_shortcut")
        elif isinstance(block, AttentionBlock):
            self._copy(f"{ours}.norm", f"{name}.norm")
            self._copy(f"{ours}.qkv", f"{name}.q", f"{name}.k", f"{name}.v")
            self._copy(f"{ours}.out", f"{name}.proj_out")
        elif isinstance(block, Up):
            self._copy(f"{ours}.conv", name)
        else:
            self._copy(ours, name)

    def _reduce_to_one_channel(self) -> None:
        # A grey image given three times: Σ_c w_c x = (Σ_c w_c) x.
        first = next(key for key in self.converted if key.startswith("autoencoder.encoder."))
        self.converted[first] = self.converted[first].sum(1, keepdim=True)
        for key in ("autoencoder.out.weight", "autoencoder.out.bias"):
            value = self.converted[key]
            if self.published.source == "torchxrayvision":
                self.converted[key] = value[:1]  # as its `decode` does
            else:
                self.converted[key] = value.mean(0, keepdim=True)

    def _copy_quantizer(self) -> None:
        for ours, theirs in (("project_in", "quant_conv"), ("project_out", "post_quant_conv")):
            self._copy(f"quantizer.{ours}", theirs)
            weight = self.converted[f"quantizer.{ours}.weight"]
            # [out,in,1,1] → [out,in].
            self.converted[f"quantizer.{ours}.weight"] = weight.flatten(1)
        codes_Kd = self.published.weight(CODEBOOK).float()
        self.read.add(CODEBOOK)
        self.converted["quantizer.codebook"] = codes_Kd.clone()
        # sum = count · code, so the first update moves each code from where it is.
        self.converted["quantizer.sums"] = codes_Kd * INITIAL_COUNT
        self.converted["quantizer.counts"] = torch.full(codes_Kd.shape[:1], INITIAL_COUNT)
        self.converted["quantizer.started"] = torch.tensor(True)
        self.converted["quantizer._extra_state"] = torch.tensor(0)


def _middle_names(shape: Mapping[str, Any]) -> list[str]:
    if shape["middle_attention"]:
        return ["mid.block_1", "mid.attn_1", "mid.block_2"]
    return ["mid.block_1", "mid.block_2"]


def _level_names(shape: Mapping[str, Any], side: str, level: int, blocks: int) -> list[str]:
    # The rule of `Autoencoder._level`.
    attends = shape["image_size"] >> level in shape["attention_resolutions"]
    names = []
    for block in range(blocks):
        names.append(f"{side}.{level}.block.{block}")
        if attends:
            names.append(f"{side}.{level}.attn.{block}")
    return names


def _encoder_names(shape: Mapping[str, Any]) -> list[str]:
    """Published names of the encoder's blocks, in the order of our `Sequential`."""
    levels = len(shape["channel_multipliers"])
    names = ["conv_in"]
    for level in range(levels):
        names += _level_names(shape, "down", level, shape["num_res_blocks"])
        if level < levels - 1:
            names.append(f"down.{level}.downsample.conv")
    names += [*_middle_names(shape), "norm_out", "conv_out"]
    return [f"encoder.{name}" for name in names]


def _decoder_names(shape: Mapping[str, Any]) -> list[str]:
    """Published names of the decoder's blocks, without its last convolution."""
    names = ["conv_in", *_middle_names(shape)]
    for level in reversed(range(len(shape["channel_multipliers"]))):
        names += _level_names(shape, "up", level, shape["num_res_blocks"] + 1)
        if level > 0:
            names.append(f"up.{level}.upsample.conv")
    names.append("norm_out")
    return [f"decoder.{name}" for name in names]
