"""`--trainer.strategy fsdp2`: each rank holds a part of every weight, gradient and optimizer state
(PyTorch's FSDP2).

Lightning's `ModelParallelStrategy`, but: all ranks share the data and none the layers; a checkpoint
is one sealed file of whole weights and states, as any other strategy writes and reads it; and it is
restored where Lightning restores others, so that a module sees it first (`on_load_checkpoint`). The
module shards itself in `configure_model`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import FullyShardedDataParallel, OptimStateKeyType

from mavilt_pl.checkpoint import verify
from mavilt_pl.errors import UserError


class FSDP2Strategy(ModelParallelStrategy):
    """Over all ranks, with whole checkpoints."""

    def __init__(self) -> None:
        super().__init__(save_distributed_checkpoint=False)

    def setup_environment(self) -> None:
        module = self.lightning_module
        if module is not None and not is_overridden("configure_model", module):
            raise UserError(
                f"trainer.strategy: fsdp2 is for the language stages, found "
                f"{type(module).__name__}: set it to "
                "ddp_find_unused_parameters_true"
            )
        if self.precision_plugin.precision == "16-mixed":
            raise UserError(
                "trainer.precision: under fsdp2 each rank would scale its loss by itself, found "
                "16-mixed; set it to bf16-mixed"
            )
        self._data_parallel_size, self._tensor_parallel_size = (
            self.num_nodes * self.num_processes,
            1,
        )
        super().setup_environment()

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        return False

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def load_checkpoint(
        self, checkpoint_path: Any, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Checked, and mapped instead of read: a rank takes its parts, and the host holds the file
        once for all.
        """
        verify(Path(checkpoint_path))
        return torch.load(checkpoint_path, map_location="cpu", mmap=True, weights_only=weights_only)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        options = StateDictOptions(full_state_dict=True, strict=strict)
        weights = {**checkpoint["state_dict"]}  # it is written to
        set_model_state_dict(self.model, weights, options=options)  # type: ignore[arg-type]

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        names = OptimStateKeyType.PARAM_NAME
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            named = FullyShardedDataParallel.rekey_optim_state_dict(state, names, self.model)  # type: ignore[arg-type]
            set_optimizer_state_dict(
                self.model, optimizer, named, options=StateDictOptions(full_state_dict=True)
            )  # type: ignore[arg-type]


StrategyRegistry.register(
    "fsdp2", FSDP2Strategy, description="Weights, gradients and optimizer states in shards"
)
