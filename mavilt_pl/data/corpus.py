"""The prepared corpus: a dataset's studies as one table and its images as 8-bit pixels, read by
memory map.

    corpus.json            what it is, its counts and its fingerprint; written last: a folder
    without it is not a corpus studies.parquet        one row a study, for people and their tools
    studies.arrow          the same rows uncompressed, which loaders map into memory instead of
    reading them pixels-00000.npy …     uint8 [n, S, S], one shard for each run of studies
    rejects.csv            study, file, stage, reason of everything left out

`prepare` reads the dataset's tables and reports first, into `parts/`, then decodes. Images go into
a journal in their order: a killed run loses none, and does none twice but the few that were under
way. Several processes may prepare one corpus together (`mavilt_pl.parallel.shards`): one of them reads, each
decodes the shards that no other has, one of them finishes.
"""

from __future__ import annotations

import csv
import hashlib
import itertools
import json
import os
import shutil
from collections import Counter
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from mavilt_pl.data.questions import read_questions, with_questions
from mavilt_pl.data.radiograph import Fit, read_sized
from mavilt_pl.data.records import FRONTAL, SPLITS, Image, Question, Split, Study, View
from mavilt_pl.data.sources import read_source
from mavilt_pl.errors import Rejected, UserError
from mavilt_pl.parallel.file_lock import file_lock
from mavilt_pl.parallel.process_pool import IsolatedMap
from mavilt_pl.parallel.shards import claim_shards, list_names

FORMAT = 2
SHARD = 1024  # studies
TEXTS = ("source", "patient", "study", "split", "findings", "impression", "report")
SCHEMA = pa.schema([(name, pa.string()) for name in (*TEXTS, "labels", "questions", "images")])
UNKNOWN = "unknown"  # the split of what was left out before its split was known


def _decode(task: tuple[str, int, Fit]) -> np.ndarray | str:
    """One file's pixels, or why not."""
    path, size, fit = task
    cv2.setNumThreads(1)  # a process a core: threads within would only wait for one another
    try:
        return read_sized(Path(path), size, fit)
    except Rejected as reason:
        return str(reason)


def _died(task: tuple[str, int, Fit], why: str) -> str:
    return f"{task[0]}: {why}"


def _replace_text(path: Path, text: str) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


def _row(study: Study) -> dict[str, Any]:
    return {
        **{name: getattr(study, name) for name in TEXTS},
        "labels": json.dumps(dict(study.labels)),
        "questions": json.dumps([asdict(question) for question in study.questions]),
        "images": json.dumps(
            [
                {"key": image.key, "view": image.view, "path": str(image.path)}
                for image in study.images
            ]
        ),
    }


class _Tally:
    """What was read, kept and rejected of each split, studies and images apart; and the rejects
    with their reasons.
    """

    def __init__(self) -> None:
        self.counts: dict[str, Counter[str]] = {"studies": Counter(), "images": Counter()}
        self.rejects: list[tuple[str, str, str, str]] = []

    def kept(self, what: str, split: str) -> None:
        self.counts[what][f"{split}/kept"] += 1

    def rejected(self, what: str, split: str, *why: str) -> None:
        self.counts[what][f"{split}/rejected"] += 1
        self.rejects.append(why)  # type: ignore[arg-type]


