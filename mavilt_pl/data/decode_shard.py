"""Decode one shard of a corpus: its rows as read from the dataset → pixels, kept rows, a tally."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq

from mavilt_pl.data.corpus import pixels_path
from mavilt_pl.data.corpus_parts import Parts, RejectRow, write_rows
from mavilt_pl.data.decode_journal import DecodeJournal, Task
from mavilt_pl.data.links import check_link
from mavilt_pl.data.radiograph import read_sized
from mavilt_pl.data.records import FRONTAL
from mavilt_pl.errors import Rejected
from mavilt_pl.parallel.atomic_write import atomic_write_text
from mavilt_pl.parallel.process_pool import IsolatedMap


def decode_file(task: Task) -> np.ndarray | str:
    """Pixels of one file, uint8 [S,S], or the reason of its rejection."""
    path, size, fit, folder = task
    # One process runs on each core: threads within would only wait for one another.
    cv2.setNumThreads(1)
    try:
        if folder is not None:
            check_link(Path(path), Path(folder))
        return read_sized(Path(path), size, fit)
    except Rejected as reason:
        return str(reason)


def decoder_failed(task: Task, reason: str) -> str:
    """The reason of rejection for a file that killed or stalled its decoder."""
    return f"{task[0]}: {reason}"


class Tally:
    """Numbers of kept and rejected studies and images by split, and the rejects with reasons."""

    def __init__(self) -> None:
        self.counts: dict[str, Counter[str]] = {"studies": Counter(), "images": Counter()}
        self.rejects: list[RejectRow] = []

    def keep(self, kind: str, split: str) -> None:
        """Count one kept study or image."""
        self.counts[kind][f"{split}/kept"] += 1

    def reject(self, kind: str, split: str, reject: RejectRow) -> None:
        """Count one rejected study or image, and record why."""
        self.counts[kind][f"{split}/rejected"] += 1
        self.rejects.append(reject)


def wanted_views(names: Iterable[str]) -> set[str]:
    """The views that a user asks for; empty for all.

    >>> sorted(wanted_views(["FRONTAL"]))
    ['AP', 'FRONTAL', 'PA']
    """
    views = set(names)
    # PA and AP are frontal too; datasets name the projection if they know it.
    return views | FRONTAL if "FRONTAL" in views else views


class ShardDecoder:
    """Decodes shards of one corpus.

    Args:
        out: folder of the corpus.
        settings: contents of prepare.json.
        decoder: maps tasks to `decode_file`'s results.
        advance: called for each image that is done.
    """

    def __init__(
        self,
        out: Path,
        settings: Mapping[str, Any],
        decoder: IsolatedMap,
        advance: Callable[[], None],
    ):
        self.out, self.parts = out, Parts(out / "parts")
        self.size, self.fit = settings["size"], settings["fit"]
        self.folder = None if settings.get("follow_links") else settings["root"]
        self.views = wanted_views(settings["views"])
        self.decoder, self.advance = decoder, advance

    def decode(self, number: int) -> None:
        """Write the shard's pixels, then its tally, then its rows."""
        rows = pq.read_table(self.parts.read_rows(number)).to_pylist()
        tasks: list[Task] = []
        for row in rows:
            for image in json.loads(row["images"]):
                if self._is_selected(image):
                    tasks.append((image["path"], self.size, self.fit, self.folder))
                else:
                    # The progress bar counts all images, selected or not.
                    self.advance()
        # The journal refuses entries of other tasks, for example after files were added.
        journal = DecodeJournal(self.parts.folder, number, self.size, tasks)
        self._decode_remaining(journal, tasks)
        kept, tally = self._select(rows, journal.reasons)
        self._write(number, journal, kept, tally)

    def _is_selected(self, image: Mapping[str, str]) -> bool:
        return not self.views or image["view"] in self.views

    def _decode_remaining(self, journal: DecodeJournal, tasks: list[Task]) -> None:
        """Decode the files that an earlier process has not."""
        for _ in journal.reasons:
            self.advance()
        try:
            for result in self.decoder(tasks[len(journal.reasons) :]):
                journal.add(result)
                self.advance()
        finally:
            journal.close()

    def _select(
        self, rows: list[dict[str, str]], reasons: list[str | None]
    ) -> tuple[list[dict[str, str]], Tally]:
        """Rows of the studies that keep an image, and the tally of the shard.

        Args:
            rows: of the shard, as read from the dataset.
            reasons: for each selected image in order, None or the reason of its rejection.
        """
        tally = Tally()
        next_reason = iter(reasons)
        kept_rows = []
        num_pixels = 0
        for row in rows:
            study, split = row["study"], row["split"]
            images = json.loads(row["images"])
            self._reject_views(tally, study, split, images)
            kept_images = []
            for image in filter(self._is_selected, images):
                # Reasons come in the order of the tasks, which is that of the selected images.
                reason = next(next_reason)
                if reason is not None:
                    tally.reject("images", split, (study, image["path"], "decode", reason))
                    continue
                tally.keep("images", split)
                # `row` counts within the shard until the shards are joined.
                kept_images.append({"key": image["key"], "view": image["view"], "row": num_pixels})
                num_pixels += 1
            if kept_images:
                tally.keep("studies", split)
                kept_rows.append({**row, "images": json.dumps(kept_images)})
            else:
                reason = f"none of its {len(images)} images could be used"
                tally.reject("studies", split, (study, "", "images", reason))
        return kept_rows, tally

    def _reject_views(
        self, tally: Tally, study: str, split: str, images: list[dict[str, str]]
    ) -> None:
        names = ", ".join(sorted(self.views))
        for image in images:
            if not self._is_selected(image):
                reason = f"view {image['view']} is not among {names}"
                tally.reject("images", split, (study, image["path"], "views", reason))

    def _write(
        self, number: int, journal: DecodeJournal, rows: list[dict[str, str]], tally: Tally
    ) -> None:
        # The rows mark the shard as finished, so they come after everything that they refer to.
        pixels = self.parts.folder / f"{number:05d}.npy"
        journal.write_array(pixels)
        # Under its final name only when it is whole.
        os.replace(pixels, pixels_path(self.out, number))
        facts = {"rejects": tally.rejects, **tally.counts}
        atomic_write_text(self.parts.tally(number), json.dumps(facts))
        write_rows(self.parts.kept_rows(number), rows)
        # Last: a kill before this line costs nothing, since the shard counts as finished already.
        journal.remove()
