"""The studies of a call: files, folders, patterns and images in memory, with one or more views."""

from __future__ import annotations

import glob
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mavilt_pl.data.image_objects import ImageObject, describe
from mavilt_pl.data.records import Side
from mavilt_pl.errors import UserError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".dcm", ".dicom")
PATTERN = "*?["  # characters of a glob
Radiograph = str | Path | ImageObject
StudyImages = Radiograph | Mapping[Side, Radiograph]  # the image of a study, or each view's


def as_list(studies: Sequence[StudyImages] | StudyImages) -> tuple[list[StudyImages], bool]:
    """The studies, with folders and patterns replaced by their images, and whether it is one.

    Raises:
        UserError: a folder or a pattern holds no image.
    """
    # A string is a sequence of letters, and an array one of rows: both are one image.
    if not isinstance(studies, (list, tuple)):
        if not isinstance(studies, (str, Path)) or not _is_collection(studies):
            return [studies], True  # type: ignore[list-item]
        studies = [studies]
    # Files, folders and views may be mixed in one list.
    expanded: list[StudyImages] = []
    for study in studies:
        if isinstance(study, (str, Path)) and _is_collection(study):
            expanded += _images_of(study)
        else:
            expanded.append(study)
    return expanded, False


def _is_collection(path: str | Path) -> bool:
    # A file may have such characters in its name.
    is_pattern = any(letter in str(path) for letter in PATTERN)
    return Path(path).is_dir() or (is_pattern and not Path(path).exists())


def _images_of(path: str | Path) -> list[StudyImages]:
    """The images of a folder, or the files of a pattern, sorted by name."""
    if not Path(path).is_dir():
        # Sorted: the order of a folder differs from machine to machine.
        matches = sorted(glob.glob(str(path), recursive=True))
        files: list[StudyImages] = [name for name in matches if Path(name).is_file()]
        if not files:
            raise UserError(f"{path}: found no file of this pattern; name the images")
        return files
    # By their names: a folder also holds reports and tables.
    inside = [str(p) for p in sorted(Path(path).iterdir()) if p.suffix.lower() in IMAGE_SUFFIXES]
    if not inside:
        raise UserError(
            f"{path}: found a folder without any {', '.join(IMAGE_SUFFIXES)}; name the images"
        )
    return [*inside]


def name_of(study: StudyImages) -> Any:
    """A study's file, or what describes an image in memory; of each view if it has several.

    >>> name_of("a.png"), name_of({"frontal": Path("a.png"), "lateral": "b.png"})
    ('a.png', {'frontal': 'a.png', 'lateral': 'b.png'})
    """
    if isinstance(study, Mapping):
        return {view: name_of(image) for view, image in study.items()}
    if isinstance(study, (str, Path)):
        return str(study)
    return describe(study)
