"""The journal of a shard that is being decoded: a killed `prepare` decodes no image twice.

    00000.u8   pixels of the decoded images, one after another, uint8 [n, S, S]
    00000.log  JSON lines: the digest of the tasks, then null (decoded) or a reason for each file

The pixels of an image are written before its line. So after a kill, each complete line is true.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from mavilt_pl.data.radiograph import Fit
from mavilt_pl.parallel.atomic_write import atomic_write_text

# Path, size, fit, and the folder that links must not lead out of (None: they may).
Task = tuple[str, int, Fit, str | None]


class DecodeJournal:
    """Appends decoded images and reasons, in the order of the tasks.

    Opening it again keeps what an earlier process has written for the same tasks.

    Args:
        folder: where the two files lie.
        number: of the shard.
        size: pixels along each side.
        tasks: every file of the shard, in order.

    Attributes:
        reasons: for each file processed so far, None or the reason of its rejection.
    """

    def __init__(self, folder: Path, number: int, size: int, tasks: Sequence[Task]):
        self.pixels_path = folder / f"{number:05d}.u8"
        self.lines_path = folder / f"{number:05d}.log"
        self.size = size
        digest = hashlib.sha256(repr(tasks).encode()).hexdigest()
        self.reasons = self._read_reasons(digest)
        # The line that was cut off, or lines of other tasks, must not precede new ones.
        self._rewrite_lines(digest)
        self.lines = self.lines_path.open("ab")
        self.pixels = self._open_pixels()

    @property
    def num_decoded(self) -> int:
        """Number of images with pixels."""
        return self.reasons.count(None)

    def _read_reasons(self, digest: str) -> list[str | None]:
        """What earlier processes have written for the same tasks, as far as it is complete."""
        if not self.lines_path.exists():
            return []
        written = self.lines_path.read_bytes()
        # The last line may be cut off.
        lines = written[: written.rfind(b"\n") + 1].splitlines()
        if not lines or json.loads(lines[0]) != digest:
            return []
        num_images = 0
        if self.pixels_path.exists():
            num_images = self.pixels_path.stat().st_size // self.size**2
        reasons: list[str | None] = []
        for line in lines[1:]:
            reason = json.loads(line)
            # A line without its pixels: the machine went down, not the process alone.
            if reason is None and reasons.count(None) == num_images:
                break
            reasons.append(reason)
        return reasons

    def _rewrite_lines(self, digest: str) -> None:
        lines = [json.dumps(entry) + "\n" for entry in (digest, *self.reasons)]
        atomic_write_text(self.lines_path, "".join(lines))

    def _open_pixels(self) -> BinaryIO:
        """Open the pixels for appending, cut to the images that have a line."""
        pixels = self.pixels_path.open("r+b" if self.pixels_path.exists() else "w+b")
        # Pixels without a line: the process was killed between the two writes of `add`.
        pixels.truncate(self.num_decoded * self.size**2)
        pixels.seek(0, os.SEEK_END)
        return pixels

    def add(self, result: np.ndarray | str) -> None:
        """Append the next file's result: pixels uint8 [S,S], or the reason of its rejection."""
        reason = result if isinstance(result, str) else None
        if not isinstance(result, str):
            self.pixels.write(result.tobytes())
            # Before the line, in the order that `_read_reasons` relies on.
            self.pixels.flush()
        self.reasons.append(reason)
        self.lines.write(json.dumps(reason).encode() + b"\n")
        self.lines.flush()

    def write_array(self, path: Path) -> None:
        """Close the journal and write its pixels as a .npy file, uint8 [n, S, S]."""
        self.close()
        shape = (self.num_decoded, self.size, self.size)
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        # np.save would report a full disk without its error number.
        with path.open("wb") as file, self.pixels_path.open("rb") as pixels:
            np.lib.format.write_array_header_1_0(file, header)
            shutil.copyfileobj(pixels, file)

    def close(self) -> None:
        """Close both files; they stay on disk."""
        self.lines.close()
        self.pixels.close()

    def remove(self) -> None:
        """Delete both files."""
        self.lines_path.unlink(missing_ok=True)
        self.pixels_path.unlink(missing_ok=True)
