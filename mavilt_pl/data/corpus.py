"""The prepared corpus: a dataset's studies as one table and its images as 8-bit pixels, read by memory map.

    corpus.json            what it is and its fingerprint; written last: a folder without it is not a corpus
    studies.parquet        one row a study
    pixels-00000.npy …     uint8 [n, S, S], one shard for each run of studies
    rejects.csv            study, file, stage, reason of everything left out

`prepare` works shard by shard. A shard's rows are renamed into place after its pixels are, so a killed run goes on
after the last whole shard.
"""

from __future__ import annotations

import csv
import hashlib
import itertools
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from mavilt_pl.data.radiograph import Fit, read_radiograph, resize
from mavilt_pl.data.sources import read_source
from mavilt_pl.data.study import FRONTAL, DataError, Image, Question, Rejected, Split, Study
from mavilt_pl.workers import pool

FORMAT = 1
SHARD = 1024  # studies
SCHEMA = pa.schema([(n, pa.string()) for n in ("source", "patient", "study", "split", "findings", "impression", "labels", "questions", "images")])  # fmt: skip


def _decode(task: tuple[Path, int, Fit]) -> np.ndarray | str:
    """One file's pixels, or why not."""
    path, size, fit = task
    try:
        return resize(read_radiograph(path), size, fit)
    except Rejected as reason:
        return str(reason)


def _replace_text(path: Path, text: str) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


