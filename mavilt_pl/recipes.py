"""`mavilt run RECIPE --out DIR`: a recipe is a list of `mavilt` commands, and this is a small make
for them.

Each step names what it reads and writes under DIR. Words that several steps share, and what a user
may choose, stand under `let`, where later entries may name earlier ones; `--set KEY=VALUE` changes
an entry. A step with `for: {seed: [1, 2]}` stands for one step each value (of several keys: each
combination), named in its name, reads and writes. A step with `unless: KEY` is left out where
`--set KEY=` says what it would have made. `after: {recipe: R, step: S}` puts the steps of another
recipe, up to and with S, and its words before one's own. A step that is done and whose command,
configs and inputs are as they were is skipped; what a changed input made stale is deleted and made
again; a step that was broken off is run again and resumes by its own means. The record of a
finished step stands in DIR/.steps/<name>.json. `--only STEP` makes one step, beside others: so each
can be a job (`mavilt submit`).
"""

from __future__ import annotations

import argparse
import fnmatch
import gc
import hashlib
import itertools
import json
import os
import resource
import shlex
import shutil
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mavilt_pl.data.study import DataError
from mavilt_pl.lock import held
from mavilt_pl.running.queue import Left, leaving

# Verbs that keep what they have done piece by piece, and share the rest with other processes that
# were given the same.
IN_PIECES = {"prepare", "tokenize"}


