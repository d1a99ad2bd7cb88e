"""Checkpoints of the language stages: check one, or prepare that of an earlier stage."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mavilt_pl.checkpoint import check_compatible, check_format_version, read_weights
from mavilt_pl.errors import UserError
from mavilt_pl.language.adapters import split_full_state_dict
from mavilt_pl.language.vocabulary import VisualVocabulary

MODEL_PREFIX = "model."  # of the model's weights in a checkpoint

# What a checkpoint holds in addition to the weights; groups of settings may have their defaults.
CONTENTS = {"state_dict": Mapping, "visual_vocabulary": Mapping, "visual_tokenizer": str}
SETTINGS = {
    "_class_path": str,
    "backbone": str,
    "model": Mapping | None,
    "tuning": Mapping | None,
    "sampling": Mapping | None,
}


def stage_settings(path: str | Path, checkpoint: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings of a checkpoint of a stage.

    Raises:
        UserError: it is of another module, or something is missing or of another type.
    """
    # Any: a file may hold anything under this name.
    settings: Any = checkpoint.get("hyper_parameters")
    is_stage = isinstance(settings, Mapping) and "visual_vocabulary" in checkpoint
    if not is_stage or "backbone" not in settings:
        raise UserError(
            f"{path} is a checkpoint of another module; expected one of Stage 1 or Stage 2"
        )
    # Checked together, so that the message names the first that is wrong.
    for kinds, values in ((CONTENTS, checkpoint), (SETTINGS, settings)):
        for key, kind in kinds.items():
            if key not in values or not isinstance(values[key], kind):
                raise UserError(
                    f"{path}: found {str(values.get(key))[:80]!r} as {key}; expected what a "
                    "training writes: copy the checkpoint again"
                )
    return settings


def trained_vocabulary(path: str | Path, checkpoint: Mapping[str, Any]) -> VisualVocabulary:
    """The ids that a checkpoint was trained with.

    Raises:
        UserError: they are not those of a vocabulary.
    """
    found = checkpoint["visual_vocabulary"]
    try:
        return VisualVocabulary(**found)
    except TypeError:
        raise UserError(
            f"{path}: found {str(found)[:80]!r} as visual_vocabulary; expected what a training "
            "writes: copy the checkpoint again"
        ) from None


def trained_method(checkpoint: Mapping[str, Any]) -> str:
    """The `tuning.method` that a checkpoint was trained with."""
    tuning = checkpoint.get("hyper_parameters", {}).get("tuning", {})
    return tuning.get("method", "full") if isinstance(tuning, Mapping) else "full"


def check_stage_checkpoint(checkpoint: dict[str, Any], module: Any) -> None:
    """Check that a checkpoint fits a language module.

    Raises:
        UserError: it is of another module, another visual tokenizer, or another tuning method.
    """
    tokenizer = checkpoint.get("visual_tokenizer")
    if tokenizer is None:
        raise UserError(
            "the checkpoint is of another module: it has no visual tokenizer. Expected one of "
            "Stage 1 or Stage 2"
        )
    check_format_version(checkpoint, "the checkpoint")
    if tokenizer != module.visual_tokenizer:
        raise UserError(
            f"the checkpoint was trained on the codes of tokenizer {tokenizer[:12]} and the token "
            f"cache comes from {module.visual_tokenizer[:12]}: its codes mean different things. "
            "Train again, or tokenize with the first"
        )
    # Before shapes are compared: this message says what to do, a list of missing names does not.
    trained, method = trained_method(checkpoint), module.tuning.method
    if trained != method:
        raise UserError(
            f"the checkpoint was trained with tuning.method: {trained}, and here it is {method}: "
            f"its weights differ. Set tuning.method to {trained}"
        )
    check_compatible(checkpoint, module)


def read_earlier_stage(path: str, module: Any) -> dict[str, Any]:
    """The checkpoint of an earlier stage, with weights under the names of `module`.

    A checkpoint trained in full is split for a module that trains adapters or new rows.

    Raises:
        UserError: the file is missing, or L_reg cannot refer to its weights.
    """
    if not Path(path).exists():
        raise UserError(
            f"init_from: {path} does not exist; expected the checkpoint of an earlier stage"
        )
    checkpoint = read_weights(path)
    check_format_version(checkpoint, f"init_from: {path}")
    method = module.tuning.method
    if method == "full" or trained_method(checkpoint) != "full" or "state_dict" not in checkpoint:
        return checkpoint
    options = module.regularization
    # θ₀ would be the backbone, but Stage 1's change of the weights is now part of the frozen base.
    if method == "lora" and options.lambda_reg and options.reference == "backbone":
        raise UserError(
            f"init_from: {path} was trained in full, and adapters know only what they add to it: "
            "set regularization.reference to stage, or regularization.lambda_reg to 0"
        )
    # `split_full_state_dict` works on the model; in a checkpoint its weights have a prefix.
    weights = {}
    for key, value in checkpoint["state_dict"].items():
        weights[key.removeprefix(MODEL_PREFIX)] = value
    split = split_full_state_dict(module.model, weights)
    state_dict = {MODEL_PREFIX + key: value for key, value in split.items()}
    # So that the check of tuning methods compares what the weights are now.
    settings = {**checkpoint.get("hyper_parameters", {}), "tuning": {"method": method}}
    return {**checkpoint, "state_dict": state_dict, "hyper_parameters": settings}
