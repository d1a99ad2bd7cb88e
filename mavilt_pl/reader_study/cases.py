"""The cases of a study: who wrote which report and which image is real, hidden from the reader.

form.html   what a reader opens: images, texts and questions, nothing else
key.json    which of the two is the model's; it stays with whoever runs the study
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from mavilt_pl.data.corpus import Corpus
from mavilt_pl.errors import UserError
from mavilt_pl.evaluation.page import write_page
from mavilt_pl.evaluation.predictions import FILE, read_predictions
from mavilt_pl.parallel.atomic_write import atomic_write_text
from mavilt_pl.parallel.own_files import check_replaceable

KEY, FORM = "key.json", "form.html"
MARK = "key of a reader study of mavilt"
# What a reader counts in each report; the structure of ReXVal's and RadGraph's error lists.
ERRORS = {
    "missed": "findings that the image shows and the report does not name",
    "invented": "findings that the report names and the image does not show",
    "side": "findings on the wrong side",
    "place": "findings in the wrong place (other than the side)",
    "severity": "findings of the wrong severity",
}
KINDS = ("report", "drawing")


def make_study(
    run: Path, corpora: Sequence[Corpus], out: Path, reports: int, drawings: int, seed: int
) -> dict[str, int]:
    """Write form and key; the number of cases of each kind.

    Args:
        run: a tested run; drawings must have been saved (`SynthesisMetrics.save_images`).
        corpora: of the test, for the images.
        out: folder of the study.
        reports: pairs of reports at most, each of one image.
        drawings: pairs of a drawing and the real image of its report at most.
        seed: of the choice, the order and the sides.

    Raises:
        UserError: the run has no predictions, the corpora are not its own, or the folder holds the
            study that others may be reading.
    """
    if (out / KEY).exists():
        raise UserError(
            f"{out} holds a reader study: answers to it would lose their key. Name a new folder"
        )
    records = _usable(_predictions(run), run, corpora)
    chooser = random.Random(seed)
    cases: list[dict[str, Any]] = []
    key: list[dict[str, Any]] = []
    for kind, limit in zip(KINDS, (reports, drawings)):
        candidates = [record for record in records if record["kind"] == kind]
        for number, record in enumerate(chooser.sample(candidates, min(limit, len(candidates)))):
            name = f"{kind}-{number + 1:03d}"
            # Of each pair, by a coin: the model's is first or second.
            model = chooser.choice(("first", "second"))
            cases.append({"id": name, "kind": kind, **_shown(record, model)})
            known = ("source", "study", "patient", "generated", "reference")
            key.append(
                {"id": name, "kind": kind, "model": model, **{part: record[part] for part in known}}
            )
    if not cases:
        raise UserError(
            f"{run}: no report and no saved drawing to be read; test it with ReportMetrics, or "
            "with SynthesisMetrics and save_images true"
        )
    # Reports and drawings in one random order, so that a reader does not tire of one kind.
    chooser.shuffle(cases)
    study = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    out.mkdir(parents=True, exist_ok=True)
    check_replaceable(out / KEY, MARK)
    content = {"about": MARK, "study": study, "seed": seed, "cases": key}
    # The key first: a form without it would be filled in for nothing.
    atomic_write_text(out / KEY, json.dumps(content, indent=1, ensure_ascii=False))
    content = {"study": study, "cases": cases, "errors": ERRORS}
    write_page(out / FORM, "form.html.jinja", "mavilt_pl.reader_study", **content)
    return {kind: sum(case["kind"] == kind for case in cases) for kind in KINDS}


def read_key(folder: Path) -> dict[str, Any]:
    """The contents of key.json.

    Raises:
        UserError: the folder has none, or it is damaged.
    """
    try:
        key = json.loads((folder / KEY).read_text(encoding="utf-8"))
        known = key["about"] == MARK and isinstance(key["cases"], list)
    except (OSError, ValueError, KeyError, TypeError):
        known = False
    if not known:
        raise UserError(
            f"{folder / KEY} is no key of a reader study; expected the folder that `mavilt "
            "reader-study make` wrote"
        )
    return key


def _predictions(run: Path) -> list[dict[str, Any]]:
    """Records of every test below a run, with the folder of their pictures."""
    # A run may hold several tests, such as those of a recipe.
    records = []
    for path in sorted(run.rglob(f"test/{FILE}")):
        for record in read_predictions(path):
            records.append({**record, "folder": path.parent})
    if not records:
        raise UserError(f"{run}: no test/{FILE} below it; test the run first (`mavilt test`)")
    return records


def _usable(
    records: Sequence[Mapping[str, Any]], run: Path, corpora: Sequence[Corpus]
) -> list[dict[str, Any]]:
    """Records that a case can be made of, with the real image."""
    # Predictions name studies by their hidden names; only the corpus knows whose they are.
    rows: dict[tuple[str, str], tuple[Corpus, int]] = {}
    for corpus in corpora:
        for row in corpus.rows("test"):
            name = corpus.hidden_name(corpus.text(int(row)).study)
            rows[corpus.name, name] = corpus, int(row)
    usable = []
    for record in records:
        # Answers and reconstructions are no cases.
        if record["task"] not in ("report", "synthesis"):
            continue
        kind = "drawing" if record.get("image") else "report"
        found = rows.get((record["source"], str(record.get("study"))))
        # A reader cannot compare a report with nothing.
        complete = record.get("reference") and (record.get("generated") or kind == "drawing")
        if complete and found is not None:
            usable.append({"generated": "", **record, "kind": kind, "real": found})
    if not usable:
        names = ", ".join(corpus.name for corpus in corpora)
        raise UserError(
            f"{run}: none of its tested studies is in the corpora named ({names}); name those that "
            "it was tested on, with --corpus"
        )
    return usable


def _shown(record: Mapping[str, Any], model: str) -> dict[str, Any]:
    """What a reader sees of a case; `model` is the place of the model's."""
    corpus, row = record["real"]
    # The image that the report was written from; the first of several views.
    number, _ = corpus.image_rows(row)[0]
    real = _data_uri(Image.fromarray(corpus.pixels(number)))
    if record["kind"] == "report":
        pair = (record["generated"], record["reference"])
        first, second = pair if model == "first" else pair[::-1]
        return {"image": real, "first": first, "second": second}
    # Of one size, or the size would tell.
    with Image.open(record["folder"] / record["image"]) as opened:
        drawn = _data_uri(opened.convert("L").resize((corpus.size, corpus.size)))
    first, second = (drawn, real) if model == "first" else (real, drawn)
    return {"text": record["reference"], "first": first, "second": second}


def _data_uri(image: Image.Image) -> str:
    """A picture as part of a page."""
    # Without metadata, which could tell one source from the other.
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
