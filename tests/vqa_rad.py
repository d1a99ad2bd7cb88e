"""VQA-RAD's layout with phantom images: questions, and no reports."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from mavilt_pl.cli import main


def prepared(mimic_root: Path, folder: Path) -> Path:
    """A corpus of 61 images, each with a closed and an open question; 43 or so are for training."""
    (folder / "raw" / "images").mkdir(parents=True)
    items = []
    for number, image in enumerate(sorted(mimic_root.rglob("*.jpg"))):
        name = f"synpic{number}.jpg"
        shutil.copy(image, folder / "raw" / "images" / name)
        about = {"image_name": name, "image_organ": "CHEST", "question_type": "PRES"}
        closed = {"question": "Is the heart enlarged?", "answer_type": "CLOSED"}
        opened = {"question": "Where is it?", "answer_type": "OPEN", "answer": "in the chest"}
        items.append({**about, **closed, "answer": "Yes" if number % 2 else "No"})
        items.append({**about, **opened})
    (folder / "raw" / "vqa_rad.json").write_text(json.dumps(items))
    words = [str(folder / "raw"), "--out", str(folder / "corpus"), "--size", "32", "--workers", "1"]
    assert main(["prepare", "vqa-rad", *words]) == 0
    return folder / "corpus"
