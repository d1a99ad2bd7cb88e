"""What a download brings, from a sample of its studies: images, texts, labels."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mavilt_pl.data.sources import read_source
from mavilt_pl.errors import UserError

SAMPLE = 500  # studies that are looked at


@dataclass(frozen=True)
class Survey:
    """A sample of a download.

    Args:
        studies: that were read.
        images: image files that are there.
        missing: image files that are not there.
        texts: studies with findings, an impression or a report.
        labels: studies with each label, present or not.
    """

    studies: int
    images: int
    missing: int
    texts: int
    labels: Mapping[str, int]


def survey(reader: str, folder: Path, options: Mapping[str, Any]) -> Survey:
    """Read the first studies of a download.

    Args:
        reader: name of the reader.
        folder: the download.
        options: of the reader.

    Raises:
        UserError: it cannot be read, or is half a download: no study, or no image of those that
            its tables name.
    """
    # The first reason says what is wrong, if nothing can be read at all.
    reasons: list[str] = []

    def reject(study: str, file: str, stage: str, reason: str) -> None:
        """Keep why a study was rejected."""
        reasons.append(f"{study}: {reason}")

    studies = images = texts = 0
    missing: list[Path] = []
    labels: Counter[str] = Counter()
    for study in itertools.islice(read_source(reader, folder, reject, **options), SAMPLE):
        # Labels count by name: whether a finding is labelled at all, not how often it is there.
        studies += 1
        texts += bool((study.findings + study.impression + study.report).strip())
        labels.update(study.labels.keys())
        for image in study.images:
            # A member of an archive is read later.
            if image.path.is_file():
                images += 1
            else:
                missing.append(image.path)
    if not studies:
        why = f": {reasons[0]}" if reasons else ""
        raise UserError(f"{folder}: no study can be read as {reader}{why}")
    # Tables are small and come first in a download; images take days.
    if not images:
        example = f"{missing[0]} is not there" if missing else "the studies name no image"
        raise UserError(
            f"{folder}: none of the first {studies:,} studies has an image ({example}). Is the "
            "download complete? `mavilt doctor` checks it"
        )
    return Survey(studies, images, len(missing), texts, dict(labels))
