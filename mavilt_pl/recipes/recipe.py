"""Parse a recipe: a YAML list of `mavilt` commands, each with what it reads and writes.

    params: {size: 64, prepared: "--size {size}"}
    extends: {recipe: demo, until: backbone}
    steps:
      - name: prepare-{site}
        run: prepare indiana {out}/raw/{site} --out {out}/corpora/{site} {prepared}
        reads: [raw/{site}]
        writes: corpora/{site}
        for: {site: [a, b]}
        skip_if_set: corpus

`params` are texts that several steps share and that a user may choose with `--set KEY=VALUE`; later
entries may refer to earlier ones. `{out}` is the run's folder and `{seed}` the run's seed. `for`
repeats a step for each value (for each combination if there are several keys). `skip_if_set: KEY`
skips the step when the user supplies its output with `--set KEY=PATH`. `extends` puts the steps of
another recipe, up to and including `until`, and its params before one's own.
"""

from __future__ import annotations

import fnmatch
import itertools
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from mavilt_pl.config_files import find_config, list_recipes
from mavilt_pl.errors import UserError

TRAINING_COMMANDS = ("fit", "validate", "test")
# Commands that keep finished shards and share the rest with other processes.
SHARDED_COMMANDS = ("prepare", "tokenize")
STEP_KEYS = ("name", "run", "reads", "writes", "for", "skip_if_set")
_STEP_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class Step:
    """One command of a recipe.

    Args:
        name: letters, digits, `-`, `_` and `.`.
        command: the words of a `mavilt` command, with `{params}` to fill in.
        reads: paths that earlier steps write, relative to the run's folder.
        writes: the path that this step writes, relative to the run's folder.
        values: values of the step's `for`.
    """

    name: str
    command: str
    reads: tuple[str, ...]
    writes: str
    values: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Recipe:
    """A parsed recipe: where it comes from, its params and its steps in order."""

    path: Path
    params: Mapping[str, str]
    steps: tuple[Step, ...]

    def words(self, step: Step, out: str, seed: int) -> list[str]:
        """The step's command as words, with every param filled in.

        Raises:
            UserError: the command names a param that is not defined.
        """
        # Quoted, because the text is split into words afterwards: a folder's name may contain a
        # space.
        known = {"out": shlex.quote(out), "seed": str(seed), **step.values}
        try:
            for name, text in self.params.items():
                # In their order, so that a param may contain earlier ones; values of `for` take
                # precedence.
                known.setdefault(name, text.format(**known))
            return shlex.split(step.command.format(**known))
        except KeyError as error:
            raise UserError(
                f"{self.path}: step {step.name}: {{{error.args[0]}}} is neither in `params` nor in "
                f"`for`; known are {', '.join(known)}"
            ) from None
        except (ValueError, IndexError) as error:
            raise UserError(
                f"{self.path}: step {step.name}: the command cannot be read ({error}); write a "
                "literal brace as {{ or }}"
            ) from None

    def step(self, name: str, option: str) -> Step:
        """The step of that name.

        Raises:
            UserError: there is none; the message names the command line's `option`.
        """
        for step in self.steps:
            if step.name == name:
                return step
        names = ", ".join(step.name for step in self.steps)
        raise UserError(f"{option} {name}: no such step; the steps are {names}")


def load_recipe(name: str, settings: Sequence[str] = ()) -> Recipe:
    """Read a shipped recipe or a YAML file, apply `--set` settings, expand each `for`.

    Args:
        name: a file, or the name of a shipped recipe.
        settings: texts `KEY=VALUE`.

    Raises:
        UserError: the file is no recipe, a step is wrong, or a setting has an unknown key.
    """
    path, params, raw_steps = _read(name)
    chosen = _apply_settings(path, params, settings)
    steps: list[Step] = []
    written: list[str] = []
    skipped: list[str] = []  # what skipped steps would have written
    for raw in raw_steps:
        _check_keys(path, raw)
        for step in _expand(path, raw, params):
            # The user supplies what this step would write, by a param.
            if raw.get("skip_if_set") in chosen:
                skipped.append(step.writes)
                continue
            if step.writes in written:
                raise UserError(
                    f"{path}: step {step.name} writes {step.writes}, and so does a step before it"
                )
            reads = _resolve_reads(path, step, written, skipped)
            written.append(step.writes)
            steps.append(Step(step.name, step.command, reads, step.writes, step.values))
    return Recipe(path, params, tuple(steps))


