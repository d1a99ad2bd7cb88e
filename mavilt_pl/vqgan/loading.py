"""Load a tokenizer from a local file: a checkpoint of our `VQGAN`, or a published VQ-GAN.

`taming.py` lists the published files. A checkpoint of ours has keys `tokenizer.autoencoder.…`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from mavilt_pl.checkpoint import (
    FORMAT_KEY,
    FORMAT_VERSION,
    check_format_version,
    load_strict,
    read_weights,
    sha256,
)
from mavilt_pl.errors import UserError
from mavilt_pl.vqgan.taming import CONVERT, OUR_MARK, PublishedVQGAN
from mavilt_pl.vqgan.taming_weights import TamingConversion
from mavilt_pl.vqgan.tokenizer import Tokenizer

SETTINGS_KEY = "mavilt"  # of a safetensors file's metadata
ENDING = 3  # parts of a checkpoint's path within its run: vqgan/checkpoints/last.ckpt


def load_tokenizer(
    path: str | Path, image_size: int | None = None, default_image_size: int | None = None
) -> Tokenizer:
    """A frozen tokenizer in evaluation mode.

    Args:
        path: a local file, read as tensors only.
        image_size: side of the images of a published network, whatever its file says. A checkpoint
            of ours has its own.
        default_image_size: side of the images if neither `image_size` nor the file says.

    Raises:
        UserError: the file is no tokenizer, is damaged or incomplete, or the image size is unknown.
    """
    checkpoint = read_weights(path, CONVERT)
    if (settings := _safetensors_settings(Path(path))) is not None:
        checkpoint = {**settings, "state_dict": checkpoint}
    state = checkpoint.get("state_dict", checkpoint)
    # By a key, not by the file's name: users rename checkpoints.
    if OUR_MARK in state:
        tokenizer = _from_our_checkpoint(path, checkpoint, image_size)
    else:
        published = PublishedVQGAN.from_checkpoint(path, checkpoint)
        tokenizer = Tokenizer(*published.shape(image_size, default_image_size))
        load_strict(tokenizer, TamingConversion(published).state_dict(), path)
    return tokenizer.eval().requires_grad_(False)


def save_tokenizer(tokenizer: Tokenizer, path: Path) -> None:
    """Write a tokenizer as safetensors that `load_tokenizer` reads, with its settings inside."""
    # As a training writes them, for the same checks.
    clinical = tokenizer.clinical
    settings = {
        FORMAT_KEY: FORMAT_VERSION,
        "hyper_parameters": {
            "autoencoder": tokenizer.autoencoder.config,
            "quantizer": tokenizer.quantizer.config,
        },
        "clinical": None if clinical is None else clinical.config,
    }
    # Under the names of a training's checkpoint, so that one function reads both.
    weights = {}
    for key, value in tokenizer.state_dict().items():
        weights[f"tokenizer.{key}"] = value.cpu().contiguous()
    save_file(weights, path, {SETTINGS_KEY: json.dumps(settings)})


def _safetensors_settings(path: Path) -> dict[str, Any] | None:
    """What `save_tokenizer` wrote about a tokenizer; None for any other file."""
    if path.suffix != ".safetensors":
        return None
    # The metadata alone; the tensors have been read.
    with safe_open(path, "pt") as file:
        text = (file.metadata() or {}).get(SETTINGS_KEY)
    return None if text is None else json.loads(text)


def tokenizer_of(stage: Any) -> Path:
    """The checkpoint of the tokenizer that encoded a language stage's token cache.

    Raises:
        UserError: it is not where it was.
    """
    # As `mavilt tokenize` has recorded it in the cache.
    recorded = stage.visual_tokenizer_path
    return find_tokenizer(recorded, stage.visual_tokenizer, Path(stage.hparams["tokens"]))


def find_tokenizer(recorded: str | None, checksum: str, near: Path) -> Path:
    """The checkpoint of the tokenizer that a training used, known by its bytes.

    Runs may have been moved together, so the last parts of its path are looked for in the folders
    above the training too.

    Args:
        recorded: its path at that time.
        checksum: its SHA-256.
        near: the checkpoint or the folder of the training.

    Raises:
        UserError: it is at none of these places, or was trained further.
    """
    # Where it was comes first; the checksum decides.
    candidates = []
    if recorded is not None:
        candidates.append(Path(recorded))
        ending = Path(*Path(recorded).parts[-ENDING:])
        # From the nearest folder outwards.
        for folder in near.resolve().parents:
            candidates.append(folder / ending)
    for candidate in candidates:
        if candidate.is_file() and sha256(candidate) == checksum:
            return candidate
    where = f"{recorded} does not hold it any more" if recorded else "its path is not recorded"
    raise UserError(
        f"{near}: the tokenizer of this training (sha256 {checksum[:12]}) is not found, {where}; "
        "name its checkpoint (--tokenizer, or `tokenizer` of a callback)"
    )


def _from_our_checkpoint(
    path: str | Path, checkpoint: Mapping[str, Any], image_size: int | None
) -> Tokenizer:
    if "hyper_parameters" not in checkpoint:
        raise UserError(
            f"{path} has weights of a VQGAN and not its settings (hyper_parameters); give "
            "Lightning's checkpoint"
        )
    check_format_version(checkpoint, f"the checkpoint {path}")
    # A checkpoint written by `VQGAN` also has the arguments in use, which matter if it was started
    # from a published network: its settings then say nothing of the shape.
    hyper_parameters = checkpoint["hyper_parameters"]
    autoencoder = checkpoint.get("autoencoder") or hyper_parameters["autoencoder"] or {}
    quantizer = checkpoint.get("quantizer") or hyper_parameters["quantizer"] or {}
    tokenizer = Tokenizer(autoencoder, quantizer, checkpoint.get("clinical"))
    # A convolutional network would take any size, and give codes that mean nothing to the stages.
    trained_size = tokenizer.autoencoder.image_size
    if image_size not in (None, trained_size):
        raise UserError(
            f"{path} was trained on images of {trained_size}² and is asked for {image_size}²; "
            "leave image_size out"
        )
    load_strict(tokenizer, _below(checkpoint["state_dict"], "tokenizer."), path)
    return tokenizer


def _below(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The weights whose names start with a prefix, without it."""
    return {
        key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)
    }


