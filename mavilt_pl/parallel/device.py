"""The device that a command computes on, and copies to it."""

from __future__ import annotations

import torch
from torch import Tensor

from mavilt_pl.errors import UserError


def resolve_device(name: str) -> str:
    """The device of that name; `auto` is a GPU if there is one, else the CPU.

    Raises:
        UserError: torch cannot compute on the named device here.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=name).item()  # a meta device holds no values and fails here
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = next(iter(str(error).splitlines()), "")[:120]
        raise UserError(
            f"--device: found {name}, on which torch cannot compute here ({reason}); set it to "
            "cpu, or leave it out"
        ) from error
    return name


def copy_to(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy on a device, without waiting for it: from page-locked memory if it is a GPU."""
    if device.type == "cuda" and not tensor.is_pinned():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
