"""Checks of a dataset's studies: splits, patients, reports, labels, counts of the release."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mavilt_pl.data.records import SPLITS, Study

Status = Literal["ok", "warning", "error", "note"]

# The official releases: images by split, studies, patients (mimic-cxr-jpg 2.0.0 and mimic-cxr
# 2.0.0, physionet.org).
MIMIC = {
    "images": 377_110,
    "studies": 227_835,
    "patients": 65_379,
    "train images": 368_960,
    "val images": 2_991,
    "test images": 5_159,
}
OFFICIAL: dict[str, dict[str, int]] = {
    "mimic-cxr-jpg": MIMIC,
    "mimic-cxr": {key: MIMIC[key] for key in ("images", "studies", "patients")},
    "indiana": {"images": 7_470, "studies": 3_955},
    "nih": {"images": 112_120, "patients": 30_805},
    "chexpert": {"images": 223_648, "studies": 187_841},
}


@dataclass(frozen=True)
class Check:
    """One line of the doctor's table.

    Args:
        name: what is checked.
        status: `error` if training on it would be wrong, `warning` if the user should know.
        found: what was found.
        expected: what was expected, if that can be said.
        todo: what to do about it.
    """

    name: str
    status: Status
    found: str
    expected: str = ""
    todo: str = ""


def share(part: int, whole: int) -> str:
    """A number with its percentage.

    >>> share(1, 8)
    '1 of 8 (12.5 %)'
    """
    return f"{part:,} of {whole:,} ({100 * part / max(whole, 1):.1f} %)"


class StudySummary:
    """Counts over the studies of a dataset or a corpus, from one pass.

    Args:
        studies: all of them.

    Attributes:
        counts: of studies, images, patients and texts, under the names that the checks use.
        labels: of each finding, how often it is present.
        views: of each view, how many images.
        splits: of each patient, the splits of the patient's studies.
        files: every image's path.
    """

    def __init__(self, studies: Iterable[Study]):
        self.counts: Counter[str] = Counter()
        self.labels: Counter[str] = Counter()
        self.views: Counter[str] = Counter()
        self.splits: dict[str, set[str]] = {}
        self.files: list[Path] = []
        for study in studies:
            self._add(study)
        # An entry of `splits` for each patient.
        self.counts["patients"] = len(self.splits)

    def _add(self, study: Study) -> None:
        counts = self.counts
        counts["studies"] += 1
        counts["images"] += len(study.images)
        counts[f"{study.split} studies"] += 1
        counts[f"{study.split} images"] += len(study.images)
        counts["findings"] += bool(study.findings)
        counts["impression"] += bool(study.impression)
        counts["any text"] += bool(study.findings or study.impression or study.report)
        counts["without image"] += not study.images
        counts["labelled"] += bool(study.labels)
        counts["questions"] += len(study.questions)
        for name, value in study.labels.items():
            # Also for absent ones: a finding that is never present appears with 0.
            self.labels[name] += value == "present"
        self.splits.setdefault(study.patient, set()).add(study.split)
        for image in study.images:
            self.views[image.view] += 1
            self.files.append(image.path)

    def checks(self) -> Iterator[Check]:
        """Yield the checks of everything counted."""
        if not self.counts["studies"]:
            yield Check("studies", "error", "none", "at least one", "is this the right folder?")
            return
        yield from self._check_splits()
        yield self._check_patients()
        yield self._check_images()
        yield from self._check_reports()
        yield self._check_labels()
        if self.counts["questions"]:
            yield Check("questions", "ok", f"{self.counts['questions']:,}")

    def _check_splits(self) -> Iterator[Check]:
        counts = self.counts
        by_split = ", ".join(f"{split} {counts[f'{split} studies']:,}" for split in SPLITS)
        found = f"{counts['studies']:,} of {counts['patients']:,} patients: {by_split}"
        yield Check("studies", "ok", found)
        empty = [split for split in SPLITS if not counts[f"{split} studies"]]
        if empty:
            yield Check(
                "splits",
                "warning",
                f"no study in {', '.join(empty)}",
                "train, val and test",
                "training validates on val and is scored on test",
            )

    def _check_patients(self) -> Check:
        # `read_source` rejects such studies; this finds them in a corpus of another tool, or
        # another version.
        crossing = sorted(patient for patient, splits in self.splits.items() if len(splits) > 1)
        name = "patients in two splits"
        if not crossing:
            return Check(name, "ok", "none", "none")
        # Identifiers are patient data, and a hash of so few digits can be reversed: only a count.
        todo = (
            "the model would be tested on patients it was trained on; give each patient one split "
            "in the dataset's table and prepare it again"
        )
        return Check(name, "error", f"{len(crossing):,}", "none", todo)

    def _check_images(self) -> Check:
        views = ", ".join(f"{view} {count:,}" for view, count in self.views.most_common())
        without = self.counts["without image"]
        found = f"{self.counts['images']:,} ({views}); {without:,} studies without"
        return Check("images", "warning" if without else "ok", found)

    def _check_reports(self) -> Iterator[Check]:
        num_studies, with_text = self.counts["studies"], self.counts["any text"]
        if not with_text:
            found = "none: good for the tokenizer and for external validation only"
            # Not a warning: NIH and CheXpert are published without reports.
            yield Check("reports", "note", found)
            return
        for section in ("findings", "impression"):
            name, found = f"reports with {section}", share(self.counts[section], num_studies)
            # Below a half, the headings of the reports are probably not recognised.
            if self.counts[section] < num_studies / 2:
                todo = "data.sections chooses which text of a report is used"
                yield Check(name, "warning", found, todo=todo)
            else:
                yield Check(name, "ok", found)
        without = num_studies - with_text
        yield Check(
            "studies without any text", "note" if without else "ok", share(without, num_studies)
        )

    def _check_labels(self) -> Check:
        if not self.labels:
            return Check("labels", "note", "none: no questions from labels, and no AUROC")
        # The rarest, because its AUROC is the least certain one.
        rarest, count = self.labels.most_common()[-1]
        labelled = share(self.counts["labelled"], self.counts["studies"])
        return Check(
            "labels",
            "ok",
            f"{len(self.labels)} findings; {labelled} studies; the rarest is {rarest}, present "
            f"{count:,} times",
        )


def check_release(source: str, counts: Mapping[str, int]) -> Iterator[Check]:
    """Compare the counts of a dataset with those of its official release."""
    for kind, expected in OFFICIAL.get(source, {}).items():
        found = counts[kind]
        name = f"official {kind}"
        if found == expected:
            yield Check(name, "ok", f"{found:,}", f"{expected:,}")
        else:
            todo = "a part of the release, or another version of it; fine if you know why"
            yield Check(name, "warning", f"{found:,}", f"{expected:,}", todo)
