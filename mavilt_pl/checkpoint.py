"""Files of weights: read as tensors only, and refused in one clear message where they are another
module's, or of other sizes.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mavilt_pl.data.study import DataError


def read_weights(path: str | Path, convert: str = "") -> dict[str, Any]:
    """What `torch.save` or safetensors wrote into a local file, as tensors and plain values only:
    no object is unpickled.

    `convert` is the advice for a file that holds other objects, such as a whole pickled model.
    Raises `DataError` where there is no such file, where it is damaged, or where it holds other
    objects.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(
            f"the weights {path} do not exist; name a local file (nothing is downloaded)"
        )
    if path.is_dir():
        raise DataError(
            f"{path} is a folder; expected a file of weights, such as one of its checkpoints"
        )
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # torch's own text proposes to open the file without this care.
        if foreign := re.search(r"GLOBAL (\S+)", str(error)):
            advice = convert or "save its state_dict() alone, where you trust the file"
            raise DataError(
                f"{path} holds pickled objects ({foreign[1]}), which are not opened: a pickle can "
                f"run any program; "
                f"expected tensors only. {advice}"
            ) from None
        reason = next(iter(str(error).splitlines()), "")[:120]
        raise DataError(
            f"{path} is not a readable checkpoint ({type(error).__name__}: {reason}), "
            f"{path.stat().st_size:,} bytes; "
            "if it was downloaded or copied, do it again"
        ) from None
    if not isinstance(found, Mapping):
        raise DataError(
            f"{path} holds a {type(found).__name__}; expected a state dict or a Lightning "
            f"checkpoint"
        )
    return dict(found)


Shapes = dict[str, tuple[int, ...]]


def _shapes(module: nn.Module, weights: Mapping[str, Any]) -> tuple[Shapes, Shapes, list[str]]:
    """Shapes of a module's weights and of a file's by name, and the names, in order, in which they
    differ.
    """
    here: Shapes = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    there: Shapes = {key: tuple(value.shape) for key, value in weights.items()}
    return (
        here,
        there,
        sorted(key for key in here.keys() | there.keys() if here.get(key) != there.get(key)),
    )


def load_exactly(module: nn.Module, weights: Mapping[str, Any], path: str | Path) -> None:
    """`load_state_dict`; raises `DataError` with the first difference where keys or shapes are not
    those of `module`.
    """
    here, there, differs = _shapes(module, weights)
    if differs:
        key = differs[0]
        raise DataError(
            f"{path} does not fit {type(module).__name__}: {key} is {there.get(key, 'missing')} in "
            f"the file and "
            f"{here.get(key, 'missing')} here ({len(differs)} of {len(here)} weights differ); the "
            f"file is incomplete or "
            "of another network"
        )
    module.load_state_dict(weights)


def refuse_others(checkpoint: dict[str, Any], module: nn.Module) -> None:
    """Raise `DataError` where the weights of a Lightning checkpoint are not those of `module`.

    Settings that its parts name in `settings_in_words` are compared first, and told in words: some
    of them, such as the image size, leave no trace in the weights' shapes.
    """
    name = type(module).__name__
    here, there, differs = _shapes(module, checkpoint["state_dict"])
    if not here.keys() & there.keys():
        found = next(iter(there), "none")
        raise DataError(
            f"the checkpoint is of another module (weights such as {found}); expected one of {name}"
        )
    if told := _in_words(checkpoint, module):
        raise DataError(
            f"the checkpoint does not fit this {name}: {'; '.join(told)}; use the settings it was "
            f"trained with"
        )
    if differs:
        key = differs[0]
        raise DataError(
            f"the checkpoint does not fit this {name}: {key} is {there.get(key, 'missing')} there "
            f"and "
            f"{here.get(key, 'missing')} here ({len(differs)} weights differ); use the settings it "
            f"was trained with"
        )


def _in_words(checkpoint: dict[str, Any], module: nn.Module) -> list[str]:
    """Each setting that differs: "codebook of 1,024 codes in the checkpoint, codebook of 512 codes
    in the config …".
    """
    told = []
    for path, part in module.named_modules():
        words: Mapping[str, str] = getattr(part, "settings_in_words", {})
        key = path.rpartition(".")[2]
        there = checkpoint.get(key) or checkpoint.get("hyper_parameters", {}).get(key) or {}
        defaults = {
            k: p.default for k, p in inspect.signature(type(part).__init__).parameters.items()
        }
        for setting, phrase in words.items():
            values = [_plain(there.get(setting, defaults[setting])), _plain(part.shape[setting])]  # type: ignore[index]
            if values[0] != values[1]:
                was, now = (
                    phrase if value is not None else phrase.replace(":,", "") for value in values
                )
                told.append(
                    f"{was.format(values[0])} in the checkpoint, {now.format(values[1])} in the "
                    f"config "
                    f"(model.init_args.{key}.{setting})"
                )
    return told


def _plain(value: Any) -> Any:
    return [*value] if isinstance(value, (list, tuple)) else value
