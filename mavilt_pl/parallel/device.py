"""Choose the device that a command computes on."""

from __future__ import annotations

import torch

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