class _Shards:
    """Writes runs of studies under `out`, and knows which are whole already."""

    def __init__(self, out: Path, size: int, fit: Fit, processes: ProcessPoolExecutor):
        self.out, self.size, self.fit, self.processes = out, size, fit, processes

    def rows(self, number: int) -> Path:
        return self.out / "parts" / f"{number:05d}.parquet"

    def pixels(self, number: int) -> Path:
        return self.out / f"pixels-{number:05d}.npy"

    def write(self, number: int, studies: Sequence[Study], rejects: list[tuple[str, ...]], step: Any) -> None:
        tasks = [(image.path, self.size, self.fit) for study in studies for image in study.images]
        results = iter(self.processes.map(_decode, tasks, chunksize=8))
        kept: list[dict[str, Any]] = []
        pixels: list[np.ndarray] = []
        for study in studies:
            images = []
            for image in study.images:
                made = next(results)
                if isinstance(made, str):
                    rejects.append((study.study, str(image.path), "decode", made))
                    continue
                images.append({"key": image.key, "view": image.view, "row": len(pixels)})  # row within the shard
                pixels.append(made)
            step()
            if not images:
                if not study.images:
                    rejects.append((study.study, "", "images", "no image of the wanted views"))
                continue
            row = {n: getattr(study, n) for n in ("source", "patient", "study", "split", "findings", "impression")}
            row["labels"] = json.dumps(dict(study.labels))
            row["questions"] = json.dumps([asdict(question) for question in study.questions])
            row["images"] = json.dumps(images)
            kept.append(row)
        part = self.pixels(number).with_suffix(".part")
        with part.open("wb") as file:
            np.save(file, np.stack(pixels) if pixels else np.empty((0, self.size, self.size), np.uint8))
        os.replace(part, self.pixels(number))
        with (self.out / "parts" / f"{number:05d}.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([*rejects, ("", str(len(studies)), "read", "")])
        part = self.rows(number).with_suffix(".part")
        pq.write_table(pa.Table.from_pylist(kept, SCHEMA), part)
        os.replace(part, self.rows(number))


def _sha256(paths: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()


def _settings(out: Path, settings: dict[str, Any]) -> bool:
    """Remember how the corpus is being made; True where it is finished already with the same settings."""
    path = out / "prepare.json"
    begun = (out / "corpus.json").exists() or any(out.glob("parts/*.parquet"))
    if path.exists() and begun:
        before = json.loads(path.read_text(encoding="utf-8"))
        differs = sorted(k for k in settings | before if settings.get(k) != before.get(k))
        if differs:
            said = "; ".join(f"{k} was {before.get(k)!r} and is {settings.get(k)!r}" for k in differs)
            raise DataError(
                f"{out} was prepared with other settings ({said}): choose another --out, or delete the folder"
            )
    elif out.exists() and not path.exists() and any(out.iterdir()):
        raise DataError(f"{out} is not empty and not a corpus in the making: choose another --out")
    (out / "parts").mkdir(parents=True, exist_ok=True)
    _replace_text(path, json.dumps(settings, indent=1))
    return (out / "corpus.json").exists()


def prepare(
    source: str,
    root: Path,
    out: Path,
    *,
    name: str | None = None,
    size: int = 256,
    fit: Fit = "pad",
    workers: int | None = None,
    limit: int | None = None,
    views: Sequence[str] | None = None,
    options: dict[str, str] | None = None,
) -> dict[str, Any]:
    """Prepare a dataset under `out`, on all cores, with a progress bar; gives what corpus.json says.

    Running it again on a finished corpus does nothing; on a broken-off one it goes on; with other settings it refuses.
    """
    settings = {"source": source, "root": str(root.resolve()), "name": name or source, "size": size, "fit": fit, "limit": limit, "views": list(views or []), **(options or {})}  # fmt: skip
    if _settings(out, settings):
        return json.loads((out / "corpus.json").read_text(encoding="utf-8"))
    read_rejects: list[tuple[str, ...]] = []
    studies = itertools.islice(
        read_source(source, root, lambda *why: read_rejects.append(why), **(options or {})), limit
    )
    columns = (TextColumn("Preparing"), BarColumn(), MofNCompleteColumn(), TextColumn("studies"), TimeElapsedColumn())
    with pool(workers) as processes, Progress(*columns) as progress:
        bar = progress.add_task("", total=limit)
        shards = _Shards(out, size, fit, processes)
        number = 0
        while run := list(itertools.islice(studies, SHARD)):
            rejects, read_rejects[:] = list(read_rejects), []
            if shards.rows(number).exists():
                progress.advance(bar, len(run))
            else:
                if views:
                    run = [_only(study, views) for study in run]
                shards.write(number, run, rejects, lambda: progress.advance(bar))
            number += 1
    return _finish(out, settings, shards, number, read_rejects)


def _only(study: Study, views: Sequence[str]) -> Study:
    wanted = set(views) | (FRONTAL if "FRONTAL" in views else set())
    return Study(**{**vars(study), "images": tuple(image for image in study.images if image.view in wanted)})


def _finish(
    out: Path, settings: dict[str, Any], shards: _Shards, number: int, last: list[tuple[str, ...]]
) -> dict[str, Any]:
    """Join the shards' rows and rejects, count, and write corpus.json."""
    rejects, read = [("study", "file", "stage", "reason")], len(last)
    base, counts = 0, Counter[str]()
    part = out / "studies.parquet.part"
    with pq.ParquetWriter(part, SCHEMA) as writer:
        for n in range(number):
            rows = pq.read_table(shards.rows(n)).to_pylist()
            for row in rows:
                images = json.loads(row["images"])
                counts[row["split"]] += 1
                row["images"] = json.dumps([{**image, "row": image["row"] + base} for image in images])
            writer.write_table(pa.Table.from_pylist(rows, SCHEMA))
            base += len(np.load(shards.pixels(n), mmap_mode="r"))
            with (out / "parts" / f"{n:05d}.csv").open(newline="", encoding="utf-8") as file:
                *said, total = [tuple(line) for line in csv.reader(file)]
            rejects += said  # type: ignore[arg-type]
            read += int(total[1]) + sum(stage == "read" for _, _, stage, _ in said)
    os.replace(part, out / "studies.parquet")
    if not sum(counts.values()):
        raise DataError(
            f"{settings['root']}: no study of {read} could be used; {rejects[1] if len(rejects) > 1 else 'the dataset is empty'}"
        )
    with (out / "rejects.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([*rejects, *last])
    facts = {
        "format": FORMAT,
        "name": settings["name"],
        "source": settings["source"],
        "size": settings["size"],
        "studies": sum(counts.values()),
        "images": base,
        "read": read,
        "rejected_studies": read - sum(counts.values()),
        "splits": dict(sorted(counts.items())),
        "shards": number,
        "fingerprint": _sha256([out / "studies.parquet", *(shards.pixels(n) for n in range(number))]),
    }
    _replace_text(out / "corpus.json", json.dumps(facts, indent=1))
    shutil.rmtree(out / "parts")
    return facts


class Corpus:
    """A prepared corpus. `name`, `size` (pixels a side), `fingerprint`, `n_images`; `len()` counts studies."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        try:
            facts = json.loads((self.path / "corpus.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(
                f"{self.path} is not a finished corpus (corpus.json: {error}); make or finish it with "
                f"`mavilt prepare SOURCE ROOT --out {self.path}`"
            ) from None
        if facts["format"] != FORMAT:
            raise DataError(
                f"{self.path}: corpus of format {facts['format']}, this version reads {FORMAT}: prepare it again"
            )
        self.name: str = facts["name"]
        self.size: int = facts["size"]
        self.fingerprint: str = facts["fingerprint"]
        self.n_images: int = facts["images"]
        self._rows = pq.read_table(self.path / "studies.parquet", memory_map=True)
        self._shards = [np.load(self.path / f"pixels-{n:05d}.npy", mmap_mode="r") for n in range(facts["shards"])]
        self._starts = np.cumsum([0, *(len(shard) for shard in self._shards)])
        if len(self._rows) != facts["studies"] or self._starts[-1] != self.n_images:
            raise DataError(
                f"{self.path}: the table or the pixel shards are not those that corpus.json counts: prepare it again"
            )

    def __len__(self) -> int:
        return len(self._rows)

    def _value(self, column: str, row: int) -> Any:
        return self._rows[column][int(row)].as_py()

    def __getitem__(self, row: int) -> Study:
        images = json.loads(self._value("images", row))
        return Study(
            **{n: self._value(n, row) for n in ("source", "patient", "study", "split", "findings", "impression")},
            images=tuple(Image(self.path, image["view"], image["key"]) for image in images),
            labels=json.loads(self._value("labels", row)),
            questions=tuple(
                Question(**{**q, "candidates": tuple(q["candidates"])})
                for q in json.loads(self._value("questions", row))
            ),
        )

    def __iter__(self) -> Iterator[Study]:
        return (self[row] for row in range(len(self)))

    def rows(self, split: Split | str | None = None) -> np.ndarray:
        """Numbers of the studies of a split, int64, in order."""
        if split is None:
            return np.arange(len(self))
        return np.flatnonzero(self._rows["split"].to_numpy(zero_copy_only=False) == split)

    def image_rows(self, row: int) -> list[int]:
        """Where the images of a study stand in the pixel store, in the order of its `images`."""
        return [image["row"] for image in json.loads(self._value("images", row))]

    def pixels(self, image: int) -> np.ndarray:
        """uint8 [S,S], memory-mapped."""
        shard = int(np.searchsorted(self._starts, image, side="right")) - 1
        return self._shards[shard][image - self._starts[shard]]

    def labels(self, findings: Sequence[str]) -> np.ndarray:
        """float32 [studies, F]: 1 present, 0 absent, nan uncertain or not mentioned."""
        value = {"present": 1.0, "absent": 0.0}
        rows = (json.loads(text.as_py()) for text in self._rows["labels"])
        return np.array([[value.get(row.get(f), np.nan) for f in findings] for row in rows], np.float32).reshape(len(self), len(findings))  # fmt: skip