class _Journal:
    """The images of one shard that are done: their pixels one after another, and a line for each
    file, pixels or not.

    The pixels of an image are written before its line, so a line that is whole is true.
    """

    def __init__(self, folder: Path, number: int, size: int, tasks: Sequence[tuple[str, int, Fit]]):
        self.pixels_path, self.lines_path, self.size = (
            folder / f"{number:05d}.u8",
            folder / f"{number:05d}.log",
            size,
        )
        mark = hashlib.sha256(repr(tasks).encode()).hexdigest()
        self.reasons: list[
            str | None
        ] = []  # of each file that is done: None, or why it was left out
        written = self.lines_path.read_bytes() if self.lines_path.exists() else b""
        lines = written[: written.rfind(b"\n") + 1].splitlines()
        there = self.pixels_path.stat().st_size // size**2 if self.pixels_path.exists() else 0
        if lines and json.loads(lines[0]) == mark:
            for reason in map(json.loads, lines[1:]):
                if reason is None and self.reasons.count(None) == there:
                    break  # a line without its pixels: the machine, not the process, went down
                self.reasons.append(reason)
        _replace_text(
            self.lines_path, "".join(json.dumps(entry) + "\n" for entry in (mark, *self.reasons))
        )
        self.lines = self.lines_path.open("ab")
        self.pixels = self.pixels_path.open("r+b" if self.pixels_path.exists() else "w+b")
        self.pixels.truncate(self.reasons.count(None) * size**2)
        self.pixels.seek(0, os.SEEK_END)

    def add(self, made: np.ndarray | str) -> None:
        if not isinstance(made, str):
            self.pixels.write(made.tobytes())
            self.pixels.flush()
        self.reasons.append(made if isinstance(made, str) else None)
        self.lines.write(json.dumps(self.reasons[-1]).encode() + b"\n")
        self.lines.flush()

    def finish(self, out: Path) -> None:
        """The pixels as one array."""
        self.close()
        shape = (self.reasons.count(None), self.size, self.size)
        part = out.with_suffix(".part")
        # Not np.save, which tells a full disk without its number.
        with part.open("wb") as file, self.pixels_path.open("rb") as pixels:
            np.lib.format.write_array_header_1_0(
                file, {"descr": "|u1", "fortran_order": False, "shape": shape}
            )
            shutil.copyfileobj(pixels, file)
        os.replace(part, out)

    def close(self) -> None:
        self.lines.close()
        self.pixels.close()

    def remove(self) -> None:
        self.lines_path.unlink(missing_ok=True)
        self.pixels_path.unlink(missing_ok=True)


