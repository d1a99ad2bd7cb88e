"""The random state of every rank, kept in the checkpoint, so that a resumed run draws what the
uninterrupted one would have.

The rule where the number of ranks has changed: ranks that there were go on with their own state; a
rank that there was not starts from a seed made of the first rank's saved state and its own number.
So the same command on the same checkpoint and the same number of ranks draws the same, whatever the
number was before.
"""

from __future__ import annotations

import hashlib
import random
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from lightning import Callback, LightningModule, Trainer

from mavilt_pl.ranks import rank_and_size


def state() -> dict[str, Any]:
    """Of this process: torch on the CPU and on its GPU, numpy's global generator and Python's.
    Tensors and numbers only.
    """
    _, key, position, has_gauss, gauss = np.random.get_state()
    version, words, python_gauss = random.getstate()
    found: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "numpy": {
            "key": torch.from_numpy(np.asarray(key, dtype=np.int64)),
            "position": int(position),
            "has_gauss": int(has_gauss),
            "gauss": float(gauss),
        },
        "python": {
            "version": version,
            "words": torch.tensor(words, dtype=torch.int64),
            "gauss": python_gauss,
        },
    }
    if torch.cuda.is_available():
        found["cuda"] = torch.cuda.get_rng_state()
    return found


def restore(found: dict[str, Any]) -> None:
    torch.set_rng_state(found["torch"].cpu())
    n, p = found["numpy"], found["python"]
    np.random.set_state(
        ("MT19937", n["key"].numpy().astype(np.uint32), n["position"], n["has_gauss"], n["gauss"])
    )
    random.setstate((p["version"], tuple(p["words"].tolist()), p["gauss"]))
    if "cuda" in found and torch.cuda.is_available():
        torch.cuda.set_rng_state(found["cuda"].cpu())


def begin(first: dict[str, Any], rank: int) -> None:
    """The state of a rank that there was not when the checkpoint was saved."""
    mark = hashlib.sha256(first["torch"].numpy().tobytes() + rank.to_bytes(4, "little")).digest()
    seed = int.from_bytes(mark[:4], "little")
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


class RandomStates(Callback):
    """Gathers the random state of all ranks at every save, and gives each its own back."""

    def __init__(self) -> None:
        self.resumed: list[dict[str, Any]] | None = None

    def state_dict(self) -> dict[str, Any]:
        own = state()
        _, size = rank_and_size()
        if size == 1:
            return {"ranks": [own]}
        ranks: list[Any] = [None] * size
        dist.all_gather_object(ranks, own)
        return {"ranks": ranks}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.resumed = state_dict["ranks"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.resumed is None:
            return
        if trainer.global_rank < len(self.resumed):
            restore(self.resumed[trainer.global_rank])
        else:
            begin(self.resumed[0], trainer.global_rank)
        self.resumed = None
