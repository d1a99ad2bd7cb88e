"""Checks of images: missing and unreadable files, duplicates, empty pictures, cost of prepare."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mavilt_pl.data.check_studies import Check, Status
from mavilt_pl.data.corpus import Corpus
from mavilt_pl.data.radiograph import read_sized
from mavilt_pl.data.records import Study
from mavilt_pl.errors import Rejected

# Seconds of reading; if 2 % of the files are missing, it shows with a probability of 98 %.
SAMPLE = 200  # files of a dataset that are read unless all are asked for
SAMPLED_STUDIES = 2000  # studies of a corpus, likewise
PREPARED_SIZE = 256  # pixels along each side, for the estimate of prepare's cost
# Standard deviation in grey levels below which an image counts as empty.
FLAT_BELOW = 2


def _digest(pixels: np.ndarray) -> bytes:
    return hashlib.blake2b(pixels.tobytes(), digest_size=16).digest()


def check_files(files: list[Path], check_all: bool) -> Iterator[Check]:
    """Read image files and report what is missing, unreadable or there twice.

    The time that reading takes gives an estimate of what `prepare` will need.

    Args:
        files: every image of a dataset.
        check_all: read every file, not `SAMPLE` spread over them.
    """
    from rich.progress import track

    if not files:
        return
    # Spread evenly and not at random, so that the same call finds the same problems again.
    sampled = files if check_all else files[:: max(len(files) // SAMPLE, 1)][:SAMPLE]
    digests: dict[bytes, Path] = {}
    missing: list[str] = []
    unreadable: list[str] = []
    duplicates: list[str] = []
    start = time.perf_counter()
    for path in track(sampled, "Reading images", transient=True):
        try:
            pixels = read_sized(path, PREPARED_SIZE)
        except Rejected as reason:
            problems = missing if "is missing" in str(reason) else unreadable
            problems.append(str(reason))
            continue
        # Digests, not pixels, so that checking every file of a large dataset fits in memory.
        # Compared as `prepare` would store them: files that differ in their headers only are equal.
        first = digests.setdefault(_digest(pixels), path)
        if first != path:
            duplicates.append(f"{path} shows the same as {first}")
    # Unreadable files count as well: prepare will spend the time on them too.
    seconds = (time.perf_counter() - start) / len(sampled)

    found = f"of {len(sampled):,} checked"
    if not check_all:
        found += f", spread over {len(files):,} (--all for all)"
    # A few missing files cost a few studies; if all are missing, the folder is the wrong one.
    all_missing = len(missing) == len(sampled)
    yield _file_check(
        "missing files", missing, found, "finish the download", "error" if all_missing else None
    )
    todo = "download them again; prepare rejects them and records why"
    yield _file_check("unreadable files", unreadable, found, todo)
    todo = "harmless within a patient; across splits they leak"
    yield _file_check("duplicate images", duplicates, found, todo)
    yield _estimate(len(files), seconds)


def _file_check(
    name: str, problems: list[str], of: str, todo: str, status: Status | None = None
) -> Check:
    """One check that counts problems and shows the first of them."""
    if not problems:
        return Check(name, "ok", f"0 {of}", "none")
    todo = f"{todo}; the first: {problems[0]}"
    return Check(name, status or "warning", f"{len(problems):,} {of}", "none", todo)


def _estimate(num_files: int, seconds: float) -> Check:
    cores = os.cpu_count() or 1
    duration = format_duration(seconds * num_files / cores)
    size = format_bytes(num_files * PREPARED_SIZE**2)
    return Check(
        f"prepare at {PREPARED_SIZE}²", "note", f"about {duration} on {cores} cores, {size} on disk"
    )


def format_duration(seconds: float) -> str:
    """A duration in the largest fitting unit.

    >>> format_duration(99), format_duration(600), format_duration(9000)
    ('99 s', '10 min', '2.5 h')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def format_bytes(count: float) -> str:
    """A number of bytes in the largest fitting decimal unit.

    >>> format_bytes(1500)
    '2 KB'
    """
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def check_pixels(corpus: Corpus, check_all: bool) -> Iterator[Check]:
    """Report duplicates and empty images among a corpus's pixels.

    Args:
        corpus: a finished one.
        check_all: look at every study, not at `SAMPLED_STUDIES` spread over them.
    """
    step = 1 if check_all else max(len(corpus) // SAMPLED_STUDIES, 1)
    first_study: dict[bytes, Study] = {}
    duplicates: list[str] = []
    num_checked = num_flat = num_leaking = 0
    for row in range(0, len(corpus), step):
        study = corpus[row]
        for image, (number, _) in zip(study.images, corpus.image_rows(row)):
            pixels = np.asarray(corpus.pixels(number))
            num_checked += 1
            num_flat += int(pixels.std() < FLAT_BELOW)
            other = first_study.setdefault(_digest(pixels), study)
            if other is not study:
                duplicates.append(f"image {image.key} is in two studies")
                # The same image in train and test is what makes scores too good.
                num_leaking += other.split != study.split
    of = f"of {num_checked:,} checked" + ("" if step == 1 else " (--all for all)")

    name, found = "duplicate images", f"{len(duplicates):,} {of}"
    if duplicates:
        # The real datasets contain a few duplicates; above 1 % the scores on test would be wrong.
        status: Status = "error" if num_leaking > num_checked / 100 else "warning"
        todo = (
            f"{num_leaking:,} of them across splits, which leak; remove one of each; the first: "
            f"{duplicates[0]}"
        )
        yield Check(name, status, found, "none", todo)
    else:
        yield Check(name, "ok", found, "none")
    status = "warning" if num_flat else "ok"
    yield Check("images of nearly one value", status, f"{num_flat:,} {of}", "none")
