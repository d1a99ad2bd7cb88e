"""`--trainer.strategy fsdp2`: PyTorch's FSDP2 with ordinary checkpoints.

Each rank holds a part of every weight, gradient and optimizer state. The differences to Lightning's
`ModelParallelStrategy`:

- all ranks split the data and none the layers;
- a checkpoint is one sealed file of whole weights and states, as every other strategy writes and
  reads it;
- a checkpoint is restored when other strategies restore theirs, so that the module sees it first
  (`on_load_checkpoint`).

The module shards itself in `configure_model`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import FullyShardedDataParallel, OptimStateKeyType

from mavilt_pl.checkpoint import load_tensors, verify
from mavilt_pl.errors import UserError


class FSDP2Strategy(ModelParallelStrategy):
    """FSDP2 over all ranks, with checkpoints of whole weights."""

    model: Any  # Lightning's own type allows None, which it is not once a checkpoint is loaded

    def __init__(self) -> None:
        super().__init__(save_distributed_checkpoint=False)

    def setup_environment(self) -> None:
        """Check the module and the precision; use all ranks for data parallelism."""
        module = self.lightning_module
        if module is not None and not is_overridden("configure_model", module):
            raise UserError(
                "trainer.strategy: fsdp2 is for the language stages, found "
                f"{type(module).__name__}: set it to ddp_find_unused_parameters_true"
            )
        # A rank that skips a step because its gradients overflowed would part from the others.
        if self.precision_plugin.precision == "16-mixed":
            raise UserError(
                "trainer.precision: under fsdp2 each rank would scale its loss by itself, found "
                "16-mixed; set it to bf16-mixed"
            )
        # Lightning 2.6 takes these from the constructor only, before the number of ranks is known.
        self._data_parallel_size = self.num_nodes * self.num_processes
        self._tensor_parallel_size = 1
        super().setup_environment()

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        """Restore before `setup`, as strategies without shards do."""
        return False

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Let Lightning hand the optimizer states to `load_optimizer_state_dict`."""
        return True

    def load_checkpoint(
        self, checkpoint_path: Any, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Verify a checkpoint and map it into memory.

        It is not read whole: each rank takes its parts, and the host holds the file once for all.
        """
        # torch.load with mmap reads the weights later and would not notice damage.
        verify(Path(checkpoint_path))
        return load_tensors(Path(checkpoint_path), mmap=True)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Give each rank its part of the whole weights."""
        options = StateDictOptions(full_state_dict=True, strict=strict)
        weights = {**checkpoint["state_dict"]}  # a copy: torch writes into it
        set_model_state_dict(self.model, weights, options=options)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Give each rank its part of the whole optimizer states."""
        options = StateDictOptions(full_state_dict=True)
        names = OptimStateKeyType.PARAM_NAME
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            # Checkpoints number the parameters; FSDP2 wants their names.
            named = FullyShardedDataParallel.rekey_optim_state_dict(state, names, self.model)
            set_optimizer_state_dict(self.model, optimizer, named, options=options)


StrategyRegistry.register(
    "fsdp2", FSDP2Strategy, description="Weights, gradients and optimizer states in shards"
)