def _settings(out: Path, settings: dict[str, Any]) -> bool:
    """Refuse a folder that is another's; True where the corpus is finished already with the same
    settings.
    """
    path, there = out / "prepare.json", list_names(out)
    begun = "corpus.json" in there or any(out.glob("parts/*.parquet"))
    if begun and path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
        differs = sorted(k for k in settings | before if settings.get(k) != before.get(k))
        if differs:
            said = "; ".join(
                f"{k} was {before.get(k)!r} and is {settings.get(k)!r}" for k in differs
            )
            raise UserError(
                f"{out} was prepared with other settings ({said}): choose another --out, or delete "
                f"the folder"
            )
    # The second is asked after the listing: a task may have begun it now.
    elif there - {"parts", "prepare.json.part"} and not path.exists():
        raise UserError(f"{out} is not empty and not a corpus in the making: choose another --out")
    return "corpus.json" in list_names(out)


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
    questions: Path | None = None,
    options: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Prepare a dataset under `out`, on all cores, with a progress bar; gives what corpus.json
    says.

    Running it again on a finished corpus does nothing; on a broken-off one it goes on; with other
    settings it refuses. Run by several processes at once it is shared among them, and each ends
    when the corpus is finished. `views` keeps images of these views only; FRONTAL stands for PA, AP
    and FRONTAL. `questions` is a file or folder that `questions.read_questions` knows; `options`
    are the reader's.
    """
    settings = {
        "source": source,
        "root": str(root.resolve()),
        "name": name or source,
        "size": size,
        "fit": fit,
        "limit": limit,
        "views": list(views or []),
        "questions": str(questions.resolve()) if questions else None,
        **(options or {}),
    }
    whole, parts = out / "corpus.json", out / "parts"
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    if not _settings(out, settings):
        try:
            with Progress(*columns) as progress:
                with file_lock(parts / ".lock"):  # who comes second finds what the first has read
                    if not _settings(out, settings):
                        _replace_text(out / "prepare.json", json.dumps(settings, indent=1))
                        _read(out, settings, options or {}, progress)
                _decode_all(out, settings, workers, progress)
            with file_lock(parts / ".lock"):
                if "corpus.json" not in list_names(out):
                    _finish(out, settings, _facts(out)["shards"])
        except FileNotFoundError:  # finished by another process, and its parts tidied away
            if "corpus.json" not in list_names(out):
                raise
    if parts.exists():  # also what a process left that came when the corpus was just finished
        shutil.rmtree(parts, ignore_errors=True)
    return json.loads(whole.read_text(encoding="utf-8"))


def _facts(out: Path) -> dict[str, Any]:
    return json.loads((out / "parts" / "read.json").read_text(encoding="utf-8"))


def _decode_all(
    out: Path, settings: Mapping[str, Any], workers: int | None, progress: Progress
) -> None:
    """All shards, here or in other processes."""
    facts = _facts(out)
    images = [sum(_images_read(out, number)) for number in range(facts["shards"])]
    bar = progress.add_task("Decoding", total=facts["images"], unit="images")

    def done() -> Container[int]:
        numbers = range(facts["shards"])
        names = list_names(
            out / "parts"
        )  # before the whole is looked for: they go once it is there
        return (
            numbers
            if "corpus.json" in list_names(out)
            else {n for n in numbers if _done(out, n).name in names}
        )

    decoder = IsolatedMap(_decode, _died, workers)
    try:
        for number in claim_shards(out / "parts", facts["shards"], done):
            there = done()
            progress.update(
                bar, completed=sum(count for other, count in enumerate(images) if other in there)
            )
            _decode_shard(out, number, settings, decoder, lambda: progress.advance(bar))
        progress.update(bar, completed=facts["images"])
    finally:
        decoder.close()


def _read_rows(out: Path, number: int) -> Path:
    return out / "parts" / f"{number:05d}.read.parquet"


def _done(out: Path, number: int) -> Path:
    return out / "parts" / f"{number:05d}.parquet"


def _pixels(out: Path, number: int) -> Path:
    return out / f"pixels-{number:05d}.npy"


def _images_read(out: Path, number: int) -> Iterator[int]:
    rows = pq.read_table(_read_rows(out, number), columns=["images"])["images"]
    return (len(json.loads(row.as_py())) for row in rows)


def _read(
    out: Path, settings: Mapping[str, Any], options: Mapping[str, str], progress: Progress
) -> None:
    """The dataset's studies as rows under parts/, before anything is decoded; last read.json, with
    their number.
    """
    done = out / "parts" / "read.json"
    if done.exists():
        return
    rejects: list[tuple[str, str, str, str]] = []

    def reject(*why: str) -> None:
        rejects.append(why)  # type: ignore[arg-type]

    studies = itertools.islice(
        read_source(settings["source"], Path(settings["root"]), reject, **options),
        settings["limit"],
    )
    if settings["questions"]:
        studies = with_questions(
            studies, read_questions(Path(settings["questions"]), reject), reject
        )  # type: ignore[assignment]
    bar = progress.add_task("Reading", total=None, unit="studies")
    images = shards = 0
    while run := list(itertools.islice(studies, SHARD)):
        rows = pa.Table.from_pylist([_row(study) for study in run], SCHEMA)
        part = _read_rows(out, shards).with_suffix(".part")
        pq.write_table(rows, part)
        os.replace(part, _read_rows(out, shards))
        images += sum(len(study.images) for study in run)
        shards += 1
        progress.advance(bar, len(run))
    progress.update(bar, total=progress.tasks[bar].completed)
    facts = {"shards": shards, "images": images, "rejects": rejects}
    _replace_text(done, json.dumps(facts))


def _decode_shard(
    out: Path, number: int, settings: Mapping[str, Any], decoder: IsolatedMap, step: Any
) -> None:
    """A shard's pixels, then its rows: a shard whose rows are there is done."""
    size, fit = settings["size"], settings["fit"]
    wanted = set(settings["views"]) | (FRONTAL if "FRONTAL" in settings["views"] else set())
    rows = pq.read_table(_read_rows(out, number)).to_pylist()
    of_row = [json.loads(row["images"]) for row in rows]
    chosen = [
        [image for image in images if not wanted or image["view"] in wanted] for images in of_row
    ]
    tasks = [(image["path"], size, fit) for images in chosen for image in images]
    journal = _Journal(out / "parts", number, size, tasks)
    for _ in range(len(journal.reasons)):
        step()
    try:
        for made in decoder(tasks[len(journal.reasons) :]):
            journal.add(made)
            step()
    finally:
        journal.close()
    for _ in range(sum(map(len, of_row)) - len(tasks)):
        step()
    tally, reasons, place, kept = _Tally(), iter(journal.reasons), itertools.count(), []
    for row, images, left in zip(rows, of_row, chosen):
        study, split = row["study"], row["split"]
        for image in images:
            if image not in left:
                tally.rejected(
                    "images",
                    split,
                    study,
                    image["path"],
                    "views",
                    f"view {image['view']} is not among {', '.join(sorted(wanted))}",
                )
        whole = []
        for image in left:
            reason = next(reasons)
            if reason is None:
                tally.kept("images", split)
                whole.append(
                    {"key": image["key"], "view": image["view"], "row": next(place)}
                )  # row within the shard
            else:
                tally.rejected("images", split, study, image["path"], "decode", reason)
        if whole:
            tally.kept("studies", split)
            kept.append({**row, "images": json.dumps(whole)})
        else:
            tally.rejected(
                "studies",
                split,
                study,
                "",
                "images",
                f"none of its {len(images)} images could be used",
            )
    journal.finish(_pixels(out, number))
    _replace_text(
        out / "parts" / f"{number:05d}.json", json.dumps({"rejects": tally.rejects, **tally.counts})
    )
    part = _done(out, number).with_suffix(".part")
    pq.write_table(pa.Table.from_pylist(kept, SCHEMA), part)
    os.replace(part, _done(out, number))
    journal.remove()


