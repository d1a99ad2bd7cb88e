"""Tokenizers from a local file: a checkpoint of ours, or a published VQ-GAN in the layout of
taming-transformers.

A file is known by its keys:

| keys | what | shows |
| --- | --- | --- |
| `tokenizer.autoencoder.…` | a checkpoint of our `VQGAN` | its one channel |
| `encoder.conv_in.…` | a VQ-GAN of taming-transformers (arXiv 2012.09841), `loss.…` beside it ignored | the mean of its channels |
| `model.encoder.conv_in.…` | torchxrayvision's `baseline_models.ieee8023.VQGAN`, 768² unless said otherwise | its first channel, as `decode` there |

All of them take [-1, 1]: torchxrayvision's [-1024, 1024] is divided by 1024 at its door, so nothing
is to be scaled here. A net of three channels becomes one of one channel, exactly for grey images,
which it is given three times over: the first convolution is all_reduce_sum over its input channels; what is
shown of its output channels is folded into the last convolution. The 1 × 1 convolutions around the
codebook stay linear maps (`project_in`, `project_out`): a bias folded into the padded 3 × 3
convolution behind them would be wrong at the border.

Such nets are fully convolutional and do not hold their image size. It is an argument, or stands in
the file, which is then {"state_dict": …, "image_size": 256}.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mavilt_pl.checkpoint import load_strict, read_weights
from mavilt_pl.errors import UserError
from mavilt_pl.vqgan.autoencoder import AttentionBlock, Autoencoder, ResidualBlock, Up
from mavilt_pl.vqgan.module import Tokenizer

OURS = "tokenizer.autoencoder.out.weight"
MARKS = ("encoder.conv_in.weight", "decoder.conv_in.weight", "quantize.embedding.weight")
XRV = "model."
XRV_SIZE = 768

CONVERT = (
    "Where you trust the file, save its tensors alone. A checkpoint of taming-transformers, where "
    "it is installed: python -c "
    "\"import torch; torch.save({'state_dict': torch.load('last.ckpt', weights_only=False, "
    "map_location='cpu')['state_dict'], "
    "'image_size': 256}, 'vqgan.pt')\"; torchxrayvision's: python -c \"import torch, "
    "torchxrayvision as xrv; "
    "torch.save(xrv.baseline_models.ieee8023.VQGAN('cxr2-vqgan-768-sd').state_dict(), 'vqgan.pt')\""
)

# How often each published code counts as used when training goes on: at a decay of 0.99 an unused
# one is revived after some 460 steps (ln 100 / 0.01), not after the first.
USES = 100.0


def load_tokenizer(
    path: str | Path, image_size: int | None = None, otherwise: int | None = None
) -> Tokenizer:
    """A frozen tokenizer, in evaluation mode, from a checkpoint of ours or a published VQ-GAN.

    Args:
        path: a local file, read as tensors only.
        image_size: side of the images for a published net, whatever its file says. A checkpoint of
            ours has its own.
        otherwise: side of the images where neither `image_size` nor the file says.

    Raises `UserError` where the file is none of the three, is damaged or incomplete, or the image
    size is not known.
    """
    checkpoint = read_weights(path, CONVERT)
    state = checkpoint.get("state_dict", checkpoint)
    if OURS not in state:
        autoencoder, quantizer = _shape(path, checkpoint, image_size, otherwise)
        tokenizer = Tokenizer(autoencoder, quantizer)
        load_strict(tokenizer, _weights(path, checkpoint), path)
        return tokenizer.eval().requires_grad_(False)
    if "hyper_parameters" not in checkpoint:
        raise UserError(
            f"{path} has weights of a VQGAN and not its settings (hyper_parameters); name "
            f"Lightning's checkpoint"
        )
    h = checkpoint["hyper_parameters"]
    autoencoder, quantizer = (
        checkpoint.get(key) or h[key] or {} for key in ("autoencoder", "quantizer")
    )
    tokenizer = Tokenizer(autoencoder, quantizer, checkpoint.get("clinical"))
    own = tokenizer.autoencoder.image_size
    if image_size not in (None, own):
        raise UserError(
            f"{path} was trained on images of {own}² and is asked for {image_size}²; leave "
            f"image_size out"
        )
    prefix = "tokenizer."
    load_strict(
        tokenizer, {k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)}, path
    )
    return tokenizer.eval().requires_grad_(False)


def published_shape(
    path: str | Path, image_size: int | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments of `Autoencoder` and of `Quantizer` that build the published VQ-GAN of a file.

    `image_size` is needed where the file does not say (see the module's text). How the codes go on
    learning (decay, dead_code_threshold, commitment) is not part of it: add to it what differs from
    `Quantizer`'s defaults.
    """
    return _shape(path, read_weights(path, CONVERT), image_size, None)