def add_recipe_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help="a shipped recipe (demo) or a YAML file")
    parser.add_argument("--out", type=Path, help="folder of the run (default runs/<recipe>)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change an entry of the recipe's `let`; repeatable",
    )
    parser.add_argument("--until", help="stop after this step")
    parser.add_argument(
        "--dry-run", action="store_true", help="print what would be run, and run nothing"
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_recipe_arguments(parser)
    parser.add_argument(
        "--only",
        metavar="STEP",
        help="make this step alone, from inputs that are made (a SLURM job)",
    )
    parser.add_argument(
        "--more",
        default="",
        metavar="WORDS",
        help="with --only: words for a training that say where it runs and not what it makes, e.g. "
        "--more=--trainer.devices=4",
    )


def _read(name: str) -> tuple[Path, dict[str, Any]]:
    """A recipe's file, and its words and steps: those that it comes `after`, then its own."""
    import yaml

    from mavilt_pl.shipped import find_config

    path = find_config(
        name if Path(name).is_file() else f"recipes/{name.removesuffix('.yaml')}.yaml"
    )
    recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    steps = recipe.get("steps") if isinstance(recipe, dict) else None
    if not steps:
        raise DataError(
            f"{path}: a recipe is a mapping with a list `steps`; found {type(recipe).__name__} "
            f"without it"
        )
    let = {key: str(text) for key, text in (recipe.get("let") or {}).items()}
    if after := recipe.get("after"):
        if not isinstance(after, dict) or set(after) != {"recipe", "step"}:
            raise DataError(f"{path}: after: expected {{recipe: NAME, step: NAME}}; found {after}")
        _, first = _read(after["recipe"])
        names = [step.get("name") for step in first["steps"]]
        if after["step"] not in names:
            raise DataError(
                f"{path}: after: {after['recipe']} has no step {after['step']}; it has "
                f"{', '.join(names)}"
            )
        steps = [*first["steps"][: names.index(after["step"]) + 1], *steps]
        let = first["let"] | let
    return path, {"let": let, "steps": steps}


def load(name: str, settings: Sequence[str] = ()) -> dict[str, Any]:
    """The recipe's YAML, checked, with its settings and with each `for` written out."""
    path, recipe = _read(name)
    steps, let = recipe["steps"], recipe["let"]
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or key not in let:
            raise DataError(
                f"--set {setting}: expected KEY=VALUE, where KEY is one of "
                f"{', '.join(let) or 'none'} ({path})"
            )
        let[key] = value
    chosen = {setting.partition("=")[0] for setting in settings}
    written: list[str] = []
    spared: list[str] = []  # what left-out steps would have written
    recipe["steps"] = []
    for step in steps:
        unknown = set(step) - {"name", "run", "reads", "writes", "for", "unless"}
        if unknown or not {"name", "run", "writes"} <= set(step):
            raise DataError(
                f"{path}: step {step.get('name', '?')}: expected name, run, writes and maybe "
                f"reads, for, unless; found {', '.join(step)}"
            )
        for one in _each(step, let):
            if step.get("unless") in chosen:
                spared.append(one["writes"])
                continue
            one["reads"] = [read for read in one["reads"] if read not in spared]
            for read in one["reads"]:
                if not fnmatch.filter(written, read):
                    raise DataError(
                        f"{path}: step {one['name']} reads {read}, which no earlier step writes"
                    )
            if one["writes"] in written:
                raise DataError(
                    f"{path}: step {one['name']} writes {one['writes']}, and so does a step before "
                    f"it"
                )
            one["reads"] = [name for read in one["reads"] for name in fnmatch.filter(written, read)]
            written.append(one["writes"])
            recipe["steps"].append(one)
    return recipe


def _each(step: dict[str, Any], let: dict[str, str]) -> Iterator[dict[str, Any]]:
    """The step for every combination of its `for`: lists, or words of `let` that name values
    between commas.
    """
    keys = {
        key: values.format(**let).split(",") if isinstance(values, str) else values
        for key, values in step.get("for", {}).items()
    }
    for combination in itertools.product(*keys.values()):
        given = {key: str(value).strip() for key, value in zip(keys, combination)}
        yield {
            "name": step["name"].format(**given),
            "run": step["run"],
            "reads": [read.format(**given) for read in step.get("reads", [])],
            "writes": step["writes"].format(**given),
            "given": given,
        }


def _config_texts(words: list[str]) -> list[str]:
    from mavilt_pl.shipped import find_config

    return [
        find_config(value).read_text(encoding="utf-8")
        for word, value in itertools.pairwise(words)
        if word == "--config"
    ]


class Run:
    """One recipe being walked under one folder."""

    def __init__(self, recipe: dict[str, Any], out: Path, seed: int):
        self.recipe, self.out, self.seed = recipe, out, seed
        self.made: dict[str, str] = {}  # what is written → fingerprint of how

    def words(self, step: dict[str, Any], out: str) -> list[str]:
        known = {"out": shlex.quote(out), "seed": str(self.seed), **step["given"]}
        try:
            for name, text in self.recipe["let"].items():
                known.setdefault(name, text.format(**known))
            return shlex.split(step["run"].format(**known))
        except KeyError as error:
            raise DataError(
                f"step {step['name']}: {{{error.args[0]}}} is neither under `let` nor in `for`; "
                f"known are {', '.join(known)}"
            ) from None

    def fingerprint(self, step: dict[str, Any]) -> str:
        """Of the command (wherever the folder lies), its configs, and all that its inputs were made
        from.
        """
        words = self.words(step, "{out}")
        inputs = [self.made[name] for name in step["reads"]]
        return hashlib.sha256(
            json.dumps([words, _config_texts(words), inputs]).encode()
        ).hexdigest()

    def record(self, step: dict[str, Any]) -> Path:
        return self.out / ".steps" / f"{step['name']}.json"

    def _said(self, step: dict[str, Any], suffix: str = "") -> str | None:
        path = self.record(step).with_suffix(f".json{suffix}")
        try:
            return json.loads(path.read_text(encoding="utf-8"))["fingerprint"]
        except (OSError, ValueError, KeyError):
            return None

    def done(self, step: dict[str, Any]) -> bool:
        """Whether a step is made, and from what it would be made from now. To be asked in the order
        of the steps.
        """
        mark = self.made[step["writes"]] = self.fingerprint(step)
        return self._said(step) == mark and (self.out / step["writes"]).exists()

    def walk(self, until: str | None) -> int:
        """All steps in order; the exit status of one that was asked to leave, else 0."""
        from rich.console import Console

        count = len(self.recipe["steps"])
        for number, step in enumerate(self.recipe["steps"], start=1):
            title = f"{number}/{count} {step['name']}"
            if self.done(step):
                Console(stderr=True).print(f"[dim]{title}: done before")
            elif code := self._make(step, title):
                return code
            if step["name"] == until:
                break
        return 0

    def one(self, name: str, more: Sequence[str], first: bool) -> int:
        """One step alone; `first` is false for all processes of a job but its first, which then
        keep no record.
        """
        undone: dict[str, str] = {}
        for step in self.recipe["steps"]:
            done = self.done(step)
            if step["name"] == name:
                break
            if not done:
                undone[step["writes"]] = step["name"]
        for read in step["reads"]:
            if read in undone:
                raise DataError(
                    f"step {name} reads {self.out / read}, which is not made or stale: step "
                    f"{undone[read]} first"
                )
        if done:
            print(f"{name}: done before", file=sys.stderr)
            return 0
        return self._make(step, name, more) if first else self._dispatched(step, more)

    def _dispatched(self, step: dict[str, Any], more: Sequence[str] = ()) -> int:
        from mavilt_pl.cli import TRAINING, _dispatch

        words = self.words(step, str(self.out))
        if words[0] == "fit":  # listens to signals itself
            return _dispatch([*words, *more])
        try:
            with leaving(lambda: self._goes_on(step, words[0])):
                return _dispatch([*words, *more] if words[0] in TRAINING else words)
        except Left as left:
            print(f"mavilt: step {step['name']}: {left}", file=sys.stderr, flush=True)
            return left.code

    def _goes_on(self, step: dict[str, Any], verb: str) -> bool:
        """Whether a verb that is broken off now would go on; `prepare` reads its tables in one go
        before there are pieces.
        """
        read = self.out / step["writes"] / "parts" / "read.json"
        return verb in IN_PIECES and (verb != "prepare" or read.exists())

    def _make(self, step: dict[str, Any], title: str, more: Sequence[str] = ()) -> int:
        from rich.console import Console
        from rich.text import Text

        console, mark = Console(stderr=True), self.made[step["writes"]]
        written, words = self.out / step["writes"], self.words(step, str(self.out))
        with held(self.record(step).with_suffix(".begin")):  # others may begin the same step now
            if self._said(step, ".begun") != mark and written.exists():
                shutil.rmtree(written) if written.is_dir() else written.unlink()
            self.record(step).unlink(missing_ok=True)
            self._write(step, ".begun", {"fingerprint": mark})
        console.print(Text(title, "bold"), Text(f"$ mavilt {shlex.join(words)}", "dim"), sep="\n")
        start = time.time()
        code = self._dispatched(step, more)
        gc.collect()
        if code > 128:  # it was asked to leave, and said so
            return code
        if code:
            raise DataError(
                f"step {step['name']} ended with exit status {code}; mend what it said and run the "
                f"recipe again"
            )
        if not written.exists():
            raise DataError(f"step {step['name']} did not write {written}")
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        seconds = round(time.time() - start, 1)
        self._write(
            step,
            "",
            {"fingerprint": mark, "command": words, "seconds": seconds, "peak_memory_bytes": peak},
        )
        console.print(f"[green]{title}: {seconds:.0f} s")
        return 0

    def _write(self, step: dict[str, Any], suffix: str, facts: dict[str, Any]) -> None:
        path = self.record(step).with_suffix(f".json{suffix}")
        part = path.with_suffix(
            f".{os.getpid()}@{socket.gethostname()}.part"
        )  # no two write one file
        part.write_text(json.dumps(facts, indent=1), encoding="utf-8")
        os.replace(part, path)


def opened(args: argparse.Namespace) -> tuple[dict[str, Any], Path]:
    """The recipe of a command line, and the folder of its run."""
    recipe = load(args.recipe, args.set)
    names = [step["name"] for step in recipe["steps"]]
    for option in ("until", "only"):
        if (name := getattr(args, option, None)) and name not in names:
            raise DataError(f"--{option} {name}: no such step; the steps are {', '.join(names)}")
    return recipe, (args.out or Path("runs") / Path(args.recipe).stem).resolve()


@contextmanager
def _alone(path: Path, what: str, **kind: Any) -> Iterator[None]:
    with held(path, wait=False, **kind) as mine:
        if mine is None:
            raise DataError(f"{what}: wait for it, or choose another --out")
        yield


def run(args: argparse.Namespace) -> int:
    recipe, out = opened(args)
    walk = Run(recipe, out, args.seed)
    if args.dry_run:
        for step in recipe["steps"]:
            if args.only in (None, step["name"]):
                print("mavilt", shlex.join([*walk.words(step, str(out)), *shlex.split(args.more)]))
        return 0
    first = int(os.environ.get("SLURM_PROCID") or os.environ.get("RANK") or 0) == 0
    if args.only and not first:
        return walk.one(args.only, shlex.split(args.more), first)
    used = f"{out} is in use by another `mavilt run`"
    if args.only:
        # A step's lock is POSIX's: a job that was killed and is started again at once must not find
        # its workers holding it.
        verb = next(
            walk.words(step, str(out))[0] for step in recipe["steps"] if step["name"] == args.only
        )
        path, made = (
            out / ".steps" / f"{args.only}.lock",
            f"step {args.only} of {out} is being made by another process",
        )
        with (
            _alone(out / ".lock", used, shared=True, by_children_too=True),
            _alone(path, made, shared=verb in IN_PIECES),
        ):
            return walk.one(args.only, shlex.split(args.more), first)
    with _alone(out / ".lock", used, by_children_too=True):
        code = walk.walk(args.until)
    for page in (
        out / step["writes"] for step in recipe["steps"] if step["writes"].endswith(".html")
    ):
        if not code and page.exists():
            print(f"The page to look at: {page}", file=sys.stderr)
    return code
