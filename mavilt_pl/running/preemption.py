"""Leaving in time, and coming back: what a run does when the cluster wants its machine.

SIGUSR1 (sent by SLURM some time before the limit, or at preemption, where the job asked for it):
save at the end of the step; under SLURM, back into the queue; leave. SIGTERM: save at the end of
the step and leave. The command that goes on is the command that was given, with `--ckpt_path last`.

Lightning's own requeueing is replaced: it saves to a second place, which `--ckpt_path last` does
not look at and `--ckpt_path hpc` does not find on a first run
(Lightning-AI/pytorch-lightning#20347), it saves within the signal's handler, wherever the step is,
and each rank by itself (#16639).
"""

from __future__ import annotations

import signal
import sys
from typing import Any

import torch
import torch.distributed as dist
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from mavilt_pl.ranks import rank_and_size
from mavilt_pl.running.checkpoints import StepCheckpoints
from mavilt_pl.running.queue import Left, job, requeue

SIGNALS = (signal.SIGUSR1, signal.SIGTERM)  # the later one weighs more


class Preemption(Checkpoint):
    """Listens for `SIGNALS`; all ranks act on them at the end of the same optimizer step.

    A `Checkpoint` by name so that Lightning calls it after all other callbacks. A signal in
    validation waits for its end: ask SLURM for a warning time (`--signal=USR1@…`) that is longer
    than a validation.
    """

    def __init__(self, checkpoints: StepCheckpoints):
        self.checkpoints = checkpoints
        self.heard = 0  # 1 + the place in SIGNALS
        self.step = 0
        self.before: dict[int, Any] = {}

    def _hear(self, number: int, _: Any) -> None:
        self.heard = max(self.heard, 1 + SIGNALS.index(signal.Signals(number)))

    def _listen(self) -> None:
        for number in SIGNALS:
            before = signal.signal(number, self._hear)
            self.before.setdefault(number, before)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._listen()

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._listen()  # again: Lightning puts a handler of its own before this one

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._listen()
        self.step = trainer.global_step

    def silence(self) -> None:
        """Leave signals to whom they were before. Not Lightning's `teardown`, which is not called
        where a run is left.
        """
        for number, handler in self.before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        self.before.clear()

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            return  # between two batches of one step
        self.step = trainer.global_step
        heard = self.heard
        if rank_and_size()[1] > 1:
            most = torch.tensor(heard, device=trainer.strategy.root_device)
            dist.all_reduce(most, dist.ReduceOp.MAX)
            heard = int(most)
        if not heard:
            return
        number = SIGNALS[heard - 1]
        self.checkpoints.finish(trainer)
        text = (
            f"{number.name}: saved {self.checkpoints.last_model_path} at step {trainer.global_step}"
        )
        if number == signal.SIGUSR1 and (queued := job()):
            text += f"; {requeue(queued, text)}" if trainer.is_global_zero else ""
        else:
            text += "; the same command with --ckpt_path last goes on from there"
        # Ranks that Lightning started leave without complaint: their exit status would end the
        # first one before its time.
        raise Left(number, text, 128 + number if trainer.is_global_zero else 0)


def say(left: Left) -> int:
    """Tell that the run has left; the exit status."""
    if left.code:
        print(f"mavilt: {left}", file=sys.stderr, flush=True)
    return left.code
