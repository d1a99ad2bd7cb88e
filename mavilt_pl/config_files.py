"""The configs and recipes that come with the package, and configs that extend them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from mavilt_pl.errors import UserError
from mavilt_pl.project import FILE, HOW, fill, find_project

_PACKAGE = Path(__file__).parent
# In a wheel the configs lie inside the package; in a checkout they lie next to it.
CONFIGS = _PACKAGE / "configs"
if not CONFIGS.is_dir():
    CONFIGS = _PACKAGE.parent / "configs"
EXTENDS = "extends"


def find_config(name: str) -> Path:
    """Path of a local config file, or of a shipped one; `.yaml` may be left out.

    Raises:
        UserError: there is no such file.
    """
    # A user's own file takes precedence over a shipped one of the same name.
    for path in (Path(name), CONFIGS / name, CONFIGS / f"{name}.yaml"):
        if path.is_file():
            return path
    raise UserError(
        f"config {name} is neither a file here nor a shipped one; shipped are: "
        f"{', '.join(list_configs())}. Or {HOW}"
    )


def list_configs() -> list[str]:
    """Names of the shipped configs and recipes."""
    return sorted(str(path.relative_to(CONFIGS)) for path in CONFIGS.rglob("*.yaml"))


def list_recipes() -> list[str]:
    """Names of the shipped recipes."""
    return sorted(path.stem for path in (CONFIGS / "recipes").glob("*.yaml"))


def config_text(path: Path) -> str | None:
    """A config merged with the shipped one that it extends, as YAML; None if it stands alone.

    Mappings are merged key by key, everything else is replaced; a key that ends in + appends to a
    list. `${…}` is filled in from the folder's mavilt.yaml.

    Raises:
        UserError: the file is no YAML, extends no shipped config, names an unknown text, or
            belongs to a project of another folder than the working directory.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); expected a config in YAML") from None
    # Left to Lightning's parser, whose messages name the file.
    if f"{EXTENDS}:" not in text and "${" not in text:
        return None
    project = find_project(path.parent)
    if project is not None:
        # The paths in it are relative to its folder.
        if path.parent.resolve() != Path.cwd():
            raise UserError(f"{path} belongs to a project: run the command in {path.parent}")
        text = fill(text, project.texts, path)
    elif "${" in text:
        raise UserError(f"{path} refers to a {FILE}, which is not beside it; {HOW}")
    content = _mapping(text, path)
    # Only shipped configs: the local one has the same name.
    name = content.pop(EXTENDS, None)
    if name is not None:
        base = CONFIGS / str(name)
        if not base.is_file():
            shipped = ", ".join(list_configs())
            raise UserError(f"{path}: {EXTENDS} {name} is no shipped config; shipped are {shipped}")
        content = merge(_mapping(base.read_text(encoding="utf-8"), base), content)
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def _mapping(text: str, path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())[:150]
        raise UserError(f"{path} is not readable ({reason}); expected a config in YAML") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}; expected a config of keys")
    return content


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A mapping with the changes of another.

    >>> merge({"a": {"b": 1, "c": [1]}}, {"a": {"b": 2, "c+": [3]}})
    {'a': {'b': 2, 'c': [1, 3]}}
    """
    merged = dict(base)
    for key, value in changes.items():
        # A list of callbacks or findings is one decision, so it is replaced as a whole.
        if isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
            merged[key] = merge(merged[key], value)
        elif isinstance(key, str) and key.endswith("+"):
            merged[key[:-1]] = [*(merged.get(key[:-1]) or []), *value]
        else:
            merged[key] = value
    return merged