def _read(
    name: str, extended_by: tuple[Path, ...] = ()
) -> tuple[Path, dict[str, str], list[dict[str, Any]]]:
    """A recipe's file, params and raw steps, those of the recipe that it extends first."""
    path = _find(name)
    # A circle of recipes would recurse without end.
    if path in extended_by:
        raise UserError(f"{path}: extends itself; name another recipe")
    content = _load_yaml(path)
    steps = content.get("steps")
    if not isinstance(steps, list) or not steps or not all(isinstance(s, dict) for s in steps):
        raise UserError(f"{path}: a recipe is a mapping with a list `steps` of mappings")
    own_params = content.get("params") or {}
    if not isinstance(own_params, dict):
        raise UserError(f"{path}: params: expected a mapping of names to texts")
    params = {str(key): str(text) for key, text in own_params.items()}
    extends = content.get("extends")
    if extends is None:
        return path, params, steps
    if not isinstance(extends, dict) or set(extends) != {"recipe", "until"}:
        raise UserError(f"{path}: extends: expected {{recipe: NAME, until: STEP}}; found {extends}")
    _, base_params, base_steps = _read(str(extends["recipe"]), (*extended_by, path))
    names = [str(step.get("name")) for step in base_steps]
    if extends["until"] not in names:
        raise UserError(
            f"{path}: extends: {extends['recipe']} has no step {extends['until']}; it has "
            f"{', '.join(names)}"
        )
    # What the base recipe would do next is replaced by this one's steps.
    last = names.index(extends["until"])
    return path, base_params | params, [*base_steps[: last + 1], *steps]


def _find(name: str) -> Path:
    if Path(name).is_file():
        return Path(name)
    try:
        return find_config(f"recipes/{name.removesuffix('.yaml')}.yaml")
    except UserError:
        raise UserError(
            f"recipe {name} is neither a file here nor a shipped one; shipped are: "
            f"{', '.join(list_recipes())}"
        ) from None


def _load_yaml(path: Path) -> dict[str, Any]:
    try:
        # safe_load: a recipe is somebody's file, and YAML tags can call any function.
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not plain YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise UserError(
            f"{path}: a recipe is a mapping with a list `steps`; found {type(content).__name__}"
        )
    return content


def _apply_settings(path: Path, params: dict[str, str], settings: Sequence[str]) -> set[str]:
    """Set params in place; return the keys that were set."""
    chosen = set()
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or key not in params:
            raise UserError(
                f"--set {setting}: expected KEY=VALUE; KEY is one of {', '.join(params) or 'none'} "
                f"({path})"
            )
        params[key] = value
        chosen.add(key)
    return chosen


def _check_keys(path: Path, raw: dict[str, Any]) -> None:
    # A misspelt key, such as `read`, would otherwise drop a dependency silently.
    if set(raw) - set(STEP_KEYS) or not {"name", "run", "writes"} <= set(raw):
        raise UserError(
            f"{path}: step {raw.get('name', '?')}: expected name, run, writes and optionally "
            f"reads, for, skip_if_set; found {', '.join(map(str, raw))}"
        )


def _expand(path: Path, raw: dict[str, Any], params: Mapping[str, str]) -> Iterator[Step]:
    """The step for every combination of its `for`."""
    choices: dict[str, list[str]] = {}
    for key, values in (raw.get("for") or {}).items():
        # A text names params, whose values are separated by commas.
        listed = _fill(path, raw, values, params).split(",") if isinstance(values, str) else values
        choices[key] = [str(value).strip() for value in listed]
    # Without `for` there is one combination, the empty one.
    for combination in itertools.product(*choices.values()):
        values = dict(zip(choices, combination))
        step = Step(
            name=_fill(path, raw, raw["name"], values),
            command=str(raw["run"]),
            reads=tuple(_fill(path, raw, read, values) for read in raw.get("reads") or ()),
            writes=_fill(path, raw, raw["writes"], values),
            values=values,
        )
        _check_paths(path, step)
        yield step


def _fill(path: Path, raw: dict[str, Any], text: Any, values: Mapping[str, str]) -> str:
    try:
        return str(text).format(**values)
    except (KeyError, ValueError, IndexError) as error:
        raise UserError(
            f"{path}: step {raw['name']}: {text!r} cannot be filled in ({error}); known are "
            f"{', '.join(values) or 'none'}"
        ) from None


def _check_paths(path: Path, step: Step) -> None:
    """Refuse names and outputs that would lie outside the run's folder."""
    if not _STEP_NAME.fullmatch(step.name):
        raise UserError(
            f"{path}: step name {step.name!r}: expected letters, digits, dashes, underscores and "
            "dots"
        )
    # A stale output is deleted with all that is in it, so it must be the run's own.
    parts = Path(step.writes).parts
    if not parts or Path(step.writes).is_absolute() or ".." in parts or parts[0] == ".steps":
        raise UserError(
            f"{path}: step {step.name} writes {step.writes!r}; expected a relative path inside the "
            "run's folder"
        )


def _resolve_reads(
    path: Path, step: Step, written: Sequence[str], skipped: Sequence[str]
) -> tuple[str, ...]:
    """Patterns that a step reads as the paths that earlier steps write."""
    resolved: list[str] = []
    for pattern in step.reads:
        if pattern in skipped:
            continue
        # Only earlier steps: the order of the file is the order of the run, and circles cannot
        # arise.
        matching = fnmatch.filter(written, pattern)
        if not matching:
            raise UserError(
                f"{path}: step {step.name} reads {pattern}, which no earlier step writes"
            )
        resolved += matching
    return tuple(resolved)
