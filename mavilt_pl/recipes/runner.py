"""Run the steps of a recipe under one folder, like a small make.

A finished step has a record in DIR/.steps/<name>.json with a fingerprint of its command, its
configs and everything that its inputs were made from. A step with an up-to-date record is skipped.
An output that a changed input made stale is deleted and made again, but only if a record of this
run says that the step made it. An interrupted step is run again and resumes by its own means.
"""

from __future__ import annotations

import gc
import hashlib
import itertools
import json
import logging
import os
import resource
import shlex
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mavilt_pl.config_files import config_text, find_config
from mavilt_pl.errors import UserError
from mavilt_pl.parallel.atomic_write import atomic_write_text
from mavilt_pl.parallel.file_lock import file_lock
from mavilt_pl.recipes.recipe import SHARDED_COMMANDS, TRAINING_COMMANDS, Recipe, Step
from mavilt_pl.trainer.slurm import PreemptedExit, exit_on_sigusr1

logger = logging.getLogger(__name__)

Execute = Callable[[Sequence[str]], int]  # words of a `mavilt` command → exit status


class RecipeRun:
    """A recipe being run under one folder.

    Args:
        recipe: the steps.
        out: the run's folder.
        seed: fills `{seed}` of the commands.
        execute: runs the words of one `mavilt` command and returns its exit status.
    """

    def __init__(self, recipe: Recipe, out: Path, seed: int, execute: Execute):
        self.recipe, self.out, self.seed, self.execute = recipe, out, seed, execute
        self.fingerprints: dict[str, str] = {}  # by output, in the order of the steps

    def words(self, step: Step, out: str | None = None) -> list[str]:
        """The words of a step's command, by default for this run's folder."""
        return self.recipe.words(step, str(self.out) if out is None else out, self.seed)

    def is_done(self, step: Step) -> bool:
        """Whether a step is finished and up to date. Ask in the order of the steps."""
        fingerprint = self.fingerprints[step.writes] = self._fingerprint(step)
        written = (self.out / step.writes).exists()
        return self._recorded(step) == fingerprint and written

    def run_all(self, until: str | None = None) -> int:
        """Run all steps in order; the exit status of a step that was preempted, else 0.

        Args:
            until: stop after the step of this name.
        """
        for number, step in enumerate(self.recipe.steps, start=1):
            title = f"{number}/{len(self.recipe.steps)} {step.name}"
            if self.is_done(step):
                logger.info("%s: done before", title)
            elif status := self._run_step(step, title):
                # Other failures raise; a status means that a signal ended the step and the job is
                # to be resumed.
                return status
            if step.name == until:
                break
        return 0

    def run_one(self, name: str, extra: Sequence[str], first_process: bool) -> int:
        """Run one step alone, as a cluster's job does; its exit status.

        Args:
            name: the step.
            extra: words added to a training, such as its devices.
            first_process: False for all processes of a job but its first; they keep no record.

        Raises:
            UserError: an input is missing or stale.
        """
        # Fingerprints build on those of earlier steps, so all steps up to this one are looked at.
        unfinished: dict[str, str] = {}
        for step in self.recipe.steps:
            done = self.is_done(step)
            if step.name == name:
                break
            if not done:
                unfinished[step.writes] = step.name
        for read in step.reads:
            if read in unfinished:
                raise UserError(
                    f"step {name} reads {self.out / read}, which is missing or stale: run step "
                    f"{unfinished[read]} first"
                )
        if done:
            logger.info("%s: done before", name)
            return 0
        return self._run_step(step, name, extra) if first_process else self._execute(step, extra)

    def _fingerprint(self, step: Step) -> str:
        """Hash of the command (wherever the folder lies), its configs, and its inputs' hashes."""
        # With the folder's name left open a run may be moved or copied and stays up to date.
        words = self.words(step, "{out}")
        # The contents count: an edited config makes its steps stale under the same command.
        configs = []
        for option, value in itertools.pairwise(words):
            if option == "--config":
                path = find_config(value)
                configs.append(config_text(path) or path.read_text(encoding="utf-8"))
        inputs = [self.fingerprints[read] for read in step.reads]
        return hashlib.sha256(json.dumps([words, configs, inputs]).encode()).hexdigest()

    def _record_path(self, step: Step, suffix: str = "") -> Path:
        return self.out / ".steps" / f"{step.name}.json{suffix}"

    def _recorded(self, step: Step, suffix: str = "") -> str | None:
        """The fingerprint in a step's record; None without a readable record."""
        try:
            text = self._record_path(step, suffix).read_text(encoding="utf-8")
            return json.loads(text)["fingerprint"]
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _write_record(self, step: Step, suffix: str, facts: dict[str, Any]) -> None:
        path = self._record_path(step, suffix)
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_text(path, json.dumps(facts, indent=1))

    def _run_step(self, step: Step, title: str, extra: Sequence[str] = ()) -> int:
        fingerprint = self.fingerprints[step.writes]
        written, words = self.out / step.writes, self.words(step)
        # Other processes of an array may start the same step now.
        # The old record goes before the new work begins: after a kill, nothing claims to be
        # finished.
        with file_lock(self.out / ".steps" / f"{step.name}.begin"):
            self._remove_stale(step, fingerprint)
            self._record_path(step).unlink(missing_ok=True)
            self._write_record(step, ".begun", {"fingerprint": fingerprint})
        logger.info("%s\n$ mavilt %s", title, shlex.join(words))
        start = time.time()
        status = self._execute(step, extra)
        # A trainer and its model are in reference cycles; the next step needs their memory.
        gc.collect()
        if status > 128:  # it was preempted, and said so
            return status
        if status:
            raise UserError(
                f"step {step.name} ended with exit status {status}; correct what it reported and "
                "run the recipe again"
            )
        # A recipe's mistake, such as another name in `writes` than in `run`.
        if not written.exists():
            raise UserError(f"step {step.name} did not write {written}")
        seconds = round(time.time() - start, 1)
        facts = {
            "fingerprint": fingerprint,
            "command": words,
            "seconds": seconds,
            "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        }
        self._write_record(step, "", facts)
        logger.info("%s: %.0f s", title, seconds)
        return 0

    def _remove_stale(self, step: Step, fingerprint: str) -> None:
        """Delete an output made from other inputs, but only what this run's records say it made."""
        written = self.out / step.writes
        if not (written.exists() or written.is_symlink()):
            return
        # `.begun` names the inputs of the latest attempt, finished or not.
        begun = self._recorded(step, ".begun")
        if begun == fingerprint:
            return  # an interrupted step resumes by its own means
        if begun is None and self._recorded(step) is None:
            raise UserError(
                f"step {step.name} would write {written}, which exists, and no record of this run "
                "says that it was made here: move it, or choose another --out"
            )
        # A symbolic link is removed itself, never what it points to.
        if written.is_dir() and not written.is_symlink():
            shutil.rmtree(written)
        else:
            written.unlink()

    def _execute(self, step: Step, extra: Sequence[str] = ()) -> int:
        words = self.words(step)
        command = words[0]
        if command in TRAINING_COMMANDS:
            # Where a training runs is not what it computes, so `extra` is in no fingerprint.
            words = [*words, *extra]
        if command == "fit":  # it handles signals itself
            return self.execute(words)
        try:
            with exit_on_sigusr1(lambda: self._can_resume(step, command)):
                return self.execute(words)
        except PreemptedExit as preempted:
            logger.warning("step %s: %s", step.name, preempted)
            return preempted.status

    def _can_resume(self, step: Step, command: str) -> bool:
        """Whether a command that is interrupted now would continue where it was.

        `prepare` reads its tables in one go before there are shards.
        """
        tables_read = self.out / step.writes / "parts" / "read.json"
        return command in SHARDED_COMMANDS and (command != "prepare" or tables_read.exists())


@contextmanager
def _exclusive(path: Path, in_use: str, **kind: Any) -> Iterator[None]:
    with file_lock(path, wait=False, **kind) as lock:
        if lock is None:
            raise UserError(f"{in_use}: wait for it, or choose another --out")
        yield


def run_recipe(run: RecipeRun, until: str | None = None) -> int:
    """Run a whole recipe; only one process may do so in a folder."""
    in_use = f"{run.out} is in use by another `mavilt run`"
    # Inherited: workers that outlive a killed run keep the folder closed until they are done with
    # it.
    with _exclusive(run.out / ".lock", in_use, inherited=True):
        return run.run_all(until)


def run_single_step(run: RecipeRun, name: str, extra: Sequence[str]) -> int:
    """Run one step of a recipe, possibly while other jobs run other steps in the same folder."""
    # torch's process group does not exist yet: srun and torchrun say the rank in the environment.
    rank = int(os.environ.get("SLURM_PROCID") or os.environ.get("RANK") or 0)
    if rank != 0:
        return run.run_one(name, extra, first_process=False)
    # Steps of sharded commands may run several times at once and share the work.
    command = run.words(run.recipe.step(name, "--only"))[0]
    in_use = f"{run.out} is in use by another `mavilt run`"
    step_in_use = f"step {name} of {run.out} is being made by another process"
    # A step's lock is POSIX's: when a killed job starts again at once, workers of the first must
    # not still hold it.
    with (
        _exclusive(run.out / ".lock", in_use, shared=True, inherited=True),
        _exclusive(
            run.out / ".steps" / f"{name}.lock", step_in_use, shared=command in SHARDED_COMMANDS
        ),
    ):
        return run.run_one(name, extra, first_process=True)
