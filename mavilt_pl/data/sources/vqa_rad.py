"""VQA-RAD: clinicians' questions about radiographs; of its three organs only the chest."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mavilt_pl.data.questions import YES_NO
from mavilt_pl.data.records import Image, Question, Study
from mavilt_pl.data.sources import Reject, hash_split, inside, read_json
from mavilt_pl.errors import Rejected, UserError

_FOLDERS = ("VQA_RAD Image Folder", "images")


def _question(item: dict[str, Any]) -> Question:
    """Raises `Rejected` for an item without a question, an answer or a known answer_type."""
    question, answer = (str(item.get(name) or "").strip() for name in ("question", "answer"))
    kind = str(item.get("answer_type") or "").strip().upper()
    if not question or not answer or kind not in ("OPEN", "CLOSED"):
        raise Rejected(
            f"question {question!r}, answer {answer!r}, answer_type {kind!r}; expected texts and "
            f"OPEN or CLOSED"
        )
    closed = (
        kind == "CLOSED" and answer.lower() in YES_NO
    )  # other closed answers ("left") name no alternatives
    topic = str(item.get("question_type") or "").strip().lower() or kind.lower()
    return Question(question, answer.lower() if closed else answer, topic, YES_NO if closed else ())


def read(root: Path, reject: Reject) -> Iterator[Study]:
    """One study an image, in the order of the file, with all questions about it.

    70 / 10 / 20 by image: the official test questions share their images with the training
    questions, so that split cannot be kept by patient.
    """
    files = sorted(root.glob("*.json"))
    folder = next((root / name for name in _FOLDERS if (root / name).is_dir()), None)
    if len(files) != 1 or folder is None:
        raise UserError(
            f"{root}: {len(files)} *.json and {'no' if folder is None else 'an'} image folder; "
            f"expected one JSON list "
            f"and {' or '.join(repr(name) for name in _FOLDERS)}"
        )
    items: dict[str, list[dict[str, Any]]] = {}
    for number, item in enumerate(read_json(files[0], list)):
        name = item.get("image_name") if isinstance(item, dict) else None
        if not isinstance(name, str) or not name:
            reject(
                "",
                str(files[0]),
                "question",
                f"item {number}: no image_name; expected an object that names its image",
            )
            continue
        items.setdefault(name, []).append(item)
    if not items:
        raise UserError(f"{files[0]} names no image: the list is empty, download it again")
    for name, group in items.items():
        study = Path(name).stem
        organs = {str(item.get("image_organ") or "").strip().upper() for item in group}
        try:
            if organs != {"CHEST"}:
                raise Rejected(f"image_organ {' and '.join(sorted(organs))}; only CHEST is read")
            image = Image(inside(folder, name), "UNKNOWN", study)
        except Rejected as reason:
            reject(study, name, "read", str(reason))
            continue
        questions = []
        for item in group:
            try:
                questions.append(_question(item))
            except Rejected as reason:
                reject(study, name, "question", str(reason))
        yield Study(
            "vqa-rad",
            study,
            study,
            hash_split("vqa-rad", study),
            (image,),
            questions=tuple(questions),
        )
