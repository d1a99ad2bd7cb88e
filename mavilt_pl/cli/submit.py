"""`mavilt submit RECIPE --partition P --time T`: submit the steps of a recipe as SLURM jobs."""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from mavilt_pl.cli.run import add_recipe_arguments, complete_recipe, run_folder
from mavilt_pl.errors import UserError
from mavilt_pl.project import find_project

if TYPE_CHECKING:
    from mavilt_pl.recipes.slurm import JobOptions

MAY_STAND_ALONE = True  # in a project folder the verb needs no words


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `mavilt submit`."""
    add_recipe_arguments(parser)
    parser.add_argument("--partition", required=True, help="partition of the cluster")
    parser.add_argument(
        "--time", required=True, help="time limit of each job in SLURM's notation: 12:00:00, 1-0"
    )
    parser.add_argument(
        "--gpus", type=int, help="GPUs of a node (default: the project's, or 0: CPUs only)"
    )
    parser.add_argument("--nodes", type=int, default=1, help="nodes of a training or a test")
    parser.add_argument(
        "--tasks", type=int, default=1, help="processes of a node without GPUs (default 1)"
    )
    parser.add_argument(
        "--array",
        type=int,
        default=1,
        metavar="N",
        help="jobs that share the work of `prepare` and `tokenize` (default 1)",
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
        help="one more #SBATCH line, e.g. --sbatch=--account=abc; repeatable",
    )


def run(args: argparse.Namespace) -> int:
    """Submit a job for each unfinished step, or print the scripts."""
    from mavilt_pl.cli import execute
    from mavilt_pl.recipes.recipe import load_recipe
    from mavilt_pl.recipes.runner import RecipeRun
    from mavilt_pl.recipes.slurm import render_job_script, submit_job

    complete_recipe(args, "submit")
    if args.gpus is None:
        project = find_project(Path())
        args.gpus = 0 if project is None else project.gpus
    # A job may start in another folder.
    if Path(args.recipe).is_file():
        args.recipe = str(Path(args.recipe).resolve())
    recipe, out = load_recipe(args.recipe, args.set), run_folder(args)
    if args.until:
        recipe.step(args.until, "--until")
    # Refused before any script is written.
    if not args.dry_run and shutil.which("sbatch") is None:
        raise UserError(
            "no sbatch on the PATH: submit from a login node of a SLURM cluster (--dry-run prints "
            f"the scripts; without SLURM, mavilt run {args.recipe} does the same here)"
        )
    options = _job_options(args)
    recipe_run = RecipeRun(recipe, out, args.seed, execute)
    jobs: dict[str, str] = {}  # by output: the job that writes it
    for step in recipe.steps:
        # Fingerprints of later steps need those of all earlier ones, so `is_done` is asked for
        # each.
        if not recipe_run.is_done(step):
            text = render_job_script(step, recipe_run.words(step), options, out)
            script = out / "slurm" / f"{step.name}.sbatch"
            # Inputs that are finished already have no job to wait for.
            after = [jobs[read] for read in step.reads if read in jobs]
            if args.dry_run:
                waits = f", after {', '.join(after)}" if after else ""
                print(f"# ---- {script}{waits}\n{text}")
                jobs[step.writes] = step.name
            else:
                script.parent.mkdir(parents=True, exist_ok=True)
                script.write_text(text, encoding="utf-8")
                # All jobs are queued at once: SLURM itself starts each when its inputs are done.
                jobs[step.writes] = submit_job(script, step.name, after, [*jobs.values()])
                waits = f"after {' '.join(after)}" if after else ""
                print(jobs[step.writes], step.name, waits)
        if step.name == args.until:
            break
    if not jobs:
        print(f"every step is done: {out}", file=sys.stderr)
    return 0


def _job_options(args: argparse.Namespace) -> JobOptions:
    from mavilt_pl.recipes.slurm import JobOptions

    return JobOptions(
        recipe=args.recipe,
        partition=args.partition,
        time=args.time,
        seed=args.seed,
        settings=tuple(args.set),
        gpus=args.gpus,
        nodes=args.nodes,
        tasks=args.tasks,
        array=args.array,
        cpus=args.cpus,
        warning=args.warning,
        sbatch=tuple(args.sbatch),
    )
