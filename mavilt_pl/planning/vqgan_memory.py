"""Memory of a training of the VQ-GAN.

Weights are counted on the meta device. The activations of its convolutional networks are
arithmetic: numbers that autograd saves for one image, layer by layer; maps are `side` pixels wide
and high.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from mavilt_pl.encoders.findings import FindingsNet
from mavilt_pl.errors import UserError
from mavilt_pl.planning.memory import FLOAT32, Hardware, Memory
from mavilt_pl.planning.settings import parse_arguments
from mavilt_pl.vqgan.autoencoder import Autoencoder
from mavilt_pl.vqgan.discriminator import Discriminator
from mavilt_pl.vqgan.quantizer import Quantizer
from mavilt_pl.vqgan.tokenizer import Tokenizer

# Lightning's default precision; the plain way to train a VQ-GAN on one GPU.
ONE_GPU = Hardware("ddp", 1, "32-true")


def plan_vqgan(
    settings: Mapping[str, Any], batch_size: int, hardware: Hardware = ONE_GPU
) -> Memory:
    """Memory of a VQ-GAN.

    Args:
        settings: all `init_args` of `VQGAN`.
        batch_size: images of one GPU.
        hardware: what it runs on.

    Raises:
        UserError: the networks cannot be built with these settings.
    """
    autoencoder = parse_arguments(
        Autoencoder, "model.init_args.autoencoder", settings["autoencoder"]
    )
    quantizer = parse_arguments(Quantizer, "model.init_args.quantizer", settings["quantizer"])
    tokenizer = _build_on_meta(Tokenizer, "autoencoder", autoencoder, quantizer)
    trained = _count_trained(tokenizer)
    image_size = autoencoder["image_size"]
    saved = _autoencoder_activations(autoencoder)
    saved += 12 * image_size**2  # the terms of the loss on pixels
    if settings["gan_weight"] > 0:
        name = "model.init_args.discriminator"
        discriminator = parse_arguments(Discriminator, name, settings["discriminator"])
        trained += _count_trained(_build_on_meta(Discriminator, "discriminator", **discriminator))
        saved += _discriminator_activations(discriminator, image_size)
    phi_weights, phi_activations = _phi(settings, image_size)
    saved += phi_activations
    codebook = quantizer["codebook_size"] * quantizer["code_dim"]
    copies = 0
    if hardware.precision == "bf16-mixed":
        copies = 2 * trained  # autocast's bfloat16 copies of the weights
    return Memory(
        parameters=trained + phi_weights + codebook,
        trained=trained,
        # The codebook is kept twice: the codes, and the moving sums that they are made from.
        weights=FLOAT32 * (trained + phi_weights + 2 * codebook),
        gradients=FLOAT32 * trained + hardware.bucket_bytes(trained),
        optimizer=2 * FLOAT32 * trained,
        reference=0,
        scratch=FLOAT32 * trained,
        gathered=0,
        activations=batch_size * hardware.matmul_bytes * saved + copies,
        logits=0,
        details={"image": image_size, "batch": batch_size},
    )


def _build_on_meta(kind: type[nn.Module], name: str, *args: Any, **kwargs: Any) -> nn.Module:
    try:
        with torch.device("meta"):
            return kind(*args, **kwargs)
    except (TypeError, ValueError, RuntimeError, ArithmeticError) as error:
        raise UserError(f"model.init_args.{name}: {error}") from None


def _count_trained(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters() if weight.requires_grad)


def _residual_block(in_channels: int, out_channels: int, side: int) -> int:
    """Norm, SiLU and convolution, twice; each of the three saves its input."""
    return 3 * (in_channels + out_channels) * side**2


def _attention_block(channels: int, side: int) -> int:
    """Seven maps: input, normalised input, query, key, value, mixed values, last layer's input.

    The attention matrix is not among them: a fused kernel computes it again.
    """
    return 7 * channels * side**2


def _autoencoder_activations(shape: Mapping[str, Any]) -> int:
    """Numbers saved by `vqgan.autoencoder.Autoencoder` for one image."""
    channels = shape["channels"]
    widths = [channels * multiplier for multiplier in shape["channel_multipliers"]]
    attended = shape["attention_resolutions"]
    side = shape["image_size"] // shape["patch"]
    saved = shape["image_size"] ** 2
    # Encoder.
    for level, width in enumerate(widths):
        for _ in range(shape["num_res_blocks"]):
            saved += _residual_block(channels, width, side)
            channels = width
            if side in attended:
                saved += _attention_block(channels, side)
        if level < len(widths) - 1:
            saved += channels * side**2  # the strided convolution's input
            side //= 2
    # Middles of encoder and decoder, and what lies between them: norms and projections.
    attends = shape["middle_attention"]
    if attends is None:
        attends = side in attended
    middle = 2 * _residual_block(channels, channels, side)
    if attends:
        middle += _attention_block(channels, side)
    saved += 2 * middle
    saved += (3 * channels + 4 * shape["latent_dim"]) * side**2
    # Decoder, which has one more block a level (taming).
    for level in reversed(range(len(widths))):
        for _ in range(shape["num_res_blocks"] + 1):
            saved += _residual_block(channels, widths[level], side)
            channels = widths[level]
            if side in attended:
                saved += _attention_block(channels, side)
        if level > 0:
            side *= 2
            saved += channels * side**2  # the upsampled map
    return saved + 3 * channels * side**2


def _discriminator_activations(shape: Mapping[str, Any], side: int) -> int:
    """Numbers saved by `vqgan.discriminator.Discriminator` for one image."""
    channels, layers = shape["channels"], shape["layers"]
    saved = side**2 + 2 * channels * (side // 2) ** 2
    side //= 2
    for number in range(1, layers + 1):
        width = channels * min(2**number, 8)
        if number < layers:
            side //= 2
        else:
            side -= 1  # at stride 1, a kernel of 4 with padding 1 takes one pixel off
        saved += 3 * width * side**2
    return saved


def _phi(settings: Mapping[str, Any], side: int) -> tuple[int, int]:
    """Weights of φ and numbers that it saves for an image; 0 and 0 if no setting needs it.

    φ is taken to be our classifier with its default widths: its file is not read.
    """
    compares = settings["lambda_feat"] > 0 or settings["lambda_finding"] > 0
    if not compares and not settings["clinical_input"]:
        return 0, 0
    net: Any = _build_on_meta(FindingsNet, "encoder", ["any"])
    # Its head depends on the number of findings, which is not known here, and is tiny.
    weights = sum(weight.numel() for weight in net.levels.parameters())
    if not compares:
        return weights, 0
    saved = 0
    for level, width in enumerate(
        parse_arguments(FindingsNet, "encoder", {"findings": []})["widths"]
    ):
        # Convolution, batch norm, and a ReLU in place: two inputs saved. All levels but the first
        # have two blocks.
        blocks = 2 if level else 1
        saved += blocks * 2 * width * (side // 2**level) ** 2
    # The image and its reconstruction both pass through φ.
    return weights, 2 * saved
