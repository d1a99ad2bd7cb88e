"""A project folder: the configs of one model, and mavilt.yaml, which names places on this machine.

    root: /data                       # the one key that differs from machine to machine
    sources:
      indiana: {reader: indiana, folder: "${root}/iu-xray"}
    backbone: ${root}/models/SmolLM2-135M
    size: 256

A config in the same folder may refer to its texts as `${root}` or `${backbone}`. All other paths
are relative to the folder, so commands run in it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mavilt_pl.errors import UserError

FILE = "mavilt.yaml"
_PLACE = re.compile(r"\$\{([^}]*)\}")
GPU_MEMORY = 80  # GB, of an A100 or H100
HOW = "make a project folder: mavilt init DIR --data FOLDER_OF_A_DOWNLOAD --backbone MODEL"


@dataclass(frozen=True)
class Source:
    """A dataset of a project.

    Args:
        reader: name of the reader.
        folder: the download.
        options: of the reader.
    """

    reader: str
    folder: Path
    options: Mapping[str, str]


@dataclass(frozen=True)
class Project:
    """What mavilt.yaml says.

    Args:
        folder: of the project.
        sources: by the names of their corpora.
        size: of prepared images, in pixels.
        gpus: of a node, for jobs; 0 for CPUs.
        gpu_memory: of one GPU, in GB.
        texts: texts that configs may refer to.
    """

    folder: Path
    sources: Mapping[str, Source]
    size: int
    gpus: int
    gpu_memory: int
    texts: Mapping[str, str]

    def chosen(self, name: str | None) -> list[str]:
        """The dataset of that name; all without one.

        Raises:
            UserError: there is none of that name.
        """
        if name is None:
            return [*self.sources]
        if name not in self.sources:
            expected = ", ".join(self.sources)
            raise UserError(f"{name} is no dataset of this project; expected {expected}")
        return [name]


def find_project(folder: Path) -> Project | None:
    """The project in a folder; None if there is none.

    Raises:
        UserError: mavilt.yaml is damaged.
    """
    # Looked for here only: a project above would make commands depend on where a folder lies.
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())[:150]
        raise UserError(f"{path} is not readable ({reason}); expected YAML") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}; expected keys such as sources")
    # A misspelt key would be left out in silence.
    known = {"root", "sources", "backbone", "size", "gpus", "gpu_memory"}
    if unknown := sorted(map(str, set(content) - known)):
        raise UserError(f"{path}: unknown key {unknown[0]}; expected {', '.join(sorted(known))}")
    # Paths, names on a hub: whatever differs from machine to machine.
    texts: dict[str, str] = {}
    # In this order: a later text may refer to an earlier one.
    for key in ("root", "backbone"):
        if content.get(key) is not None:
            texts[key] = fill(str(content[key]), texts, path)
    numbers = {"size": 256, "gpus": 0, "gpu_memory": GPU_MEMORY}
    for key in numbers:
        value = content.get(key, numbers[key])
        # True and False are numbers for Python.
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise UserError(f"{path}: {key} is {value!r}; expected a whole number")
        numbers[key] = value
    sources = _sources(content.get("sources"), texts, path)
    return Project(folder, sources, texts=texts, **numbers)


def _sources(content: Any, texts: Mapping[str, str], path: Path) -> dict[str, Source]:
    """The datasets of mavilt.yaml."""
    if not isinstance(content, dict) or not content:
        raise UserError(f"{path}: sources is {content!r}; expected a dataset under each name")
    sources = {}
    for name, entry in content.items():
        if not isinstance(entry, dict) or not {"reader", "folder"} <= set(entry):
            raise UserError(
                f"{path}: sources.{name} is {entry!r}; expected reader and folder, such as "
                "{reader: indiana, folder: /data/iu}"
            )
        # Numbers and dates of YAML are texts here: options of a reader are.
        filled = {key: fill(str(value), texts, path) for key, value in entry.items()}
        reader, folder = filled.pop("reader"), filled.pop("folder")
        sources[str(name)] = Source(reader, Path(folder), filled)
    return sources


def here(command: str) -> Project:
    """The project in the working directory.

    Args:
        command: what needs it, for the message.

    Raises:
        UserError: there is none; the message says how to make one.
    """
    project = find_project(Path())
    if project is None:
        raise UserError(f"{command}: there is no {FILE} in this folder. Change to one, or {HOW}")
    return project


def fill(text: str, texts: Mapping[str, str], path: Path) -> str:
    """A text with each `${name}` replaced.

    Args:
        text: of a file.
        texts: by name.
        path: the file, for the message.

    Raises:
        UserError: a name is not known.

    >>> fill("${root}/iu", {"root": "/data"}, Path("mavilt.yaml"))
    '/data/iu'
    """

    def known(match: re.Match[str]) -> str:
        """The text of a name."""
        if match[1] not in texts:
            raise UserError(
                f"{path}: {match[0]} is not known; {FILE} has {', '.join(texts) or 'no texts'}"
            )
        return texts[match[1]]

    return _PLACE.sub(known, text)
