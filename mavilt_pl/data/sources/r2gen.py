"""The annotation.json with which R2Gen and most later work read IU X-ray and MIMIC-CXR."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from mavilt_pl.data.records import SPLITS, Image, Split, Study, View
from mavilt_pl.data.sources import Reject
from mavilt_pl.data.sources.fields import parse_view, path_inside
from mavilt_pl.data.sources.tables import read_json
from mavilt_pl.errors import Rejected, UserError

_INDIANA_ID = re.compile(r"CXR\d+(_|$)")  # such as CXR2384_IM-0942


def read(root: Path, reject: Reject) -> Iterator[Study]:
    """Yield the studies in the order of the file, with its splits.

    The report counts as findings. A view is that of the entry's `view`, a name or a list of them
    with one for each image, and else UNKNOWN. The file of MIMIC-CXR lists an entry an image: the
    entries of one study become one record with all its images.

    Args:
        root: the folder with annotation.json and images/.
        reject: called for everything that is not yielded.

    Raises:
        UserError: the annotation is missing or damaged.
    """
    # One file names all studies, images and splits.
    path = root / "annotation.json"
    studies: dict[tuple[Split, str], Study] = {}
    # The split is part of the key: a study listed in two splits is rejected by `read_source`.
    for split, entry in entries(path):
        try:
            study = _study(entry, split, root)
        except Rejected as reason:
            name = str(entry.get("study_id", entry.get("id", "")))[:80]
            reject(name, str(path), "read", str(reason))
            continue
        # Further entries of a study bring its further images.
        first = studies.setdefault((split, study.study), study)
        if first is study:
            continue
        problem = _merge_problem(first, study)
        if problem:
            reason_ = f"a second entry of study {study.study} {problem}; the first is kept"
            reject(study.study, str(study.images[0].path), "image", reason_)
        else:
            studies[split, study.study] = replace(first, images=first.images + study.images)
    yield from studies.values()


def entries(path: Path) -> Iterator[tuple[Split, dict[str, Any]]]:
    """Yield each entry with its split: train, then val, then test.

    Raises:
        UserError: the file is no annotation of R2Gen, or is empty.
    """
    # Its three lists are the splits.
    groups = read_json(path, dict)
    for split in SPLITS:
        if not isinstance(groups.get(split), list):
            raise UserError(
                f"{path} has no list {split!r} (found {', '.join(groups) or 'nothing'}): is it "
                "R2Gen's file?"
            )
    if not any(groups[split] for split in SPLITS):
        raise UserError(f"{path} has no entries: the annotation is empty, download it again")
    for split in SPLITS:
        for number, entry in enumerate(groups[split]):
            if not isinstance(entry, dict):
                raise UserError(
                    f"{path}: {split}[{number}] is a {type(entry).__name__}; expected an object "
                    "with an id"
                )
            yield split, entry


def _study(entry: dict[str, Any], split: Split, root: Path) -> Study:
    name, text = entry.get("id"), entry.get("report")
    if not isinstance(name, str) or not name or not isinstance(text, str):
        raise Rejected(
            f"id {str(name)[:80]!r}, report {str(text)[:80]!r}; expected two texts: correct the "
            "annotation"
        )
    images = []
    paths = _image_paths(entry)
    for path, view in zip(paths, _views(entry, len(paths))):
        # With its folder: the files are called 0.png and 1.png in every study.
        key = Path(path).with_suffix("").as_posix()
        images.append(Image(path_inside(root / "images", path), view, key))
    source, patient = _origin(entry, name)
    return Study(
        source=source,
        patient=patient,
        study=str(entry.get("study_id", name)),
        split=split,
        images=tuple(images),
        findings=text.strip(),
    )


def _origin(entry: dict[str, Any], name: str) -> tuple[str, str]:
    """The dataset that an entry is from, and its patient.

    The two official files differ in their keys. Other people's files follow either; a patient
    without a `subject_id` is then the entry itself.
    """
    if {"subject_id", "study_id"} <= entry.keys():
        return "mimic-cxr", str(entry["subject_id"])
    if _INDIANA_ID.match(name):
        return "indiana", name.split("_")[0]
    return "r2gen", str(entry.get("subject_id", name))


def _views(entry: dict[str, Any], num_images: int) -> list[View]:
    """The view of each image."""
    named = entry.get("view")
    # One name counts for all images of the entry.
    names = named if isinstance(named, list) else [named] * num_images
    if len(names) != num_images:
        raise Rejected(
            f"view lists {len(names)} names for {num_images} images; expected one for each: "
            "correct the annotation"
        )
    return [parse_view(str(name or "")) for name in names]


def _image_paths(entry: dict[str, Any]) -> list[str]:
    paths = entry.get("image_path")
    # MIMIC-CXR and IU X-ray have lists; some files of others have a single name.
    if isinstance(paths, str):
        paths = [paths]
    if not isinstance(paths, list) or not paths or not all(isinstance(p, str) for p in paths):
        raise Rejected(
            f"image_path {str(paths)[:80]!r}; expected a list of file names: correct the annotation"
        )
    return paths


def _merge_problem(first: Study, second: Study) -> str:
    """Why two entries of one study cannot become one record; "" if they can."""
    # Another report under the same id: which one is right, nobody can say.
    if first.patient != second.patient or first.findings != second.findings:
        return "has another report or patient"
    # Twice the same image would count twice in training.
    known = {image.key for image in first.images}
    if any(image.key in known for image in second.images):
        return "lists an image twice"
    return ""
