"""Prepare a corpus: read a dataset's tables and reports, decode its images, join the shards.

The tables are read first, into OUT/parts. Decoded images go into a journal in their order, so a
killed run repeats only the images that were in progress. Several processes may prepare one corpus
together (`mavilt_pl.parallel.shards`): one of them reads, each decodes the shards that no other
has, one of them joins. OUT/prepare.json is created before any other file and marks the folder as
ours; temporary files lie in OUT/parts. See `mavilt_pl.data.corpus` for the files of the result.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Container, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from mavilt_pl.data.corpus import TEXT_COLUMNS
from mavilt_pl.data.corpus_parts import Parts, RejectRow, write_rows
from mavilt_pl.data.decode_shard import ShardDecoder, decode_file, decoder_failed
from mavilt_pl.data.join_shards import ShardJoiner
from mavilt_pl.data.question_files import read_questions, with_questions
from mavilt_pl.data.radiograph import Fit
from mavilt_pl.data.records import Question, Split, Study
from mavilt_pl.data.sources import SOURCES, check_options, read_source
from mavilt_pl.data.yields import Yields
from mavilt_pl.errors import UserError
from mavilt_pl.parallel.atomic_write import atomic_write_text
from mavilt_pl.parallel.file_lock import file_lock
from mavilt_pl.parallel.process_pool import IsolatedMap
from mavilt_pl.parallel.shards import claim_shards, list_names

# A few minutes of decoding on one core: small enough to share among jobs, and few enough files for
# a parallel file system (about 220 for MIMIC-CXR).
SHARD = 1024  # studies
# Settings that are paths, which another machine has elsewhere.
PLACES = ("root", "reports", "tables", "questions", "patients")
SETTINGS = "prepare.json"


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
    split: Split | None = None,
    options: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Prepare a dataset under `out` with a progress bar; return the contents of corpus.json.

    On a finished corpus it does nothing; an interrupted one it continues. Several processes that
    call it share the work, and each returns when the corpus is finished.

    Args:
        source: name of a reader in `mavilt_pl.data.sources`, or a Python file with one.
        root: the dataset's folder, as downloaded.
        out: folder of the corpus.
        name: the corpus's name in results (default: `source`).
        size: pixels along each side.
        fit: keep the aspect by padding or by a centre crop.
        workers: number of processes (default: one a core).
        limit: read only this number of studies.
        views: keep images of these views only; FRONTAL stands for PA, AP and FRONTAL.
        questions: a file or folder that `questions.read_questions` knows.
        split: of every study (default: the dataset's own).
        options: of the reader, and `follow_links`, as `read_source` takes them.

    Raises:
        UserError: `out` holds other files or a corpus of other settings, or the dataset cannot be
            read, or nothing comes of reports or questions that were asked for.
    """
    options = options or {}
    # An unknown source or option is refused before the folder is claimed.
    check_options(source, options.keys() - {"follow_links"})
    is_file = source not in SOURCES
    settings = {
        "source": str(Path(source).resolve()) if is_file else source,
        "root": str(root.resolve()),
        "name": name or (Path(source).stem if is_file else source),
        "size": size,
        "fit": fit,
        "limit": limit,
        "views": list(views or []),
        "questions": str(questions.resolve()) if questions else None,
        "split": split,
        **options,
    }
    return CorpusWriter(out, settings, options, workers).run()


