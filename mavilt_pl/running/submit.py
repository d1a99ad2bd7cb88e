"""`mavilt submit RECIPE --partition P --time T`: every step of a recipe as a SLURM job, after the
steps that it reads.

A job runs `mavilt run RECIPE --only STEP`, so steps that are done are skipped there as here, and a
job that was preempted goes on where it was. Trainings and tests take all tasks of all nodes; with
`--array N` so many jobs share what is done in pieces. Scripts and logs lie in DIR/slurm; the
template is `configs/slurm/step.sbatch.jinja`.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from mavilt_pl.data.study import DataError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from mavilt_pl import recipes

    recipes.add_recipe_arguments(parser)
    parser.add_argument("--partition", required=True, help="partition of the cluster")
    parser.add_argument(
        "--time", required=True, help="time limit of each job, as SLURM takes it: 12:00:00, 1-0"
    )
    parser.add_argument(
        "--gpus", type=int, default=0, help="GPUs of a node (default 0: the CPU alone)"
    )
    parser.add_argument("--nodes", type=int, default=1, help="nodes of a training or a test")
    parser.add_argument(
        "--tasks",
        type=int,
        default=1,
        help="processes of a node where there are no GPUs (default 1)",
    )
    parser.add_argument(
        "--array",
        type=int,
        default=1,
        metavar="N",
        help="jobs that share the work of preparing and of tokenizing (default 1)",
    )
    parser.add_argument("--cpus", type=int, default=4, help="cores of a process")
    parser.add_argument(
        "--warning",
        type=int,
        default=300,
        help="seconds before the limit at which a training saves and requeues itself; longer than "
        "a validation",
    )
    parser.add_argument(
        "--sbatch",
        action="append",
        default=[],
        metavar="OPTION",
        help="one more line of #SBATCH, e.g. --sbatch=--account=abc; repeatable",
    )


def script(step: dict[str, Any], words: list[str], args: argparse.Namespace, out: Path) -> str:
    """The text of one step's job."""
    from jinja2 import Environment, StrictUndefined

    from mavilt_pl.cli import TRAINING
    from mavilt_pl.recipes import IN_PIECES
    from mavilt_pl.shipped import CONFIGS

    together = words[0] in TRAINING
    gpus = args.gpus if together else min(args.gpus, int(words[0] == "tokenize"))
    tasks, nodes = (gpus or args.tasks, args.nodes) if together else (1, 1)
    layout: list[str] = []
    if together and gpus:
        layout = ["--trainer.accelerator=gpu"]
    if together and (gpus or tasks * nodes > 1):
        layout += [f"--trainer.devices={tasks}", f"--trainer.num_nodes={nodes}"]
    if tasks * nodes > 1:
        layout.append("--trainer.strategy=ddp_find_unused_parameters_true")
    array = args.array if words[0] in IN_PIECES else 1
    command = [
        sys.executable,
        "-m",
        "mavilt_pl.cli",
        "run",
        args.recipe,
        "--out",
        str(out),
        "--seed",
        str(args.seed),
    ]
    command += [f"--set={setting}" for setting in args.set] + ["--only", step["name"]]
    if layout:
        command.append(f"--more={shlex.join(layout)}")
    template = (CONFIGS / "slurm" / "step.sbatch.jinja").read_text(encoding="utf-8")
    return (
        Environment(undefined=StrictUndefined, keep_trailing_newline=True)
        .from_string(template)
        .render(
            name=step["name"],
            recipe=args.recipe,
            partition=args.partition,
            time=args.time,
            nodes=nodes,
            tasks=tasks,
            cpus=args.cpus,
            gpus=gpus,
            array=array,
            log=out / "slurm" / f"{step['name']}-{'%A_%a' if array > 1 else '%j'}.log",
            warning=args.warning,
            more=args.sbatch,
            words=shlex.join(words),
            command=shlex.join(command),
        )
    )


def _submitted(path: Path, name: str, after: list[str], before: list[str]) -> str:
    """The number of the job that SLURM made of a script."""
    dependency = [f"--dependency=afterok:{':'.join(after)}"] if after else []
    done = subprocess.run(
        ["sbatch", "--parsable", *dependency, str(path)], capture_output=True, text=True
    )
    if done.returncode:
        said = " ".join(done.stderr.replace("sbatch: error: ", "").split())
        queued = (
            f" Jobs in the queue already: {' '.join(before)} (scancel takes them back)."
            if before
            else ""
        )
        raise DataError(f"SLURM did not take step {name} ({path}): {said}{queued}")
    return done.stdout.strip().partition(";")[0]


def run(args: argparse.Namespace) -> int:
    from mavilt_pl import recipes

    if Path(args.recipe).is_file():
        args.recipe = str(Path(args.recipe).resolve())
    recipe, out = recipes.opened(args)
    walk = recipes.Run(recipe, out, args.seed)
    if not args.dry_run and shutil.which("sbatch") is None:
        raise DataError(
            "no sbatch on the PATH: submit from a login node of a SLURM cluster (--dry-run prints "
            "the scripts; without SLURM, "
            f"mavilt run {args.recipe} does the same here)"
        )
    jobs: dict[str, str] = {}  # what is written → the job that writes it
    for step in recipe["steps"]:
        if not walk.done(step):
            text = script(step, walk.words(step, str(out)), args, out)
            path = out / "slurm" / f"{step['name']}.sbatch"
            after = [jobs[name] for name in step["reads"] if name in jobs]
            if args.dry_run:
                waits = f", after {', '.join(after)}" if after else ""
                print(f"# ---- {path}{waits}\n{text}")
                jobs[step["writes"]] = step["name"]
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, encoding="utf-8")
                jobs[step["writes"]] = _submitted(path, step["name"], after, [*jobs.values()])
                print(
                    jobs[step["writes"]], step["name"], f"after {' '.join(after)}" if after else ""
                )
        if step["name"] == args.until:
            break
    if not jobs:
        print(f"every step is done: {out}", file=sys.stderr)
    return 0
