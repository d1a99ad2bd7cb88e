"""Write a project folder: mavilt.yaml, the configs of every training, a recipe, and a README."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from mavilt_pl.config_files import CONFIGS
from mavilt_pl.data.survey import Survey
from mavilt_pl.errors import UserError
from mavilt_pl.parallel.atomic_write import atomic_write_text
from mavilt_pl.project import FILE, Source

TEMPLATES = CONFIGS / "project"
# The findings of CheXpert's tables that the labeller of reports reads too.
FINDINGS = (
    *("atelectasis", "cardiomegaly", "consolidation", "edema", "fracture", "lung lesion"),
    *("lung opacity", "pleural effusion", "pneumonia", "pneumothorax", "support devices"),
)


@dataclass(frozen=True)
class Dataset:
    """A dataset of a new project.

    Args:
        name: of its corpus.
        source: where it is.
        survey: what it brings.
    """

    name: str
    source: Source
    survey: Survey


@dataclass(frozen=True)
class Plan:
    """What a user chose.

    Args:
        backbone: a folder, or a name on the hub.
        size: of prepared images, in pixels.
        gpus: of a node; 0 for CPUs.
        smoke: a few steps of each training, to see that the chain works.
        shipped: the config of `configs/backbones` that names the backbone; empty for none.
        tuning: that config's.
    """

    backbone: str
    size: int
    gpus: int
    smoke: bool
    shipped: str = ""
    tuning: Mapping[str, Any] = field(default_factory=dict)


def shipped_backbone(name: str) -> tuple[str, dict[str, Any]]:
    """Name on the hub and tuning of a config of `configs/backbones`.

    >>> shipped_backbone("phi-4-mini")[0]
    'microsoft/Phi-4-mini-instruct'
    """
    # The config is an overlay of `fit`; a project takes what it says apart.
    path = CONFIGS / "backbones" / f"{name}.yaml"
    settings = yaml.safe_load(path.read_text(encoding="utf-8"))["model"]["init_args"]
    return settings["backbone"], settings.get("tuning", {})


def write_project(folder: Path, datasets: Sequence[Dataset], plan: Plan) -> list[Path]:
    """Write the files of a project.

    Args:
        folder: new, empty, or without files of these names.
        datasets: at least one with texts.
        plan: sizes and places.

    Returns:
        The files.

    Raises:
        UserError: a file is there already, or no dataset has texts.
    """
    files = _rendered(folder, _content(datasets, plan))
    # All are looked for before the first is written.
    for path in files:
        if path.exists():
            raise UserError(
                f"{path} is there already, and is a user's file from now on: name a new folder, or "
                "move it away"
            )
    folder.mkdir(parents=True, exist_ok=True)
    # mavilt.yaml last: a folder with it is a whole project.
    for path in sorted(files, key=lambda path: path.name == FILE):
        atomic_write_text(path, files[path])
    return sorted(files)


def _content(datasets: Sequence[Dataset], plan: Plan) -> dict[str, Any]:
    """What the templates show.

    Raises:
        UserError: no dataset has texts.
    """
    texts = [dataset for dataset in datasets if dataset.survey.texts]
    # A tokenizer alone is no model of the paper, and the user has named a backbone.
    if not texts:
        names = ", ".join(str(dataset.source.folder) for dataset in datasets)
        raise UserError(
            f"no reports in {names}: a language model cannot be trained. Name a dataset with "
            "reports too; MIMIC-CXR-JPG has its reports apart (--reports mimic-cxr-reports.zip)"
        )
    known: set[str] = set()
    for dataset in datasets:
        known.update(dataset.survey.labels)
    # In one order, since the columns of labels have no names at run time.
    findings = [name for name in FINDINGS if name in known]
    labelled = [data for data in datasets if set(data.survey.labels) & set(findings)]
    # Questions come from labels, so that labelled images without reports are of use in Stage 2.
    instructed = [data for data in datasets if data in texts or data in labelled]
    root, places = _common_root(datasets, plan.backbone)
    return {
        "names": [dataset.name for dataset in datasets],
        "texts": [dataset.name for dataset in texts],
        "labelled": [dataset.name for dataset in labelled],
        "instructed": [dataset.name for dataset in instructed],
        "datasets": datasets,
        "findings": findings,
        "root": root,
        "places": places,
        "plan": plan,
    }


def _rendered(folder: Path, content: Mapping[str, Any]) -> dict[Path, str]:
    """The text of each file of a project."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        # An undefined name is an error, not an empty place in a config.
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    files = {}
    for template in sorted(TEMPLATES.glob("*.jinja")):
        name = template.name.removesuffix(".jinja")
        # Without labels there is no classifier.
        if content["findings"] or name not in ("encoder.yaml", "judge.yaml"):
            files[folder / name] = environment.get_template(template.name).render(**content)
    return files


def _common_root(datasets: Sequence[Dataset], backbone: str) -> tuple[str, Mapping[str, str]]:
    """The folder above all places, and each place relative to it as mavilt.yaml names it."""
    # Absolute first: a user names them relative to where `init` runs, not to the project.
    places = {}
    for dataset in datasets:
        places[dataset.name] = str(dataset.source.folder.resolve())
        for option, value in dataset.source.options.items():
            # An option may be a path or a word.
            if Path(value).exists():
                places[f"{dataset.name}.{option}"] = str(Path(value).resolve())
    # A name on the hub is the same everywhere.
    if Path(backbone).exists():
        places["backbone"] = str(Path(backbone).resolve())
    # Their parents, since a single place would be its own common folder.
    parents = [str(Path(place).parent) for place in places.values()]
    root = os.path.commonpath(parents)
    return root, {
        name: f"${{root}}/{os.path.relpath(place, root)}" for name, place in places.items()
    }
