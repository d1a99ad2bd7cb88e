"""Save and leave when the cluster asks for the machine.

SIGUSR1 (sent by SLURM some time before the limit or at preemption, if the job asked for it): save
at the end of the step, requeue the job under SLURM, leave. SIGTERM and Ctrl-C (SIGINT): save at the
end of the step and leave. A second Ctrl-C, or one before the first step, leaves at once.
The command that resumes is the command that was given, with `--ckpt_path last`.

This replaces Lightning's requeueing, which saves to a second place that `--ckpt_path last` does not
search and `--ckpt_path hpc` does not find on a first run (Lightning-AI/pytorch-lightning#20347),
saves inside the signal handler wherever the step is, and on each rank by itself (#16639).
"""

from __future__ import annotations

import logging
import signal
from typing import Any

import torch
import torch.distributed as dist
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from mavilt_pl.parallel.distributed import rank_and_size
from mavilt_pl.trainer.checkpoint_callbacks import StepCheckpoints
from mavilt_pl.trainer.slurm import PreemptedExit, requeue, slurm_job

logger = logging.getLogger(__name__)

# A later one takes precedence.
SIGNALS = (signal.SIGUSR1, signal.SIGINT, signal.SIGTERM)


class Preemption(Checkpoint):
    """Listens for `SIGNALS`; all ranks act on them at the end of the same optimizer step.

    It is a `Checkpoint` by name so that Lightning calls it after all other callbacks. A signal
    during validation waits for its end: ask SLURM for a warning time (`--signal=USR1@…`) that is
    longer than a validation.

    Args:
        checkpoints: saves the step.
    """

    def __init__(self, checkpoints: StepCheckpoints):
        self.checkpoints = checkpoints
        self.received = 0  # 1 + index into SIGNALS
        self.step = 0
        self.is_training = False
        self.previous_handlers: dict[int, Any] = {}

    def _handle(self, number: int, _: Any) -> None:
        # A person who waits for nothing to be saved, or who asks twice, wants to leave at once.
        if number == signal.SIGINT:
            if not self.is_training or self.received:
                text = "SIGINT: stopped; steps since the last checkpoint are not saved"
                raise PreemptedExit(signal.SIGINT, text, 128 + number)
            logger.warning("interrupted: saving at the end of this step; Ctrl-C again ends at once")
        # The handler only takes a note: a save in the middle of a step would be of half-updated
        # weights.
        self.received = max(self.received, 1 + SIGNALS.index(signal.Signals(number)))

    def _listen(self) -> None:
        for number in SIGNALS:
            # A shell that starts a program in the background lets it ignore Ctrl-C.
            if number == signal.SIGINT and signal.getsignal(number) == signal.SIG_IGN:
                continue
            # `_listen` is called several times; the handlers from before the first are restored.
            previous = signal.signal(number, self._handle)
            self.previous_handlers.setdefault(number, previous)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Listen from the first moment: reading data and weights takes minutes too."""
        self._listen()

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen again: Lightning puts a handler of its own before this one."""
        self._listen()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen again, and note the step that a resumed run begins at."""
        self._listen()
        self.step = trainer.global_step
        self.is_training = True

    def restore_handlers(self) -> None:
        """Restore the handlers from before. Not in `teardown`, which an early exit skips."""
        for number, handler in self.previous_handlers.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        self.previous_handlers.clear()

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Save and leave after an optimizer step, if any rank has received a signal."""
        if trainer.global_step == self.step:
            return  # between two batches of one optimizer step
        self.step = trainer.global_step
        # SLURM signals ranks one by one. If they left at different steps, the others would wait
        # forever in their next collective, so all act on the highest that any has received.
        received = self.received
        if rank_and_size()[1] > 1:
            highest = torch.tensor(received, device=trainer.strategy.root_device)
            dist.all_reduce(highest, dist.ReduceOp.MAX)
            received = int(highest)
        if received:
            self._save_and_leave(trainer, SIGNALS[received - 1])

    def _save_and_leave(self, trainer: Trainer, number: signal.Signals) -> None:
        # A save in the background must be on the disk before the process ends.
        self.checkpoints.finish(trainer)
        path, step = self.checkpoints.last_model_path, trainer.global_step
        text = f"{number.name}: saved {path} at step {step}"
        job = slurm_job() if number == signal.SIGUSR1 else None
        if job is None:
            text += "; the same command with --ckpt_path last continues from there"
        elif trainer.is_global_zero:
            # One rank asks: each request would requeue the job again.
            text += f"; {requeue(job, text)}"
        # Ranks that Lightning started exit with 0: their status would end the first one too early.
        raise PreemptedExit(number, text, 128 + number if trainer.is_global_zero else 0)


def report_exit(preempted: PreemptedExit) -> int:
    """Log why the run left; return its exit status."""
    if preempted.status:
        logger.warning("%s", preempted)
    return preempted.status
