"""Adapters and new rows apart from the language model that they were trained on.

The folder is small, holds nothing of the base model, and gives the training's results to the bit:
merging adapters into weights rounds them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from mavilt_pl.checkpoint import load_tensors
from mavilt_pl.errors import UserError
from mavilt_pl.language.backbone import UnsupportedAttentionError, load_backbone
from mavilt_pl.language.model import VisualLanguageModel
from mavilt_pl.language.options import ModelOptions, TuningOptions, as_options

ADAPTERS = "adapters.safetensors"
TRAINED = (".lora_", "new_rows.", "grid_positions")  # in the names of what is not the base model's


def save_adapters(model: VisualLanguageModel, base: str, out: Path) -> None:
    """Write what was trained on a base model.

    Args:
        model: with adapters or new rows.
        base: folder or hub name of the base model, to check that it is what was trained on.
        out: the folder.

    Raises:
        UserError: the model was trained in full, or on other weights than the base model's.
    """
    if model.new_rows is None:
        raise UserError(
            "--adapters-only: the model was trained in full and has no adapters; export it whole"
        )
    # Compared weight by weight: a path says nothing about what was trained on.
    pretrained, _ = load_base(base)
    own = model.backbone.state_dict()
    for name, value in pretrained.state_dict().items():
        parent, _, leaf = name.rpartition(".")
        # peft wraps each layer that it adapts.
        mine = own.get(name, own.get(f"{parent}.base_layer.{leaf}"))
        if mine is None or not torch.equal(mine.cpu(), value.to(mine.dtype)):
            raise UserError(
                f"--adapters-only: the adapters were trained on other weights than those of {base} "
                f"({name} differs), such as a Stage 1 in full; export the model whole"
            )
    weights = {}
    for name, value in model.state_dict().items():
        if _is_trained(name):
            weights[name] = value.cpu().contiguous()
    save_file(weights, out / ADAPTERS)


def load_adapters(
    folder: Path, settings: Mapping[str, Any], base: str | None
) -> VisualLanguageModel:
    """A base model with the adapters of a folder, in evaluation mode.

    Args:
        folder: that `save_adapters` wrote to.
        settings: of its `visual.json`.
        base: folder or hub name of the base model (default: as in training).

    Raises:
        UserError: the base model is not there, or is another one.
    """
    name = base or settings["base"]
    backbone, tokenizer = load_base(name)
    vocabulary = settings["vocabulary"]
    model = VisualLanguageModel(
        backbone,
        tokenizer,
        torch.zeros(vocabulary["codebook_size"], 1),
        vocabulary["codes_per_image"],
        as_options(ModelOptions, settings["model"], "model"),
        as_options(TuningOptions, settings["tuning"], "tuning"),
    )
    # Compared by name and shape first: torch would load what fits and leave the rest random.
    weights = load_tensors(folder / ADAPTERS)
    expected = {key: value for key, value in model.state_dict().items() if _is_trained(key)}
    same = {key: value.shape for key, value in weights.items()} == {
        key: value.shape for key, value in expected.items()
    }
    if not same or model.vocabulary.num_text_rows != vocabulary["num_text_rows"]:
        raise UserError(
            f"{name}: the adapters of {folder} do not fit it; name the base model that they were "
            f"trained on ({settings['base']}) with --backbone"
        )
    # Not strict: the base model's own weights are in place already.
    model.load_state_dict(weights, strict=False)
    return model.eval()


def _is_trained(name: str) -> bool:
    return any(part in name for part in TRAINED)


def load_base(name: str) -> tuple[Any, Any]:
    """Language model and tokenizer of a folder on this machine, or of the hub's cache."""
    # "sdpa" exists on every device, and some architectures have only the plain kernel.
    try:
        return load_backbone(name, "sdpa", local_files_only=True)
    except UnsupportedAttentionError:
        return load_backbone(name, "eager", local_files_only=True)
