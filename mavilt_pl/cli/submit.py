"""`mavilt submit RECIPE --partition P --time T`: submit the steps of a recipe as SLURM jobs."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mavilt_pl.cli.run import add_recipe_arguments, complete_recipe, run_folder
from mavilt_pl.errors import UserError
from mavilt_pl.project import GPU_MEMORY, find_project

if TYPE_CHECKING:
    from mavilt_pl.recipes.recipe import Step
    from mavilt_pl.recipes.runner import RecipeRun
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
    parser.add_argument(
        "--gpu-memory",
        type=int,
        metavar="GB",
        help="of one GPU, to refuse what cannot fit (default: the project's, or 80)",
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
    project = find_project(Path())
    if args.gpus is None:
        args.gpus = 0 if project is None else project.gpus
    if args.gpu_memory is None:
        args.gpu_memory = GPU_MEMORY if project is None else project.gpu_memory
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
    steps = _unfinished(recipe_run, args.until)
    strategies = _strategies(recipe_run, steps, args)
    jobs: dict[str, str] = {}  # by output: the job that writes it
    for step in steps:
        text = render_job_script(
            step, recipe_run.words(step), options, out, strategies.get(step.name)
        )
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
    if not jobs:
        print(f"every step is done: {out}", file=sys.stderr)
    return 0


def _unfinished(recipe_run: RecipeRun, until: str | None) -> list[Step]:
    """The steps that are to be submitted, in their order."""
    unfinished = []
    for step in recipe_run.recipe.steps:
        # Asked for each: fingerprints of later steps need those of all earlier ones.
        if not recipe_run.is_done(step):
            unfinished.append(step)
        if step.name == until:
            break
    return unfinished


def _strategies(
    recipe_run: RecipeRun, steps: Sequence[Step], args: argparse.Namespace
) -> dict[str, str | None]:
    """The strategy of each training by its memory; refused before any job is in the queue."""
    strategies: dict[str, str | None] = {}
    # A plan is of GPUs; a host's memory is rarely short.
    if not args.gpus:
        return strategies
    from mavilt_pl.cli.job_memory import strategy_that_fits

    for step in steps:
        words = recipe_run.words(step)
        if words[0] == "fit":
            strategies[step.name] = strategy_that_fits(
                step.name, words, args.gpus * args.nodes, args.gpu_memory
            )
    return strategies


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
