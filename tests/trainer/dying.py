"""A callback with which one rank of a training dies; named on the command line of processes that
the tests start.
"""

from __future__ import annotations

import os
import signal

from lightning import Callback, Trainer


class Dies(Callback):
    """Rank `rank` raises an error, or is killed, within the step after `step`; it writes the time
    into `mark` before.
    """

    def __init__(self, rank: int, how: str, mark: str, step: int = 2):
        self.rank, self.how, self.mark, self.step = rank, how, mark, step

    def on_train_batch_start(self, trainer: Trainer, *_: object) -> None:
        if trainer.global_rank != self.rank or trainer.global_step != self.step:
            return
        open(self.mark, "w").close()
        if self.how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        raise RuntimeError(f"the card of rank {self.rank} is broken")


class FailsInValidation(Callback):
    """The last step is made and saved, and its validation is not."""

    def on_validation_start(self, trainer: Trainer, *_: object) -> None:
        if not trainer.sanity_checking:
            raise RuntimeError("the machine is gone")


class FillsTheDisk(Callback):
    """The first save fails."""

    def on_save_checkpoint(self, *_: object) -> None:
        raise OSError("no space")


class Terminated(Callback):
    """SIGTERM, as of a cluster, within the step after `step`; a background job ignores Ctrl-C."""

    def __init__(self, step: int):
        self.step = step

    def on_train_batch_start(self, trainer: Trainer, *_: object) -> None:
        if trainer.global_step == self.step:
            signal.raise_signal(signal.SIGTERM)
