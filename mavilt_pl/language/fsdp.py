"""A language model in shards (FSDP2): a layer's weights are gathered from all ranks when it runs,
and given back after it.

Every gathering is a meeting of all ranks, so all must make the same passes. In training a rank with
fewer of them makes up for it. Evaluation is not even, since texts end where they end: a module in
evaluation mode holds its weights whole, until the next training batch.
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
from mavilt_pl.language.sequences import Branch, Tree, pack
from mavilt_pl.trainer.fsdp_strategy import FSDP2Strategy


def refuse(module: Any, strategy: Any, fitting: bool = True) -> None:
    """Raise `UserError` for a strategy under which the module would fail, or train something else
    than it says.
    """
    if isinstance(strategy, DeepSpeedStrategy):
        raise UserError(
            "trainer.strategy: found DeepSpeed, which steps from gradients of its own, so that the "
            "pull of model.init_args.drift would "
            "be left out without a word, and whose checkpoints are folders without a seal, which "
            "--ckpt_path last does not find; "
            "set trainer.strategy to fsdp2, which shards the same"
        )
    if isinstance(strategy, FSDPStrategy):
        raise UserError(
            "trainer.strategy: found FSDP's first version, which takes the weights away from "
            "model.init_args.drift; set it to fsdp2"
        )
    if not isinstance(strategy, ModelParallelStrategy):
        return
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
    if module.hparams["tuning"] != "full":
        raise UserError(
            f"trainer.strategy: fsdp2 shards weights that are all trained; found "
            f"model.init_args.tuning {module.hparams['tuning']}: set "
            "it to full, or trainer.strategy to ddp"
        )
    if module.hparams["optimizer"] != "adamw":
        raise UserError(
            f"trainer.strategy: under fsdp2 a rank has parts of matrices, and "
            f"{module.hparams['optimizer']} needs whole ones: set "
            "model.init_args.optimizer to adamw, or trainer.strategy to ddp"
        )


class Shardable:
    """The part of a language module that cuts it into shards, where the strategy is
    `running.sharded.FSDP2Strategy`.
    """

    model: Any
    drift: Any
    vocabulary: Any
    training: bool
    device_mesh: Any
    _trainer: Any

    @property
    def in_shards(self) -> bool:
        return isinstance(self, FSDPModule)

    def configure_model(self) -> None:
        """Each layer is one unit; the rest (embedding, head, places, last norm) is the module's
        own, whose forward is a training step.
        """
        if self._trainer is not None:
            refuse(self, self._trainer.strategy, self._trainer.state.fn == TrainerFn.FITTING)
        if self.device_mesh is None or self.in_shards:
            return
        mesh, kinds = self.device_mesh["data_parallel"], set(self.model._no_split_modules or ())
        for layer in [part for part in self.model.modules() if type(part).__name__ in kinds]:
            fully_shard(layer, mesh=mesh)
        fully_shard(self, mesh=mesh)  # type: ignore[call-overload]
        for method in ("training_step", "begin"):
            register_fsdp_forward_method(self, method)  # type: ignore[arg-type]
        self.drift.shard(self.model, mesh)

    def _units(self) -> list[Any]:
        return [part for part in self.modules() if isinstance(part, FSDPModule)]  # type: ignore[attr-defined]

    def begin(self) -> None:
        """A forward of nothing: FSDP2 takes the first module that runs for the root."""

    def train(self, mode: bool = True) -> Any:
        """Evaluation mode gathers the weights: all ranks must begin it together."""
        if not mode and self.in_shards:
            with (
                torch.inference_mode(False),
                torch.no_grad(),
            ):  # tensors that are made here are trained with later
                self.begin()
                for unit in self._units():
                    unit.set_reshard_after_forward(False, recurse=False)
                    unit.unshard()
        return super().train(mode)  # type: ignore[misc]

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if self.in_shards:
            for unit in self._units():
                unit.set_reshard_after_forward(unit is not self, recurse=False)
                unit.reshard()

    def nothing(self, passes: int) -> Tensor | float:
        """Zero, as a function of the weights where this rank would have none. In shards it is made
        of as many passes as this rank has fewer than another, and of one where no rank has any.
        """
        if not self.in_shards:
            trained = (p for p in self.parameters() if p.requires_grad)  # type: ignore[attr-defined]
            return 0.0 if passes else sum(0.0 * p.sum() for p in trained)
        if not self.training:
            return 0.0
        most = torch.tensor(passes, device=self.device)  # type: ignore[attr-defined]
        dist.all_reduce(most, dist.ReduceOp.MAX)
        v = self.vocabulary
        idle = pack([Tree([v.mark("<begin>")], [Branch([], [v.end])])], v.end).to(self.device)  # type: ignore[attr-defined]
        return sum(0.0 * self.token_losses(idle).sum() for _ in range(passes, max(int(most), 1)))  # type: ignore[attr-defined]
