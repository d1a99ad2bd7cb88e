"""Join the decoded shards of a corpus: one table, one list of rejects, corpus.json."""

from __future__ import annotations

import csv
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mavilt_pl.data.corpus import FORMAT, SCHEMA, corpus_files_sha256, pixels_path
from mavilt_pl.data.corpus_parts import Parts, RejectRow
from mavilt_pl.data.hidden_names import write_secret
from mavilt_pl.data.records import SPLITS
from mavilt_pl.data.sources.tables import inert_cell
from mavilt_pl.errors import UserError
from mavilt_pl.parallel.atomic_write import atomic_write_text

TEXTS = ("findings", "impression", "report")
UNKNOWN = "unknown"  # split of what was rejected before its split was known
# A reader's rejects are of a whole study, or of one image of a study that it kept.
KIND_OF_STAGE = {"read": "studies", "image": "images"}


class ShardJoiner:
    """Joins the shards of one corpus.

    Args:
        out: folder of the corpus.
        settings: contents of prepare.json.
        num_shards: all of them decoded.
    """

    def __init__(self, out: Path, settings: Mapping[str, Any], num_shards: int):
        self.out, self.parts, self.settings = out, Parts(out / "parts"), settings
        self.num_shards = num_shards

    def join(self, reader_rejects: Sequence[RejectRow]) -> None:
        """Write the table, rejects.csv and, last, corpus.json.

        Raises:
            UserError: not a single study was kept.
        """
        counts = _count_reader_rejects(reader_rejects)
        # Rejects of the reader first, then of each shard in order: the same bytes however many
        # processes worked.
        rejects = list(reader_rejects)
        for number in range(self.num_shards):
            tally = json.loads(self.parts.tally(number).read_text(encoding="utf-8"))
            rejects += tally["rejects"]
            for kind, counter in counts.items():
                counter.update(tally[kind])
        contents = self._write_table()
        self._write_rejects(rejects)
        # Staged in the parts and moved: a killed process leaves nothing half-written in OUT.
        for name in ("studies.parquet", "studies.arrow", "rejects.csv"):
            os.replace(self.parts.folder / name, self.out / name)
        self._write_facts(contents, counts, rejects)

    def _write_table(self) -> Counter[str]:
        """Write studies.parquet and studies.arrow into the parts.

        Returns:
            The numbers of images, of studies with a text, and of questions.
        """
        contents = Counter(images=0, texts=0, questions=0)
        with (
            pq.ParquetWriter(self.parts.folder / "studies.parquet", SCHEMA) as parquet,
            pa.OSFile(str(self.parts.folder / "studies.arrow"), "wb") as file,
            pa.ipc.new_file(file, SCHEMA) as arrow,
        ):
            for number in range(self.num_shards):
                # Rows count within their shard; here they become rows of the whole pixel store.
                rows = pq.read_table(self.parts.kept_rows(number)).to_pylist()
                for row in rows:
                    images = json.loads(row["images"])
                    for image in images:
                        image["row"] += contents["images"]
                    row["images"] = json.dumps(images)
                    contents["texts"] += any(row[column] for column in TEXTS)
                    contents["questions"] += len(json.loads(row["questions"]))
                table = pa.Table.from_pylist(rows, SCHEMA)
                parquet.write_table(table)
                arrow.write_table(table)
                pixels = np.load(pixels_path(self.out, number), mmap_mode="r")
                contents["images"] += len(pixels)
        return contents

    def _write_rejects(self, rejects: Sequence[RejectRow]) -> None:
        path = self.parts.folder / "rejects.csv"
        # File names need not be text in any encoding.
        with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
            writer = csv.writer(file)
            writer.writerow(("study", "file", "stage", "reason"))
            for row in rejects:
                writer.writerow([inert_cell(cell) for cell in row])

    def _write_facts(
        self,
        contents: Mapping[str, int],
        counts: Mapping[str, Counter[str]],
        rejects: Sequence[RejectRow],
    ) -> None:
        """Write corpus.json, unless not a single study was kept."""
        splits = {}
        for split in (*SPLITS, UNKNOWN):
            totals = {kind: _total(counter, split) for kind, counter in counts.items()}
            if totals["studies"]["read"] or totals["images"]["read"]:
                # A split without studies is not listed.
                splits[split] = totals
        total = {kind: _total(counter) for kind, counter in counts.items()}
        # A corpus without studies would fail at the first epoch, hours later.
        if not total["studies"]["kept"]:
            reason = "the dataset is empty"
            if rejects:
                study, file, _, why = rejects[0]
                reason = f"the first: {study}: {why} {file}"
            raise UserError(
                f"{self.settings['root']}: no study of {total['studies']['read']} could be used; "
                f"{reason}"
            )
        facts = {
            "format": FORMAT,
            "name": self.settings["name"],
            "source": self.settings["source"],
            "size": self.settings["size"],
            "studies": total["studies"]["kept"],
            **contents,
            "total": total,
            "splits": splits,
            "shards": self.num_shards,
            # Of the files as they are on the disk now.
            "fingerprint": corpus_files_sha256(self.out, self.num_shards),
        }
        write_secret(self.out)
        atomic_write_text(self.out / "corpus.json", json.dumps(facts, indent=1))


def _count_reader_rejects(rejects: Sequence[RejectRow]) -> dict[str, Counter[str]]:
    counts = {"studies": Counter[str](), "images": Counter[str]()}
    for _, _, stage, _ in rejects:
        if stage in KIND_OF_STAGE:
            counts[KIND_OF_STAGE[stage]][f"{UNKNOWN}/rejected"] += 1
    return counts


def _total(counter: Counter[str], split: str | None = None) -> dict[str, int]:
    """Numbers of one split or of all; read = kept + rejected.

    Args:
        counter: numbers under keys such as `train/kept`.
        split: None for all.
    """
    totals = {"kept": 0, "rejected": 0}
    for key, count in counter.items():
        of_split, _, outcome = key.partition("/")
        if split in (None, of_split):
            totals[outcome] += count
    return {"read": totals["kept"] + totals["rejected"], **totals}
