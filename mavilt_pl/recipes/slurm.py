"""The steps of a recipe as SLURM jobs, each after the jobs whose output it reads.

A job runs `mavilt run RECIPE --only STEP`, so finished steps are skipped as usual and a preempted
job continues where it was. Trainings and tests take all tasks of all nodes; jobs of an array share
sharded steps. Scripts and logs lie in DIR/slurm; the template is `configs/slurm/step.sbatch.jinja`.
"""

from __future__ import annotations

import itertools
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from mavilt_pl.config_files import CONFIGS, config_text, find_config
from mavilt_pl.errors import UserError, escape
from mavilt_pl.recipes.recipe import SHARDED_COMMANDS, TRAINING_COMMANDS, Step


@dataclass(frozen=True)
class JobOptions:
    """What a user chooses for all jobs.

    Args:
        recipe, seed, settings: as of `mavilt run`.
        partition: of the cluster.
        time: limit of each job, in SLURM's notation.
        gpus: GPUs of a node; 0 for CPUs only.
        nodes: nodes of a training or a test.
        tasks: processes of a node without GPUs.
        array: jobs that share a sharded step.
        cpus: cores of a process.
        warning: seconds before the limit at which a training saves and requeues itself.
        sbatch: further #SBATCH options.
    """

    recipe: str
    partition: str
    time: str
    seed: int = 0
    settings: tuple[str, ...] = ()
    gpus: int = 0
    nodes: int = 1
    tasks: int = 1
    array: int = 1
    cpus: int = 4
    warning: int = 300
    sbatch: tuple[str, ...] = ()


def _trainer_options(
    words: Sequence[str], gpus: int, tasks: int, nodes: int, strategy: str | None
) -> list[str]:
    """Options of a training that say where it runs, not what it computes."""
    options: list[str] = []
    if gpus:
        options.append("--trainer.accelerator=gpu")
    if gpus or tasks * nodes > 1:
        options += [f"--trainer.devices={tasks}", f"--trainer.num_nodes={nodes}"]
    if tasks * nodes > 1:
        options.append(f"--trainer.strategy={strategy or _configured_strategy(words)}")
    return options


def _configured_strategy(words: Sequence[str]) -> str:
    """The strategy of a command's configs; without one, that of its module."""
    module, strategy = "", "auto"
    for option, value in itertools.pairwise(words):
        if option in ("--config", "-c"):
            path = find_config(value)
            content = yaml.safe_load(config_text(path) or path.read_text(encoding="utf-8"))
            # A later config may name another. Damaged ones are left to the parser of `fit`.
            module = _key(content, "model", "class_path") or module
            strategy = _key(content, "trainer", "strategy") or strategy
        elif option == "--model":
            module = value
        elif option == "--trainer.strategy":
            strategy = value
    # Only trainings are sharded.
    if strategy != "auto" and not (words[0] != "fit" and "fsdp" in strategy):
        return strategy
    # The VQ-GAN steps two optimizers, each with a part of the weights; elsewhere every trained
    # weight has a gradient in each step.
    return "ddp_find_unused_parameters_true" if module.endswith(".VQGAN") else "ddp"


def _key(content: object, group: str, key: str) -> str:
    """A text of a config, empty if it is not there."""
    # A config of another shape is refused by the parser of `fit`, in its words.
    found = content.get(group) if isinstance(content, dict) else None
    value = found.get(key) if isinstance(found, dict) else None
    return value if isinstance(value, str) else ""


def _check_lines(job: JobOptions, out: Path) -> None:
    """Refuse values that would not stay on their line of the script."""
    for name, value in (
        ("recipe", job.recipe),
        ("--out", str(out)),
        ("--partition", job.partition),
        ("--time", job.time),
        *(("--sbatch", option) for option in job.sbatch),
    ):
        # What follows a line break would be a command of its own.
        if not value.isprintable():
            raise UserError(
                f"{name} {value!r}: found a line break or another control character; expected "
                "one line, for the batch script"
            )


def render_job_script(
    step: Step, words: Sequence[str], job: JobOptions, out: Path, strategy: str | None = None
) -> str:
    """The text of one step's batch script.

    Args:
        step: the step.
        words: its command, for the comment in the script.
        job: the user's options.
        out: the run's folder.
        strategy: of a training on several processes (default: as configured).

    Raises:
        UserError: a value would not stay on its line of the script.
    """
    _check_lines(job, out)
    from jinja2 import Environment, StrictUndefined

    command = words[0]
    gpus, tasks, nodes = 0, 1, 1
    options: list[str] = []
    if command in TRAINING_COMMANDS:
        # Lightning wants one process a GPU, started by srun.
        gpus, tasks, nodes = job.gpus, job.gpus or job.tasks, job.nodes
        options = _trainer_options(words, gpus, tasks, nodes, strategy)
    elif command == "tokenize":
        # Encoding runs on one device; an array spreads it over several.
        gpus = min(job.gpus, 1)
    array = job.array if command in SHARDED_COMMANDS else 1
    # This interpreter by its path: a job's PATH may have another.
    run = [sys.executable, "-m", "mavilt_pl.cli", "run", job.recipe, "--out", str(out)]
    run += ["--seed", str(job.seed)]
    run += [f"--set={setting}" for setting in job.settings]
    run += ["--only", step.name]
    if options:
        run.append(f"--extra-args={shlex.join(options)}")
    template = (CONFIGS / "slurm" / "step.sbatch.jinja").read_text(encoding="utf-8")
    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True)
    # sbatch fills these in: job of the array and task, or the job.
    job_number = "%A_%a" if array > 1 else "%j"
    return environment.from_string(template).render(
        name=step.name,
        recipe=job.recipe,
        partition=job.partition,
        time=job.time,
        nodes=nodes,
        tasks=tasks,
        cpus=job.cpus,
        gpus=gpus,
        array=array,
        log=out / "slurm" / f"{step.name}-{job_number}.log",
        warning=job.warning,
        sbatch=job.sbatch,
        words=escape(shlex.join(words)),
        command=shlex.join(run),
    )


def submit_job(script: Path, step: str, after: Sequence[str], submitted: Sequence[str]) -> str:
    """Submit a script; the number of its job.

    Args:
        script: path of the batch script.
        step: name of its step.
        after: jobs that have to succeed first.
        submitted: jobs already in the queue, for the message if this one is refused.

    Raises:
        UserError: SLURM refused the script.
    """
    # afterok: if an input's job fails, SLURM never starts this one.
    dependency = [f"--dependency=afterok:{':'.join(after)}"] if after else []
    done = subprocess.run(
        ["sbatch", "--parsable", *dependency, str(script)], capture_output=True, text=True
    )
    if done.returncode:
        reason = " ".join(done.stderr.replace("sbatch: error: ", "").split())
        queued = ""
        if submitted:
            queued = f" Already in the queue: {' '.join(submitted)} (scancel removes them)."
        raise UserError(f"SLURM refused step {step} ({script}): {reason}{queued}")
    # In a federation `--parsable` prints "job;cluster".
    return done.stdout.strip().partition(";")[0]
