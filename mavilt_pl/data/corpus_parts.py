"""The unfinished pieces of a corpus, in OUT/parts: their names, and the table's row format."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mavilt_pl.data.corpus import SCHEMA
from mavilt_pl.parallel.atomic_write import atomic_open

RejectRow = tuple[str, str, str, str]  # study, file, stage, reason: a row of rejects.csv
# Every name that `prepare` gives to a file in OUT/parts.
_PART_NAME = re.compile(
    r"\.lock|\d+\.(?:lock|u8|log|json|npy|parquet|read\.parquet)|read\.json|rejects\.csv"
    r"|studies\.(?:parquet|arrow)|\..+\.part"
)


@dataclass(frozen=True)
class Parts:
    """Paths of the unfinished pieces of a corpus, in OUT/parts."""

    folder: Path

    @property
    def lock(self) -> Path:
        """Held while one process reads the dataset or joins the shards."""
        return self.folder / ".lock"

    @property
    def facts(self) -> Path:
        """Written when the dataset has been read: number of shards and images, the rejects."""
        return self.folder / "read.json"

    def read_rows(self, number: int) -> Path:
        """Rows of a shard as read from the dataset, before decoding."""
        return self.folder / f"{number:05d}.read.parquet"

    def kept_rows(self, number: int) -> Path:
        """Rows of a shard after decoding; written last, so a shard that has them is finished."""
        return self.folder / f"{number:05d}.parquet"

    def tally(self, number: int) -> Path:
        """Counts and rejects of a shard."""
        return self.folder / f"{number:05d}.json"

    def remove(self) -> None:
        """Delete what `prepare` has written here, and the folder if nothing else is in it."""
        # Another process may remove the same files now, or the folder may hold a user's file: then
        # it stays.
        with suppress(OSError):
            for path in self.folder.iterdir():
                if _PART_NAME.fullmatch(path.name):
                    path.unlink(missing_ok=True)
            self.folder.rmdir()


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows of a corpus's table as a Parquet file."""
    with atomic_open(path, "wb") as file:
        pq.write_table(pa.Table.from_pylist(rows, SCHEMA), file)