def published_shape(
    path: str | Path, image_size: int | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments of `Autoencoder` and of `Quantizer` that build a published VQ-GAN.

    How the codes are trained (decay, dead_code_threshold, commitment) is not part of a file: add
    what differs from `Quantizer`'s defaults.

    Args:
        path: a local file, read as tensors only.
        image_size: side of the images; required if the file does not say.

    Raises:
        UserError: the file is no published VQ-GAN, or the image size is unknown.
    """
    return PublishedVQGAN.read(path).shape(image_size)


def published_weights(path: str | Path) -> dict[str, Tensor]:
    """The state dict of the `Tokenizer` of `published_shape`, for any image size.

    The moving averages of the codes start with `taming_weights.INITIAL_COUNT` uses of each.
    """
    return TamingConversion(PublishedVQGAN.read(path)).state_dict()


def merge_published_shape(
    path: str | Path, autoencoder: Mapping[str, Any], quantizer: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments of `Autoencoder` and `Quantizer` to continue training a published VQ-GAN.

    The shape is the file's; how the codes are trained is the config's.

    Raises:
        UserError: the config contradicts the file.
    """
    shape, codes = published_shape(path, autoencoder.get("image_size"))
    _check_agreement(path, "autoencoder", autoencoder, shape)
    _check_agreement(path, "quantizer", quantizer, codes)
    return shape, {**quantizer, **codes}


def _check_agreement(
    path: str | Path, part: str, config: Mapping[str, Any], published: Mapping[str, Any]
) -> None:
    for key, value in config.items():
        # Keys that a file does not fix, such as `decay`, always agree.
        expected = published.get(key, value)
        # YAML gives lists, Python code may give tuples.
        given = list(value) if isinstance(value, (list, tuple)) else value
        if given != expected:
            raise UserError(
                f"model.init_args.{part}.{key} is {value} and {expected} in {path}, which "
                "model.init_args.init_from names; leave it out of the config, or start from "
                "another file"
            )


def load_published_weights(tokenizer: Tokenizer, path: str | Path) -> None:
    """Load a published VQ-GAN into a tokenizer of its shape.

    The adapter of a clinical map starts at 0, so that the tokenizer starts as the published one.
    """
    # In two parts, since the adapter and the clinical encoder are in no published file.
    weights = published_weights(path)
    load_strict(tokenizer.autoencoder, _below(weights, "autoencoder."), path)
    load_strict(tokenizer.quantizer, _below(weights, "quantizer."), path)
    if tokenizer.clinical is not None:
        for parameter in tokenizer.adapter.parameters():
            nn.init.zeros_(parameter)