def published_weights(path: str | Path) -> dict[str, Tensor]:
    """The state dict of the `Tokenizer` of `published_shape`, whatever the image size. The moving
    averages of its codes start as if each had been used `USES` times.
    """
    return _weights(path, read_weights(path, CONVERT))


def started_shape(
    path: str | Path, autoencoder: Mapping[str, Any], quantizer: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments of `Autoencoder` and `Quantizer` for a training that starts from a published
    VQ-GAN: the file's shape, and what the config says of how the codes go on learning. Raises
    `UserError` where the two disagree.
    """
    found = dict(
        zip(("autoencoder", "quantizer"), published_shape(path, autoencoder.get("image_size")))
    )
    for part, given in (("autoencoder", autoencoder), ("quantizer", quantizer)):
        for key, value in given.items():
            there = found[part].get(key, value)
            if (list(value) if isinstance(value, (list, tuple)) else value) != there:
                raise UserError(
                    f"model.init_args.{part}.{key} is {value} and {there} in {path}, which "
                    f"model.init_args.init_from names; "
                    "leave it out of the config, or start from another file"
                )
    return found["autoencoder"], {**quantizer, **found["quantizer"]}


def start_from(tokenizer: Tokenizer, path: str | Path) -> None:
    """The weights of a published VQ-GAN into a tokenizer of its shape; a clinical map begins
    without influence.
    """
    weights = published_weights(path)
    for name in ("autoencoder", "quantizer"):
        mine = {
            k.removeprefix(f"{name}."): v for k, v in weights.items() if k.startswith(f"{name}.")
        }
        load_strict(getattr(tokenizer, name), mine, path)
    if tokenizer.clinical is not None:
        for parameter in tokenizer.adapter.parameters():
            nn.init.zeros_(parameter)


Source = Literal["taming", "torchxrayvision"]


def _published(path: str | Path, checkpoint: Mapping[str, Any]) -> tuple[Source, dict[str, Tensor]]:
    """Whose layout, and the weights under taming's keys, without those of the loss."""
    state = checkpoint.get("state_dict", checkpoint)
    tensors = {key: value for key, value in state.items() if isinstance(value, Tensor)}
    parts = ("encoder.", "decoder.", "quantize.", "quant_conv.", "post_quant_conv.")
    prefixes: tuple[tuple[Source, str], ...] = (("taming", ""), ("torchxrayvision", XRV))
    for source, prefix in prefixes:
        if any(prefix + mark in tensors for mark in MARKS):
            found = {
                k[len(prefix) :]: v
                for k, v in tensors.items()
                if k.startswith(tuple(prefix + p for p in parts))
            }
            for mark in MARKS:
                _get(path, found, mark)
            return source, found
    first = ", ".join([str(key) for key in (tensors or state)][:3]) or "none"
    if OURS in state:
        raise UserError(
            f"{path} is a checkpoint of our own VQGAN; expected a published one. Resume it with "
            f"--ckpt_path"
        )
    raise UserError(
        f"{path} is a checkpoint of another module (found weights such as {first}); expected one "
        f"of VQGAN (mavilt fit "
        f"--config vqgan.yaml; {OURS}), a VQ-GAN of taming-transformers ({MARKS[0]}, {MARKS[2]}) "
        f"or torchxrayvision's "
        f"VQGAN ({XRV}{MARKS[0]})"
    )


def _get(path: str | Path, weights: Mapping[str, Tensor], key: str) -> Tensor:
    if key not in weights:
        advice = (
            "a net without a codebook (KL) or with a Gumbel one is not read"
            if key.startswith("quantize.")
            else "the file is incomplete, or of another layout"
        )
        raise UserError(f"{path} has {len(weights)} weights of a VQ-GAN and lacks {key}; {advice}")
    return weights[key]


def _numbers(weights: Iterable[str], prefix: str) -> int:
    """How many i there are in `prefix` + i + `.…`; at least 1, whose weights are then found
    missing.
    """
    return max(
        1, len({key[len(prefix) :].split(".")[0] for key in weights if key.startswith(prefix)})
    )


def _shape(
    path: str | Path, checkpoint: Mapping[str, Any], image_size: int | None, otherwise: int | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    source, weights = _published(path, checkpoint)
    stored = checkpoint.get("image_size") or (XRV_SIZE if source == "torchxrayvision" else None)
    size = image_size or stored or otherwise
    if size is None:
        raise UserError(
            f"{path} is a VQ-GAN of taming-transformers, which does not say its image size: give "
            f"image_size (mavilt "
            'tokenize: --image-size), or store it: python -c "import torch; '
            "torch.save({'state_dict': "
            f"torch.load('{path}', weights_only=True).get('state_dict'), 'image_size': "
            f"256}}, 'vqgan.pt')\""
        )
    first = _get(path, weights, "encoder.conv_in.weight")
    channels, inside = first.shape[:2]
    shown = _get(path, weights, "decoder.conv_out.weight").shape[0]
    if inside not in (1, 3) or shown != inside:
        raise UserError(
            f"{path} takes {inside} channels and gives {shown}; expected 1 and 1, or 3 and 3, of a "
            f"grey image"
        )
    levels = _numbers(weights, "encoder.down.")
    widths = [
        _get(path, weights, f"encoder.down.{i}.block.0.conv1.weight").shape[0]
        for i in range(levels)
    ]
    if ragged := [width for width in widths if width % channels]:
        raise UserError(
            f"{path} has a level of {ragged[0]} channels, no multiple of the first convolution's "
            f"{channels}"
        )
    factor = 2 ** (levels - 1)
    if size % factor:
        raise UserError(
            f"{path} halves its images {levels - 1} times and takes multiples of {factor}, not "
            f"{size}"
        )
    latent = _get(path, weights, "encoder.conv_out.weight").shape[0]
    codes, code_width = weights[MARKS[2]].shape
    entries = (
        _get(path, weights, "quant_conv.weight").shape[1],
        _get(path, weights, "post_quant_conv.weight").shape[0],
    )
    if entries != (latent, latent):
        raise UserError(
            f"{path}: the encoder ends in {latent} channels, quant_conv takes {entries[0]} and "
            f"post_quant_conv gives "
            f"{entries[1]}; expected one width"
        )
    autoencoder = {
        "image_size": size,
        "channels": channels,
        "multipliers": [width // channels for width in widths],
        "blocks": _numbers(weights, "encoder.down.0.block."),
        "attention": [
            size >> i for i in range(levels) if f"encoder.down.{i}.attn.0.q.weight" in weights
        ],
        "latent": latent,
        "groups": 32,
        "asymmetric": True,
        "middle_attention": "encoder.mid.attn_1.q.weight" in weights,
    }
    quantizer = {
        "codes": codes,
        "code_width": code_width,
        "cosine": False,
        "kmeans": False,
        "project": True,
    }
    return autoencoder, quantizer


def _names(shape: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """The blocks of a published encoder and decoder, in the order they are passed, all but the last
    convolution of the decoder; those of a `Sequential` of ours are the same in number and kind.
    """
    levels, blocks = len(shape["multipliers"]), shape["blocks"]
    sizes = [shape["image_size"] >> i for i in range(levels)]
    middle = ["mid.block_1", *(["mid.attn_1"] if shape["middle_attention"] else []), "mid.block_2"]

    def level(side: str, i: int, blocks: int) -> list[str]:
        kinds = ["block", "attn"] if sizes[i] in shape["attention"] else ["block"]
        return [f"{side}.{i}.{kind}.{j}" for j in range(blocks) for kind in kinds]

    down, up = ["conv_in"], ["conv_in", *middle]
    for i in range(levels):
        down += level("down", i, blocks) + ([f"down.{i}.downsample.conv"] if i < levels - 1 else [])
    for i in reversed(range(levels)):
        up += level("up", i, blocks + 1) + ([f"up.{i}.upsample.conv"] if i > 0 else [])
    down += [*middle, "norm_out", "conv_out"]
    up += ["norm_out"]
    return ["encoder." + name for name in down], ["decoder." + name for name in up]


def _weights(path: str | Path, checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    source, published = _published(path, checkpoint)
    levels = _numbers(published, "encoder.down.")
    # The names hold at any size; of this one every level has a resolution of its own.
    shape, _ = _shape(path, checkpoint, 2 ** (levels - 1), None)
    with torch.device("meta"):
        net = Autoencoder(**shape)
    made: dict[str, Tensor] = {}
    read: set[str] = set()

    def copy(ours: str, theirs: str, *more: str) -> None:
        """A layer, or several of theirs stacked into one of ours."""
        for kind in ("weight", "bias"):
            keys = [f"{name}.{kind}" for name in (theirs, *more)]
            made[f"{ours}.{kind}"] = torch.cat([_get(path, published, key) for key in keys]).float()
            read.update(keys)

    layers = (nn.Conv2d, nn.GroupNorm, ResidualBlock, AttentionBlock, Up)
    for side, names in zip(("encoder", "decoder"), _names(shape), strict=True):
        ours = [
            (i, block) for i, block in enumerate(getattr(net, side)) if isinstance(block, layers)
        ]
        for (i, block), name in zip(ours, names, strict=True):
            place = f"autoencoder.{side}.{i}"
            if isinstance(block, ResidualBlock):
                for part in ("norm1", "conv1", "norm2", "conv2"):
                    copy(f"{place}.{part}", f"{name}.{part}")
                if isinstance(block.shortcut, nn.Conv2d):
                    copy(f"{place}.shortcut", f"{name}.nin_shortcut")
            elif isinstance(block, AttentionBlock):
                copy(f"{place}.norm", f"{name}.norm")
                copy(f"{place}.qkv", f"{name}.q", f"{name}.k", f"{name}.v")
                copy(f"{place}.out", f"{name}.proj_out")
            else:
                copy(f"{place}.conv" if isinstance(block, Up) else place, name)
    copy("autoencoder.out", "decoder.conv_out")
    for ours_, theirs in (("project_in", "quant_conv"), ("project_out", "post_quant_conv")):
        copy(f"quantizer.{ours_}", theirs)
        made[f"quantizer.{ours_}.weight"] = made[f"quantizer.{ours_}.weight"].flatten(1)

    # Three channels to one.
    first = next(key for key in made if key.startswith("autoencoder.encoder."))
    made[first] = made[first].sum(1, keepdim=True)
    for kind in ("weight", "bias"):
        out = made[f"autoencoder.out.{kind}"]
        made[f"autoencoder.out.{kind}"] = (
            out[:1] if source == "torchxrayvision" else out.mean(0, keepdim=True)
        )

    codes_KD = published[MARKS[2]].float()
    made["quantizer.codebook"] = codes_KD.clone()
    made["quantizer.sums"] = codes_KD * USES
    made["quantizer.counts"] = torch.full(codes_KD.shape[:1], USES)
    made["quantizer.started"] = torch.tensor(True)
    made["quantizer._extra_state"] = torch.tensor(0)
    # Of moving-average codebooks the averages are not needed.
    read |= {MARKS[2], "quantize.embedding.cluster_size", "quantize.embedding.embed_avg"}
    if left := sorted(published.keys() - read):
        raise UserError(
            f"{path} has {len(left)} weights that a VQ-GAN of taming-transformers does not have, "
            f"such as {left[0]}; "
            "expected its blocks of residuals and attention, and a plain codebook"
        )
    return made
