"""`mavilt run RECIPE --out DIR`: run the steps of a recipe."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from mavilt_pl.project import here

MAY_STAND_ALONE = True  # in a project folder the verb needs no words


def add_recipe_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments that `mavilt run` and `mavilt submit` share."""
    parser.add_argument(
        "recipe",
        nargs="?",
        help="a shipped recipe (demo) or a YAML file (default in a project folder: recipe.yaml)",
    )
    parser.add_argument("--out", type=Path, help="folder of the run (default runs/<recipe>)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change one of the recipe's `params`; repeatable",
    )
    parser.add_argument("--until", help="stop after this step")
    parser.add_argument("--dry-run", action="store_true", help="print the commands, run nothing")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `mavilt run`."""
    add_recipe_arguments(parser)
    parser.add_argument(
        "--only", metavar="STEP", help="run this step alone, from finished inputs (a SLURM job)"
    )
    parser.add_argument(
        "--extra-args",
        default="",
        metavar="WORDS",
        help="with --only: words added to a training that say where it runs and not what it "
        "computes, e.g. --extra-args=--trainer.devices=4",
    )


def complete_recipe(args: argparse.Namespace, verb: str) -> None:
    """In a project folder, take its recipe and the folder itself where none are named.

    Raises:
        UserError: no recipe is named, and this is no project folder.
    """
    if args.recipe is None:
        args.recipe = str(here(f"{verb} without a recipe").folder / "recipe.yaml")
        args.out = args.out or Path()


def run_folder(args: argparse.Namespace) -> Path:
    """The folder of the run, absolute."""
    return (args.out or Path("runs") / Path(args.recipe).stem).resolve()


def run(args: argparse.Namespace) -> int:
    """Run the recipe, one step, or print the commands."""
    from mavilt_pl.cli import execute
    from mavilt_pl.recipes.recipe import load_recipe
    from mavilt_pl.recipes.runner import RecipeRun, run_recipe, run_single_step

    complete_recipe(args, "run")
    # A misspelt step is refused before anything runs, not hours later.
    recipe, out = load_recipe(args.recipe, args.set), run_folder(args)
    for option in ("until", "only"):
        if name := getattr(args, option):
            recipe.step(name, f"--{option}")
    # `execute` is handed in, so that recipes need not import the command line.
    run = RecipeRun(recipe, out, args.seed, execute)
    # One word of the shell holds several words of the command.
    extra = shlex.split(args.extra_args)
    if args.dry_run:
        for step in recipe.steps:
            if args.only in (None, step.name):
                print("mavilt", shlex.join([*run.words(step), *extra]))
        return 0
    # A SLURM job runs one step, and the next job the next one.
    if args.only:
        return run_single_step(run, args.only, extra)
    status = run_recipe(run, args.until)
    if status == 0:
        for step in recipe.steps:
            page = out / step.writes
            # The page is what a person wants to see; it is named once more, below all other output.
            if page.suffix == ".html" and page.exists():
                print(f"Open the page: {page}", file=sys.stderr)
    return status
