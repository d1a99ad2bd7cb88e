"""Random state of every rank in the checkpoint, so that a resumed run continues the sequence.

If the number of ranks has changed, ranks that existed before continue with their own state. A new
rank starts from a seed made of the first rank's saved state and its own number. So the same command
on the same checkpoint and the same number of ranks draws the same, whatever the number was before.
"""

from __future__ import annotations

import hashlib
import random
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from lightning import Callback, LightningModule, Trainer

from mavilt_pl.parallel.distributed import rank_and_size


def get_rng_state() -> dict[str, Any]:
    """State of torch (CPU and this GPU), numpy and Python, as tensors and numbers only."""
    # Checkpoints are read without unpickling, so the states become tensors and plain numbers.
    _, key, position, has_gauss, gauss = np.random.get_state()
    version, words, python_gauss = random.getstate()
    state: dict[str, Any] = {
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
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_rng_state(state: dict[str, Any]) -> None:
    """Restore what `get_rng_state` returned."""
    torch.set_rng_state(state["torch"].cpu())
    saved, python = state["numpy"], state["python"]
    key = saved["key"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", key, saved["position"], saved["has_gauss"], saved["gauss"]))
    random.setstate((python["version"], tuple(python["words"].tolist()), python["gauss"]))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())


def seed_new_rank(first: dict[str, Any], rank: int) -> None:
    """Seed a rank that did not exist when the checkpoint was saved."""
    # Hashed, since neighbouring seeds could give related sequences.
    material = first["torch"].numpy().tobytes() + rank.to_bytes(4, "little")
    seed = int.from_bytes(hashlib.sha256(material).digest()[:4], "little")
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


class RNGStates(Callback):
    """Gathers the random state of all ranks at every save; gives each its own back on resume."""

    def __init__(self) -> None:
        self.resumed: list[dict[str, Any]] | None = None

    def state_dict(self) -> dict[str, Any]:
        """The states of all ranks, in their order."""
        own = get_rng_state()
        size = rank_and_size()[1]
        # No process group: a gather would fail.
        if size == 1:
            return {"ranks": [own]}
        ranks: list[Any] = [None] * size
        # A collective: Lightning calls `state_dict` of callbacks on all ranks.
        dist.all_gather_object(ranks, own)
        return {"ranks": ranks}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the states until training starts."""
        self.resumed = state_dict["ranks"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore this rank's state, or seed a new rank."""
        # The last moment before the first batch: building the model and the sanity check draw
        # numbers too.
        if self.resumed is None:
            return
        if trainer.global_rank < len(self.resumed):
            set_rng_state(self.resumed[trainer.global_rank])
        else:
            seed_new_rank(self.resumed[0], trainer.global_rank)
        self.resumed = None
