"""Shard a language module with FSDP2: a layer's weights are gathered when it runs, then released.

Every gather is a collective, so all ranks must make the same passes. In training, a rank with fewer
passes makes up for it. Evaluation is not even, since texts end where they end: a module in
evaluation mode holds its weights whole until the next training batch.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

from mavilt_pl.errors import UserError
from mavilt_pl.language.options import TuningOptions
from mavilt_pl.language.sequences import pack
from mavilt_pl.language.trees import Branch, Tree
from mavilt_pl.trainer.fsdp_strategy import FSDP2Strategy


def check_strategy(tuning: TuningOptions, strategy: Any, fitting: bool = True) -> None:
    """Refuse a strategy that would fail, or train something else than it says.

    Raises:
        UserError: names the key to change.
    """
    if isinstance(strategy, DeepSpeedStrategy):
        raise UserError(
            "trainer.strategy: found DeepSpeed, which steps from gradients of its own, so the "
            "gradient of regularization.lambda_reg would be lost silently, and whose checkpoints "
            "are folders without a checksum, which --ckpt_path last does not find; set "
            "trainer.strategy to fsdp2, which shards the same"
        )
    # Its flat parameters hide which weights are pretrained rows and which are new ones.
    if isinstance(strategy, FSDPStrategy):
        raise UserError(
            "trainer.strategy: found FSDP's first version, which hides the weights from "
            "regularization.lambda_reg; set it to fsdp2"
        )
    if not isinstance(strategy, ModelParallelStrategy):
        return
    # The parent class of ours, with Lightning's defaults.
    if not isinstance(strategy, FSDP2Strategy):
        raise UserError(
            "trainer.strategy: found ModelParallelStrategy, which shards by machines and saves "
            "folders; set it to fsdp2"
        )
    if not fitting:
        raise UserError(
            "trainer.strategy: fsdp2 is for `mavilt fit`; its checkpoints are whole: drop the key, "
            "or set it to ddp"
        )
    if tuning.method != "full":
        raise UserError(
            "trainer.strategy: fsdp2 shards weights that are all trained; found tuning.method "
            f"{tuning.method}: set it to full, or trainer.strategy to ddp"
        )
    if tuning.optimizer != "adamw":
        raise UserError(
            "trainer.strategy: under fsdp2 a rank has parts of matrices, and "
            f"{tuning.optimizer} needs whole ones: set tuning.optimizer to adamw, or "
            "trainer.strategy to ddp"
        )


class FSDPMixin:
    """Shards a language module if the strategy is `FSDP2Strategy`."""

    model: Any
    regularizer: Any
    tuning: TuningOptions
    training: bool
    device: Any
    device_mesh: Any
    _trainer: Any

    @property
    def is_sharded(self) -> bool:
        """Whether the module's weights are sharded."""
        return isinstance(self, FSDPModule)

    def configure_model(self) -> None:
        """Make each layer a unit; the rest belongs to the module, whose forward is a training step.

        The rest is embedding, head, grid positions and last norm.
        """
        if self._trainer is not None:
            fitting = self._trainer.state.fn == TrainerFn.FITTING
            check_strategy(self.tuning, self._trainer.strategy, fitting)
        if self.device_mesh is None or self.is_sharded:
            return
        backbone, mesh = self.model.backbone, self.device_mesh["data_parallel"]
        # `_no_split_modules` names the classes of a model's layers; transformers has it for device
        # maps.
        layer_types = set(backbone._no_split_modules or ())
        layers = [part for part in backbone.modules() if type(part).__name__ in layer_types]
        for layer in layers:
            fully_shard(layer, mesh=mesh)
        # Layers first: `fully_shard` of the module takes whatever no unit inside it has taken.
        fully_shard(self, mesh=mesh)  # type: ignore[call-overload]
        # FSDP2 gathers weights in hooks of `forward`; other entry points must be registered.
        for method in ("training_step", "dummy_forward"):
            register_fsdp_forward_method(self, method)  # type: ignore[arg-type]
        # After the weights, since θ₀ is cut to the rows that this rank has got.
        self.regularizer.shard(backbone, mesh)

    def _units(self) -> list[Any]:
        return [part for part in self.modules() if isinstance(part, FSDPModule)]

    def dummy_forward(self) -> None:
        """Do nothing: FSDP2 takes the first module that runs for the root."""

    def train(self, mode: bool = True) -> Any:
        """Switch the mode; evaluation gathers the weights, so all ranks must switch together."""
        if not mode and self.is_sharded:
            # Tensors created here are trained with later, so they must not be inference tensors.
            with torch.inference_mode(False), torch.no_grad():
                self.dummy_forward()
                for unit in self._units():
                    # Whole until the next training batch: generation makes a different number of
                    # passes on each rank, and a gather that one rank does not join would wait
                    # forever.
                    unit.set_reshard_after_forward(False, recurse=False)
                    unit.unshard()
        return super().train(mode)  # type: ignore[misc]

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Shard the weights again after a validation."""
        """Shard the weights again after a validation."""
        if self.is_sharded:
            for unit in self._units():
                # The root stays gathered between forward and backward, as FSDP2's default has it.
                unit.set_reshard_after_forward(unit is not self, recurse=False)
                unit.reshard()

    def zero_loss(self, passes: int) -> Tensor | float:
        """Zero, as a function of the weights if this rank makes no pass.

        With shards it consists of as many passes as this rank makes fewer than another, and of one
        if no rank makes any.

        Args:
            passes: passes that this rank makes through the model.
        """
        if not self.is_sharded:
            # Each pass of the model reaches every weight, so nothing needs to be added.
            if passes:
                return 0.0
            # DDP expects a gradient of each parameter from each rank: zeros for a batch without
            # targets.
            trained = (p for p in self.parameters() if p.requires_grad)
            return sum(0.0 * parameter.sum() for parameter in trained)
        if not self.training:
            return 0.0
        # All ranks must join the same number of gathers, so the ranks with fewer passes add idle
        # ones.
        most = torch.tensor(passes, device=self.device)
        dist.all_reduce(most, dist.ReduceOp.MAX)
        vocabulary = self.model.vocabulary
        begin = vocabulary.special_token_id("<begin>")
        # Two positions: the gathers count, not the work.
        smallest = Tree([begin], [Branch([], [vocabulary.end])])
        idle = pack([smallest], vocabulary.end).to(self.device)
        missing = range(passes, max(int(most), 1))
        return sum(0.0 * self.model.token_losses(idle).sum() for _ in missing)
