"""Checkpoints are refused in one clear message where they are another module's, or of other sizes."""

from __future__ import annotations

from typing import Any

from torch import nn

from mavilt_pl.data.study import DataError


def refuse_others(checkpoint: dict[str, Any], module: nn.Module) -> None:
    """Raise `DataError` where the weights of a Lightning checkpoint are not those of `module`, shape by shape."""
    name = type(module).__name__
    here = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    there = {key: tuple(value.shape) for key, value in checkpoint["state_dict"].items()}
    if not here.keys() & there.keys():
        found = next(iter(there), "none")
        raise DataError(f"the checkpoint is of another module (weights such as {found}); expected one of {name}")
    differs = sorted(key for key in here.keys() | there.keys() if here.get(key) != there.get(key))
    if differs:
        key = differs[0]
        raise DataError(
            f"the checkpoint does not fit this {name}: {key} is {there.get(key, 'missing')} there and "
            f"{here.get(key, 'missing')} here ({len(differs)} weights differ); use the settings it was trained with"
        )