class CorpusWriter:
    """Writes one corpus, alone or with other processes that do the same.

    Args:
        out: folder of the corpus.
        settings: what prepare.json records.
        options: of the reader.
        workers: number of decoding processes (default: one a core).
    """

    def __init__(
        self,
        out: Path,
        settings: Mapping[str, Any],
        options: Mapping[str, Any],
        workers: int | None = None,
    ):
        self.out, self.parts = out, Parts(out / "parts")
        self.settings, self.options, self.workers = settings, options, workers

    def run(self) -> dict[str, Any]:
        """Read, decode and join what no other process has; return the contents of corpus.json."""
        self._claim_folder()
        self._check_settings()
        # Checked from a listing, which NFS does not cache as it caches a missing name.
        if not self._is_finished():
            try:
                self._prepare()
            except FileNotFoundError:  # another process has finished and removed the parts
                if not self._is_finished():
                    raise
        # A process that came just after the end has created the folder again.
        self.parts.remove()
        return json.loads((self.out / "corpus.json").read_text(encoding="utf-8"))

    def _prepare(self) -> None:
        with _progress_bar() as progress:
            with file_lock(self.parts.lock):
                self._check_settings()
                # A process that waited for the lock finds what the first one has read.
                # Settings of a run that failed before it read anything may be replaced.
                if not self._is_begun():
                    atomic_write_text(self.out / SETTINGS, json.dumps(self.settings, indent=1))
                if not self._is_finished() and not self.parts.facts.exists():
                    self._read_dataset(progress)
            self._decode_shards(progress)
        with file_lock(self.parts.lock):
            if not self._is_finished():
                facts = self._read_facts()
                ShardJoiner(self.out, self.settings, facts["shards"]).join(facts["rejects"])

    def _is_finished(self) -> bool:
        return "corpus.json" in list_names(self.out)

    def _is_begun(self) -> bool:
        """Whether rows have been read with the settings that prepare.json records."""
        return self._is_finished() or any(self.parts.folder.glob("*.parquet"))

    def _claim_folder(self) -> None:
        """Mark the folder as a corpus in progress, with an empty prepare.json.

        Raises:
            UserError: the folder holds files that `prepare` has not written.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        names = list_names(self.out)
        # `open("x")` below decides if two processes come at once.
        if SETTINGS in names:
            return
        # Ask again: another process may have begun the corpus during the first listing.
        if names and SETTINGS not in list_names(self.out):
            raise UserError(
                f"{self.out} is not empty and not a corpus in progress (it holds "
                f"{min(names)} but no {SETTINGS}): choose another --out"
            )
        with suppress(FileExistsError):  # another process has just claimed it
            (self.out / SETTINGS).open("x").close()

    def _has_moved(self, key: str, was: Any, now: Any) -> bool:
        """Whether a setting names the same folder on another machine: a finished corpus needs none.

        The same name below another mount point is taken for the same data.
        """
        if key not in PLACES or not self._is_finished() or not was or not now:
            return False
        return Path(str(was)).name == Path(str(now)).name

    def _check_settings(self) -> None:
        """Refuse a corpus that was begun with other settings.

        Raises:
            UserError: a setting differs, or `prepare` has not written prepare.json.
        """
        text = (self.out / SETTINGS).read_text(encoding="utf-8")
        if not text:  # claimed, not begun
            return
        before = _parse_settings(text)
        if before is None:
            raise UserError(
                f"{self.out / SETTINGS} is not a record of `mavilt prepare`: choose another --out"
            )
        if not self._is_begun():
            return
        differing = []
        for key in sorted(self.settings | before):
            was, now = before.get(key), self.settings.get(key)
            if was != now and not self._has_moved(key, was, now):
                differing.append(f"{key} was {was!r} and is {now!r}")
        if differing:
            raise UserError(
                f"{self.out} was prepared with other settings ({'; '.join(differing)}): choose "
                "another --out, or delete the folder"
            )

    def _read_facts(self) -> dict[str, Any]:
        return json.loads(self.parts.facts.read_text(encoding="utf-8"))

    def _read_dataset(self, progress: Progress) -> None:
        """Write the dataset's studies as rows, shard by shard, before any image is decoded."""
        rejects: list[RejectRow] = []

        def reject(study: str, file: str, stage: str, reason: str) -> None:
            rejects.append((study, file, stage, reason))

        root = Path(self.settings["root"])
        studies = read_source(self.settings["source"], root, reject, **self.options)
        # The limit comes before the questions, so that those about other studies are reported.
        studies = itertools.islice(studies, self.settings["limit"])
        # A dataset that is never trained on is a test as a whole.
        if self.settings["split"]:
            studies = (replace(study, split=self.settings["split"]) for study in studies)
        questions: dict[str, tuple[Question, ...]] = {}
        if self.settings["questions"]:
            questions = read_questions(Path(self.settings["questions"]), reject)
            studies = with_questions(studies, questions, reject)
        yields = Yields(self.settings, questions)
        # Readers are generators: how many studies come is known at the end.
        bar = progress.add_task("Reading", total=None, unit="studies")
        num_images = num_shards = 0
        while shard := list(itertools.islice(studies, SHARD)):
            write_rows(self.parts.read_rows(num_shards), [_row(study) for study in shard])
            num_images += sum(len(study.images) for study in shard)
            num_shards += 1
            yields.count(shard)
            progress.advance(bar, len(shard))
        progress.update(bar, total=progress.tasks[bar].completed)
        try:
            yields.check(rejects)
            yields.check_disk(self.out)
        except UserError:
            # So that the same folder can be prepared with the right path or size.
            for number in range(num_shards):
                self.parts.read_rows(number).unlink()
            raise
        # The facts are written last: without them the dataset is read again.
        facts = {"shards": num_shards, "images": num_images, "rejects": rejects}
        atomic_write_text(self.parts.facts, json.dumps(facts))

    def _finished_shards(self, num_shards: int) -> Container[int]:
        # List the parts before looking for corpus.json: they are removed once it is there.
        names = list_names(self.parts.folder)
        if self._is_finished():
            return range(num_shards)
        finished = set()
        for number in range(num_shards):
            if self.parts.kept_rows(number).name in names:
                finished.add(number)
        return finished

    def _decode_shards(self, progress: Progress) -> None:
        """Decode the shards that no other process has; return when all shards are done."""
        facts = self._read_facts()
        num_shards = facts["shards"]
        # For a progress bar that starts where other processes are.
        num_images = [self._count_images(number) for number in range(num_shards)]
        bar = progress.add_task("Decoding", total=facts["images"], unit="images")
        # Native decoders may crash or hang on a damaged file, so files are decoded in processes.
        decoder = IsolatedMap(decode_file, decoder_failed, self.workers)
        try:
            shards = ShardDecoder(self.out, self.settings, decoder, lambda: progress.advance(bar))
            for number in claim_shards(
                self.parts.folder, num_shards, lambda: self._finished_shards(num_shards)
            ):
                # The bar counts the work of all processes, not of this one only.
                finished = self._finished_shards(num_shards)
                completed = sum(
                    count for other, count in enumerate(num_images) if other in finished
                )
                progress.update(bar, completed=completed)
                shards.decode(number)
            progress.update(bar, completed=facts["images"])
        finally:
            decoder.close()

    def _count_images(self, number: int) -> int:
        column = pq.read_table(self.parts.read_rows(number), columns=["images"])["images"]
        return sum(len(json.loads(text.as_py())) for text in column)


def _progress_bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )


def _row(study: Study) -> dict[str, Any]:
    """A study as a row of the table; what is nested becomes JSON."""
    row = {name: getattr(study, name) for name in TEXT_COLUMNS}
    row["labels"] = json.dumps(dict(study.labels))
    row["attributes"] = json.dumps(dict(study.attributes))
    row["questions"] = json.dumps([asdict(question) for question in study.questions])
    images = []
    for image in study.images:
        images.append({"key": image.key, "view": image.view, "path": str(image.path)})
    row["images"] = json.dumps(images)
    return row


def _parse_settings(text: str) -> dict[str, Any] | None:
    """The contents of prepare.json; None for a file of another program."""
    try:
        settings = json.loads(text)
    except ValueError:
        return None
    if isinstance(settings, dict) and {"source", "root", "size"} <= settings.keys():
        return settings
    return None
