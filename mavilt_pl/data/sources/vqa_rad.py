"""VQA-RAD: clinicians' questions about radiographs; of its three organs only the chest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mavilt_pl.data.questions import YES_NO
from mavilt_pl.data.records import Image, Question, Study
from mavilt_pl.data.sources import Reject
from mavilt_pl.data.sources.fields import hash_split, path_inside
from mavilt_pl.data.sources.tables import read_json
from mavilt_pl.errors import Rejected, UserError

_FOLDERS = ("VQA_RAD Image Folder", "images")


def read(root: Path, reject: Reject) -> Iterator[Study]:
    """Yield one study an image, in the order of the file, with all questions about it.

    Split 70 / 10 / 20 by image: the official test questions share their images with the training
    questions, so that split cannot be kept by patient.

    Args:
        root: the folder with the JSON list and the image folder.
        reject: called for everything that is not yielded.

    Raises:
        UserError: the list or the folder is missing or damaged.
    """
    file, folder = _find_files(root)
    # An image is a study here: the dataset does not say which images share a patient.
    for name, items in _group_items(file, reject).items():
        study = Path(name).stem
        try:
            _check_organ(items)
            image = Image(path_inside(folder, name), "UNKNOWN", study)
        except Rejected as reason:
            reject(study, name, "read", str(reason))
            continue
        # A question that cannot be used costs itself, not its image.
        questions = []
        for item in items:
            try:
                questions.append(_question(item))
            except Rejected as reason:
                reject(study, name, "question", str(reason))
        split = hash_split("vqa-rad", study)
        yield Study("vqa-rad", study, study, split, (image,), questions=tuple(questions))


def _find_files(root: Path) -> tuple[Path, Path]:
    """The JSON list and the image folder."""
    files = sorted(root.glob("*.json"))
    # The folder's name differs between the two downloads.
    folders = [root / name for name in _FOLDERS if (root / name).is_dir()]
    if len(files) != 1 or not folders:
        raise UserError(
            f"{root}: {len(files)} *.json and {'an' if folders else 'no'} image folder; expected "
            f"one JSON list and {' or '.join(repr(name) for name in _FOLDERS)}"
        )
    return files[0], folders[0]


def _group_items(file: Path, reject: Reject) -> dict[str, list[dict[str, Any]]]:
    """Questions by the name of their image."""
    by_image: dict[str, list[dict[str, Any]]] = {}
    for number, item in enumerate(read_json(file, list)):
        name = item.get("image_name") if isinstance(item, dict) else None
        if not isinstance(name, str) or not name:
            reason = f"item {number}: no image_name; expected an object that names its image"
            reject("", str(file), "question", reason)
            continue
        by_image.setdefault(name, []).append(item)
    if not by_image:
        raise UserError(f"{file} names no image: the list is empty, download it again")
    return by_image


def _text(item: Mapping[str, Any], key: str) -> str:
    # A number becomes a text too, also 0; a missing value is blank.
    value = item.get(key)
    return "" if value is None else str(value).strip()


def _check_organ(items: list[dict[str, Any]]) -> None:
    organs = {_text(item, "image_organ").upper() for item in items}
    # Head and abdomen are CT and MR in this dataset; the model knows radiographs.
    if organs != {"CHEST"}:
        raise Rejected(f"image_organ {' and '.join(sorted(organs))}; only CHEST is read")


def _question(item: dict[str, Any]) -> Question:
    question, answer = _text(item, "question"), _text(item, "answer")
    kind = _text(item, "answer_type").upper()
    if not question or not answer or kind not in ("OPEN", "CLOSED"):
        raise Rejected(
            f"question {question!r}, answer {answer!r}, answer_type {kind!r}; expected texts and "
            "OPEN or CLOSED"
        )
    topic = _text(item, "question_type").lower() or kind.lower()
    # Other closed answers ("left") name no alternatives, so their questions count as open.
    if kind == "CLOSED" and answer.lower() in YES_NO:
        return Question(question, answer.lower(), topic, YES_NO)
    return Question(question, answer, topic)
