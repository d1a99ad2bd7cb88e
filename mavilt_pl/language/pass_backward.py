"""A backward pass after each forward pass of a step, in place of one for all of them.

A step of a language stage reads its sequences in several passes (directions, length groups). Held
until one common backward, their activations add up; with a backward after each, a step needs the
memory of its largest pass. Loss and gradient are the same sums.

Lightning's automatic optimization stays in charge of everything else: it goes backward through the
last pass, whose gradient DDP averages together with what the earlier ones have left in `.grad`; it
accumulates, clips and steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mavilt_pl.language.sequences import PackedBatch


class PassBackwardMixin:
    """Goes backward through each pass of a step."""

    is_sharded: bool
    device: Any
    _trainer: Any
    zero_loss: Callable[[int], Tensor | float]

    @property
    def logs_this_step(self) -> bool:
        """Whether Lightning logs what this step computes.

        Values of other steps are thrown away, and their collectives with them.
        """
        if self._trainer is None:
            return True
        interval = max(self._trainer.log_every_n_steps, 1)
        return (self._trainer.global_step + 1) % interval == 0

    def sum_of_passes(
        self,
        passes: Sequence[PackedBatch],
        pass_loss: Callable[[PackedBatch], Tensor],
        batch_index: int,
    ) -> Tensor:
        """The summed losses of the passes, of which all but the last have gone backward.

        Args:
            passes: sequences of one batch.
            pass_loss: a pass's part of the loss.
            batch_index: of the epoch.
        """
        zero = self.zero_loss(len(passes)) + torch.zeros((), device=self.device)
        # FSDP2 gathers and frees the weights of the root once a forward, so that all passes of a
        # step must share one. Without a trainer the caller goes backward.
        if self.is_sharded or self._trainer is None:
            return sum([pass_loss(packed) for packed in passes], start=zero)
        if batch_index % self._trainer.accumulate_grad_batches == 0:
            self._trainer.optimizers[0].zero_grad()
        # DDP waits for gradients even of a rank without sequences.
        if not passes:
            return zero
        earlier = torch.zeros((), device=self.device)
        for packed in passes[:-1]:
            loss = pass_loss(packed)
            self._go_backward(loss)
            earlier += loss.detach()
        return pass_loss(passes[-1]) + earlier

    def _go_backward(self, loss: Tensor) -> None:
        """Add a pass's gradient to `.grad`, scaled as Lightning scales that of the last pass."""
        trainer = self._trainer
        # A step runs under autocast, a backward pass must not.
        with torch.autocast(self.device.type, enabled=False):
            share = loss / trainer.accumulate_grad_batches
            trainer.precision_plugin.pre_backward(share, self).backward()
        # Autocast keeps the weights that it has cast, with a graph that is freed now.
        torch.clear_autocast_cache()

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any) -> None:
        """Lightning calls this between the last pass and its backward; see `sum_of_passes`."""
        if self.is_sharded:
            optimizer.zero_grad()