def corpus_files_sha256(path: Path, shards: int) -> str:
    """The fingerprint of a corpus: of its table and all its pixels."""
    digest = hashlib.sha256()
    for part in (path / "studies.parquet", *(_pixels(path, number) for number in range(shards))):
        with part.open("rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()


def _finish(out: Path, settings: Mapping[str, Any], shards: int) -> None:
    """Join the shards' rows and rejects, count, and write corpus.json."""
    read = _facts(out)["rejects"]
    counts = {"studies": Counter[str](), "images": Counter[str]()}
    for (
        _,
        _,
        stage,
        _,
    ) in read:  # what a reader refused: a whole study, or one image of a study that it gave
        if stage in ("read", "image"):
            counts["studies" if stage == "read" else "images"][f"{UNKNOWN}/rejected"] += 1
    base = 0
    with (
        pq.ParquetWriter(out / "studies.parquet.part", SCHEMA) as table,
        pa.OSFile(str(out / "studies.arrow.part"), "wb") as file,
        pa.ipc.new_file(file, SCHEMA) as mapped,
        (out / "rejects.csv").open("w", newline="", encoding="utf-8") as rejects,
    ):
        writer = csv.writer(rejects)
        writer.writerows([("study", "file", "stage", "reason"), *read])
        for number in range(shards):
            said = json.loads((out / "parts" / f"{number:05d}.json").read_text(encoding="utf-8"))
            writer.writerows(said["rejects"])
            for what, counter in counts.items():
                counter.update(said[what])
            rows = pq.read_table(_done(out, number)).to_pylist()
            for row in rows:
                images = [
                    {**image, "row": image["row"] + base} for image in json.loads(row["images"])
                ]
                row["images"] = json.dumps(images)
            part = pa.Table.from_pylist(rows, SCHEMA)
            table.write_table(part)
            mapped.write_table(part)
            base += len(np.load(_pixels(out, number), mmap_mode="r"))
    for name in ("studies.parquet", "studies.arrow"):
        os.replace(out / f"{name}.part", out / name)
    splits = {
        split: {what: _count(counter, split) for what, counter in counts.items()}
        for split in (*SPLITS, UNKNOWN)
    }
    splits = {
        split: said
        for split, said in splits.items()
        if said["studies"]["read"] or said["images"]["read"]
    }
    total = {what: _count(counter, None) for what, counter in counts.items()}
    if not total["studies"]["kept"]:
        with (out / "rejects.csv").open(encoding="utf-8") as file:
            first = [*itertools.islice(csv.reader(file), 1, 2)]
        why = (
            f"the first: {first[0][0]}: {first[0][3]} {first[0][1]}"
            if first
            else "the dataset is empty"
        )
        raise UserError(
            f"{settings['root']}: no study of {total['studies']['read']} could be used; {why}"
        )
    facts = {
        "format": FORMAT,
        "name": settings["name"],
        "source": settings["source"],
        "size": settings["size"],
        "studies": total["studies"]["kept"],
        "images": base,
        "total": total,
        "splits": splits,
        "shards": shards,
        "fingerprint": corpus_files_sha256(out, shards),
    }
    _replace_text(out / "corpus.json", json.dumps(facts, indent=1))


def _count(counter: Counter[str], split: str | None) -> dict[str, int]:
    """read = kept + rejected, of one split or of all."""
    kept, rejected = (
        sum(
            n
            for key, n in counter.items()
            if key.endswith("/" + end) and split in (None, key.split("/")[0])
        )
        for end in ("kept", "rejected")
    )
    return {"read": kept + rejected, "kept": kept, "rejected": rejected}


class Corpus:
    """A prepared corpus. `name`, `size` (pixels a side), `fingerprint`, `n_images`; `len()` counts
    studies.

    Its table and its pixels are mapped, not read: opening a large one costs no memory.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        try:
            facts = json.loads((self.path / "corpus.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(
                f"{self.path} is not a finished corpus (corpus.json: {error}); make or finish it "
                f"with "
                f"`mavilt prepare SOURCE ROOT --out {self.path}`"
            ) from None
        if facts["format"] != FORMAT:
            raise UserError(
                f"{self.path}: corpus of format {facts['format']}, this version reads {FORMAT}: "
                f"prepare it again"
            )
        self.facts: dict[str, Any] = facts
        self.name: str = facts["name"]
        self.size: int = facts["size"]
        self.fingerprint: str = facts["fingerprint"]
        self.n_images: int = facts["images"]
        try:
            table = pa.ipc.open_file(pa.memory_map(str(self.path / "studies.arrow"))).read_all()
            self._shards = [
                np.load(_pixels(self.path, n), mmap_mode="r") for n in range(facts["shards"])
            ]
        except (OSError, ValueError, pa.ArrowInvalid) as error:
            raise UserError(
                f"{self.path}: {error}: a part of the corpus is missing or damaged; prepare it "
                f"again"
            ) from None
        self._rows = len(table)
        self._columns = {name: table[name] for name in SCHEMA.names}
        self._starts = np.cumsum([0, *(len(shard) for shard in self._shards)])
        if self._rows != facts["studies"] or self._starts[-1] != self.n_images:
            raise UserError(
                f"{self.path}: the table or the pixel shards are not those that corpus.json "
                f"counts: prepare it again"
            )

    def __reduce__(self) -> tuple[Any, ...]:
        return Corpus, (self.path,)  # loaders' processes map it themselves

    def __len__(self) -> int:
        return self._rows

    def _value(self, column: str, row: int) -> Any:
        return self._columns[column][int(row)].as_py()

    def __getitem__(self, row: int) -> Study:
        images = json.loads(self._value("images", row))
        return Study(
            **{n: self._value(n, row) for n in TEXTS},
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
        return np.flatnonzero(self._columns["split"].to_numpy(zero_copy_only=False) == split)

    def text(self, row: int) -> Study:
        """Study `row` with its texts and identifiers only: what choosing among many needs, at a
        fraction of the time.
        """
        return Study(**{name: self._value(name, row) for name in TEXTS}, images=())

    def image_rows(self, row: int) -> list[tuple[int, View]]:
        """Where the images of a study stand in the pixel store, and their views, in the order of
        its `images`.
        """
        return [(image["row"], image["view"]) for image in json.loads(self._value("images", row))]

    def pixels(self, image: int) -> np.ndarray:
        """uint8 [S,S], memory-mapped."""
        shard = int(np.searchsorted(self._starts, image, side="right")) - 1
        return self._shards[shard][image - self._starts[shard]]

    def labels(self, findings: Sequence[str]) -> np.ndarray:
        """float32 [studies, F]: 1 present, 0 absent, nan uncertain or not mentioned."""
        value = {"present": 1.0, "absent": 0.0}
        rows = (json.loads(text.as_py()) for text in self._columns["labels"])
        return np.array(
            [[value.get(row.get(f), np.nan) for f in findings] for row in rows], np.float32
        ).reshape(len(self), len(findings))
