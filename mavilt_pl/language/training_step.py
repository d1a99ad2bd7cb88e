"""A training step of the stages: a backward pass after each forward pass.

A step of a language stage reads its sequences in several passes (directions, length groups). Held
until one common backward, their activations add up; with a backward after each, a step needs the
memory of its largest pass. Loss and gradient are the same sums.

Lightning's automatic optimization stays in charge of everything else: it goes backward through the
last pass, whose gradient DDP averages together with what the earlier ones have left in `.grad`; it
accumulates, clips and steps.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mavilt_pl.errors import UserError
from mavilt_pl.language.options import TASKS, TuningOptions
from mavilt_pl.language.sequences import PackedBatch
from mavilt_pl.language.task_loss import count_targets, span_sums, task_shares, weighted_pass
from mavilt_pl.parallel.distributed import all_reduce_sum, rank_and_size


class TrainingStep:
    """The training step of a language module; a mixin."""

    model: Any
    tuning: TuningOptions
    event_counts: Counter[str]
    is_sharded: bool
    device: Any
    log: Any
    log_dict: Any
    _trainer: Any
    zero_loss: Callable[[int], Tensor | float]

    def packed_passes(self, batch: Mapping[str, Any]) -> Sequence[PackedBatch]:
        """The sequences of a batch, one item a pass through the model.

        Raises:
            UserError: the batch has none.
        """
        if "packed" not in batch:
            raise UserError(
                "the batch has no codes: name a token cache for each corpus (data.tokens), as "
                "`mavilt tokenize` writes it"
            )
        return batch["packed"]

    def training_step(self, batch: Any, index: int) -> Tensor:
        """The weighted loss of the tasks, over the targets of all ranks.

        All passes but the last go backward here, each before the next one is read: their
        activations are never held together. The value returned is that of all, its gradient that of
        the last.
        """
        self._log_events(batch)
        # The largest first: its activations then meet no gradients of other passes.
        passes = sorted(
            self.packed_passes(batch), key=lambda packed: packed.ids_BT.numel(), reverse=True
        )
        means = self._mean_counts(passes)
        shares = task_shares(means, self.tuning)
        factors = {task: share / means[task] for task, share in shares.items()}
        # For the log alone, on the device: adding waits for nothing.
        nats = {task: torch.zeros((), device=self.device) for task in means}

        def pass_loss(packed: PackedBatch) -> Tensor:
            sums = span_sums(self.model.token_losses(packed), packed)
            for task, value in sums:
                nats[task] += value.detach()
            return weighted_pass(sums, factors)

        loss = self.sum_of_passes(passes, pass_loss, index)
        if shares and self.logs_this_step:
            self._log_losses(nats, means, shares, len(batch["studies"]))
        return loss

    def _mean_counts(self, passes: Sequence[PackedBatch]) -> dict[str, float]:
        """Targets of each task that has any, as a mean over the ranks.

        Each rank divides its sums by them. The mean over ranks, of values and of gradients, is then
        that of one rank with the whole batch.
        """
        counts: list[float] = [*count_targets(passes)]
        world = rank_and_size()[1]
        # The only number of a step that the host must wait for.
        if world > 1:
            totals = torch.tensor(counts, device=self.device)
            counts = (all_reduce_sum(totals) / world).tolist()
        return {task: count for task, count in zip(TASKS, counts) if count}

    def _log_losses(
        self,
        nats: Mapping[str, Tensor],
        means: Mapping[str, float],
        shares: Mapping[str, float],
        num_studies: int,
    ) -> None:
        """Log mean nats of each task and the loss, of all ranks."""
        logged = {f"train/{task}_nats": value / means[task] for task, value in nats.items()}
        weighted = [share * logged[f"train/{task}_nats"] for task, share in shares.items()]
        logged["train/loss"] = torch.stack(weighted).sum()
        # One collective for all logged values; `sync_dist` would make one for each.
        values = all_reduce_sum(torch.stack([*logged.values()])) / rank_and_size()[1]
        # Only here, where the host reads the values anyway.
        if not bool(values.isfinite().all()):
            raise UserError(
                f"step {self._trainer.global_step}: the loss is not finite. Resume from an earlier "
                "checkpoint of the run, with a lower tuning.learning_rate"
            )
        self.log_dict(dict(zip(logged, values)), batch_size=num_studies)
        self.log("loss", values[-1], prog_bar=True, logger=False)

    def _log_events(self, batch: Mapping[str, Any]) -> None:
        """Log how many texts were truncated or empty since the start."""
        self.event_counts.update(batch.get("prompt_counts", {}))
        if self.event_counts and self.logs_this_step:
            counts = {f"train/{name}": float(n) for name, n in self.event_counts.items()}
            self.log_dict(counts, batch_size=1)

    @property
    def logs_this_step(self) -> bool:
        """Whether Lightning logs what this step computes.

        Values of other steps are thrown away, and their collectives with them.
        """
        # A caller without a trainer looks at every step.
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
        # At the first of the batches that make one step, as Lightning does it.
        if batch_index % self._trainer.accumulate_grad_batches == 0:
            self._trainer.optimizers[0].zero_grad()
        # DDP waits for gradients even of a rank without sequences.
        if not passes:
            return zero
        # A value without a graph: what went backward is freed.
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
