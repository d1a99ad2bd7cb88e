"""The annotation.json with which R2Gen and most work after it reads IU X-ray and MIMIC-CXR, and its
`images/`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mavilt_pl.data.records import SPLITS, Image, Split, Study
from mavilt_pl.data.sources import Reject, inside, read_json
from mavilt_pl.errors import Rejected, UserError


def entries(path: Path) -> Iterator[tuple[Split, dict[str, Any]]]:
    """Each entry with its split: train, then val, then test. Raises `UserError` for a file that is
    no annotation.
    """
    groups = read_json(path, dict)
    for split in SPLITS:
        if not isinstance(groups.get(split), list):
            raise UserError(
                f"{path} has no list {split!r} (found {', '.join(groups) or 'nothing'}): is it "
                f"R2Gen's file?"
            )
    if not any(groups[split] for split in SPLITS):
        raise UserError(f"{path} has no entries: the annotation is empty, download it again")
    for split in SPLITS:
        for number, entry in enumerate(groups[split]):
            if not isinstance(entry, dict):
                raise UserError(
                    f"{path}: {split}[{number}] is a {type(entry).__name__}; expected an object "
                    f"with an id"
                )
            yield split, entry


def _study(entry: dict[str, Any], split: Split, root: Path) -> Study:
    name, text, paths = entry.get("id"), entry.get("report"), entry.get("image_path")
    if not isinstance(name, str) or not name or not isinstance(text, str):
        raise Rejected(
            f"id {str(name)[:80]!r}, report {str(text)[:80]!r}; expected two texts: correct the "
            f"annotation"
        )
    paths = [paths] if isinstance(paths, str) else paths
    if not (isinstance(paths, list) and paths and all(isinstance(path, str) for path in paths)):
        raise Rejected(
            f"image_path {str(paths)[:80]!r}; expected a list of file names: correct the annotation"
        )
    mimic = "subject_id" in entry
    return Study(
        source="mimic-cxr" if mimic else "indiana",
        patient=str(entry["subject_id"]) if mimic else name.split("_")[0],
        study=str(entry.get("study_id", name)),
        split=split,
        images=tuple(
            Image(inside(root / "images", path), "UNKNOWN", Path(path).with_suffix("").as_posix())
            for path in paths
        ),
        findings=text.strip(),
    )


def read(root: Path, reject: Reject) -> Iterator[Study]:
    """Studies in the order of the file, with its splits; the report is the findings, every view is
    UNKNOWN.

    MIMIC-CXR's flavour lists an entry an image: the entries of one study become one record with all
    its images.
    """
    path = root / "annotation.json"
    studies: dict[tuple[Split, str], Study] = {}
    for split, entry in entries(path):
        try:
            study = _study(entry, split, root)
        except Rejected as reason:
            reject(
                str(entry.get("study_id", entry.get("id", "")))[:80], str(path), "read", str(reason)
            )
            continue
        first = studies.setdefault((split, study.study), study)
        if first is study:
            continue
        keys = {image.key for image in first.images}
        new = tuple(image for image in study.images if image.key not in keys)
        same = first.patient == study.patient and first.findings == study.findings
        if same and len(new) == len(study.images):
            studies[split, study.study] = Study(**{**vars(first), "images": first.images + new})
        else:
            why = "lists an image twice" if same else "has another report or patient"
            reason_ = f"a second entry of study {study.study} {why}; the first is kept"
            reject(study.study, str(study.images[0].path), "image", reason_)
    yield from studies.values()
