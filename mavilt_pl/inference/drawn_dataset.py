"""A dataset of drawings: an image for the text of each study, with the study's labels.

OUT/drawing.json     what it was drawn by; written first
OUT/images/….png     one a study
OUT/studies.csv      names, split, view and labels, as `mavilt prepare table` reads them; last
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mavilt_pl.data.corpus import Corpus
from mavilt_pl.data.dataset import ItemOptions, StudyDataset
from mavilt_pl.data.sources.table import LABEL_WORDS
from mavilt_pl.data.sources.tables import inert_cell
from mavilt_pl.errors import UserError
from mavilt_pl.parallel.atomic_write import atomic_write_text
from mavilt_pl.ranges import PositiveInt

SETTINGS, TABLE = "drawing.json", "studies.csv"
COLUMNS = ("image", "study", "patient", "split", "view", "labels")
PART = 64  # texts drawn at a time: what a kill costs


def draw_dataset(
    model: Any,
    corpus: Corpus,
    out: Path,
    *,
    split: str = "train",
    limit: PositiveInt | None = None,
    sections: str = "findings",
    seed: int = 0,
) -> Iterator[int]:
    """Draw an image for each study's text; continue where an interrupted call ended.

    The files hold no text and no identifier of a study, and no banner: a classifier that is trained
    on them would learn to see the banner. Each PNG says in its comment that it is synthetic.

    Args:
        model: `MAViLT`.
        corpus: whose texts are drawn.
        out: folder; new, or of an interrupted call with the same settings.
        split: of the studies.
        limit: at most this many studies, those that training with `data.limit_train` takes.
        sections: which part of a report is its text, as of `CXRDataModule`.
        seed: of the samples.

    Yields:
        The number of studies that have their drawing.

    Raises:
        UserError: the folder is another's, or no study has a text.
    """
    settings = {
        "model": model.sha256,
        "corpus": corpus.fingerprint,
        "split": split,
        "limit": limit,
        "sections": sections,
        "seed": seed,
    }
    # Before anything is drawn: drawing takes hours.
    _claim(out, settings)
    options = ItemOptions(batch_kind="pairs", sections=sections)
    rows = StudyDataset(corpus, split, options, limit=limit).rows
    if not rows:
        raise UserError(
            f"corpus {corpus.path}: no {split} study has a text of {sections}; expected some to "
            "draw from"
        )
    for start in range(0, len(rows), PART):
        part = rows[start : start + PART]
        missing = [row for row in part if not _file(out, corpus, row).exists()]
        _draw_part(model, corpus, out, missing, options, seed)
        yield start + len(part)
    _write_table(out, corpus, rows, split)


def _claim(out: Path, settings: Mapping[str, Any]) -> None:
    """Begin a folder, or check that it was begun with the same settings."""
    path = out / SETTINGS
    if path.exists():
        try:
            before = dict(json.loads(path.read_text(encoding="utf-8")))
        except (TypeError, ValueError):
            before = {}
        # Half of the images by one model and half by another would be taken for one dataset.
        differing = []
        for key, value in settings.items():
            if before.get(key) != value:
                differing.append(f"{key} was {before.get(key)!r} and is {value!r}")
        if differing:
            raise UserError(
                f"{out} was drawn with other settings ({'; '.join(differing)}): choose another "
                "--out, or delete the folder"
            )
        return
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out} is not empty and holds no {SETTINGS}: choose another --out")
    (out / "images").mkdir(parents=True, exist_ok=True)
    atomic_write_text(path, json.dumps(settings, indent=1))


def _file(out: Path, corpus: Corpus, row: int) -> Path:
    # The hidden name: neither the study's nor a number that would follow the table's order.
    return out / "images" / f"{corpus.hidden_name(corpus.text(row).study)}.png"


def _draw_part(
    model: Any, corpus: Corpus, out: Path, rows: Sequence[int], options: ItemOptions, seed: int
) -> None:
    # All of them were drawn before an interruption.
    if not rows:
        return
    studies = [corpus.text(row) for row in rows]
    texts = [options.text_of(study) for study in studies]
    # Many normal reports are the same text; each study gets an image of its own.
    drawings = model.draw(texts, seed, names=[study.study for study in studies])
    for row, drawing in zip(rows, drawings):
        drawing.save(_file(out, corpus, row), banner=False)


def _write_table(out: Path, corpus: Corpus, rows: Sequence[int], split: str) -> None:
    """Write the table, whose presence says that the dataset is complete."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        study = corpus[row]
        labels = "; ".join(f"{name}={LABEL_WORDS[label]}" for name, label in study.labels.items())
        path = _file(out, corpus, row)
        # A model of one view draws what most of its training images are.
        cells = [
            path.relative_to(out).as_posix(),
            path.stem,
            corpus.hidden_name(study.patient),
            split,
            "FRONTAL",
            inert_cell(labels),
        ]
        writer.writerow(cells)
    atomic_write_text(out / TABLE, text.getvalue())
