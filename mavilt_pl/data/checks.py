"""Is this folder what training should see? A raw dataset, a corpus, a token cache
or a run.

Every check is one line: what was found, what was expected, what to do. `error` means that training
on it would be wrong, and then the command exits with 1; `warning` means that you should know.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from mavilt_pl.data.corpus import Corpus, corpus_files_sha256
from mavilt_pl.data.radiograph import read_sized
from mavilt_pl.data.records import SPLITS, Study
from mavilt_pl.data.sources import SOURCES, read_source
from mavilt_pl.data.token_cache import TokenCache
from mavilt_pl.errors import Rejected, UserError

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
# A file that is there only in that dataset's folder, for a source that is not named.
SIGNS = {
    "mimic-cxr-jpg": ("mimic-cxr-2.0.0-split.csv*", "files/p1*/p*/s*/*.jpg"),
    "mimic-cxr": ("cxr-record-list.csv*",),
    "indiana": ("ecgen-radiology",),
    "indiana-kaggle": ("indiana_reports.csv",),
    "r2gen": ("annotation.json",),
    "nih": ("Data_Entry_2017*.csv*",),
    "chexpert": ("train.csv", "valid.csv"),
    "rsna": ("stage_2_train_labels.csv*",),
}
SAMPLE = 200


@dataclass(frozen=True)
class Check:
    name: str
    status: Status
    found: str
    expected: str = ""
    todo: str = ""


def _share(part: int, whole: int) -> str:
    return f"{part:,} of {whole:,} ({100 * part / max(whole, 1):.1f} %)"


def _crossing(patients: Mapping[str, set[str]]) -> Check:
    crossing = sorted(patient for patient, splits in patients.items() if len(splits) > 1)
    name = "patients in two splits"
    if not crossing:
        return Check(name, "ok", "none", "none")
    shown = hashlib.sha256(crossing[0].encode()).hexdigest()[:10]
    todo = f"what is learned would be tested on the same patients; fix the split table (the first, hashed: {shown})"
    return Check(name, "error", f"{len(crossing):,}", "none", todo)


class _Seen:
    """What a pass over studies counts."""

    def __init__(self, studies: Iterable[Study]):
        self.counts: Counter[str] = Counter()
        self.labels: Counter[str] = Counter()
        self.views: Counter[str] = Counter()
        self.patients: dict[str, set[str]] = {}
        self.files: list[Path] = []
        for study in studies:
            self.counts.update(
                {
                    "studies": 1,
                    "images": len(study.images),
                    f"{study.split} studies": 1,
                    f"{study.split} images": len(study.images),
                    "findings": bool(study.findings),
                    "impression": bool(study.impression),
                    "any text": bool(study.findings or study.impression or study.report),
                    "without image": not study.images,
                    "labelled": bool(study.labels),
                    "questions": len(study.questions),
                }
            )
            self.labels.update({name: value == "present" for name, value in study.labels.items()})
            self.views.update(image.view for image in study.images)
            self.patients.setdefault(study.patient, set()).add(study.split)
            self.files += [image.path for image in study.images]
        self.counts["patients"] = len(self.patients)

    def checks(self) -> Iterator[Check]:
        c = self.counts
        if not c["studies"]:
            yield Check("studies", "error", "none", "at least one", "is this the right folder?")
            return
        splits = ", ".join(f"{split} {c[f'{split} studies']:,}" for split in SPLITS)
        yield Check("studies", "ok", f"{c['studies']:,} of {c['patients']:,} patients: {splits}")
        lacking = [split for split in SPLITS if not c[f"{split} studies"]]
        if lacking:
            yield Check(
                "splits",
                "warning",
                f"no study in {', '.join(lacking)}",
                "train, val and test",
                "training validates on val and is scored on test",
            )
        yield _crossing(self.patients)
        views = ", ".join(f"{view} {count:,}" for view, count in self.views.most_common())
        yield Check(
            "images",
            "warning" if c["without image"] else "ok",
            f"{c['images']:,} ({views}); {c['without image']:,} studies without",
        )
        if c["any text"]:
            for section in ("findings", "impression"):
                few = c[section] < c["studies"] / 2
                yield Check(
                    f"reports with {section}",
                    "warning" if few else "ok",
                    _share(c[section], c["studies"]),
                    todo="data.sections chooses what a report's text is" if few else "",
                )
            yield Check(
                "studies without any text",
                "ok" if c["any text"] == c["studies"] else "note",
                _share(c["studies"] - c["any text"], c["studies"]),
            )
        else:
            yield Check(
                "reports", "note", "none: good for the tokenizer and for external validation only"
            )
        if self.labels:
            rare, count = self.labels.most_common()[-1]
            yield Check(
                "labels",
                "ok",
                f"{len(self.labels)} findings; {_share(c['labelled'], c['studies'])} studies; the "
                f"rarest is {rare}, present {count:,} times",
            )
        else:
            yield Check("labels", "note", "none: no questions can be made from them, and no AUROC")
        if c["questions"]:
            yield Check("questions", "ok", f"{c['questions']:,}")


def _official(source: str, counts: Mapping[str, int]) -> Iterator[Check]:
    for what, expected in OFFICIAL.get(source, {}).items():
        found = counts[what]
        same = found == expected
        todo = (
            "" if same else "a part of the release, or another version of it; fine if you know why"
        )
        yield Check(
            f"official {what}", "ok" if same else "warning", f"{found:,}", f"{expected:,}", todo
        )


def _files(files: list[Path], everything: bool) -> Iterator[Check]:
    """Missing files, unreadable ones, duplicates; and from the time that reading took, what
    `prepare` will need.
    """
    from rich.progress import track

    if not files:
        return
    step = 1 if everything else max(len(files) // SAMPLE, 1)
    looked = files[::step][: None if everything else SAMPLE]
    digests: dict[bytes, str] = {}
    missing: list[str] = []
    unreadable: list[str] = []
    doubled: list[str] = []
    start = time.perf_counter()
    for path in track(looked, "Reading images", transient=True):
        try:
            pixels = read_sized(path, 256)
        except Rejected as reason:
            (missing if "is missing" in str(reason) else unreadable).append(str(reason))
            continue
        digest = hashlib.blake2b(pixels.tobytes(), digest_size=16).digest()
        if digests.setdefault(digest, str(path)) != str(path):
            doubled.append(f"{path} shows the same as {digests[digest]}")
    seconds = (time.perf_counter() - start) / len(looked)
    of = f"of {len(looked):,} looked at" + (
        "" if everything else f", spread over {len(files):,} (--all for all)"
    )
    for name, bad, todo in (
        ("missing files", missing, "finish the download"),
        (
            "unreadable files",
            unreadable,
            "download them again; prepare leaves them out and says so",
        ),
        ("duplicate images", doubled, "harmless within a patient; across splits they leak"),
    ):
        status: Status = (
            "ok"
            if not bad
            else "error"
            if bad is missing and len(bad) == len(looked)
            else "warning"
        )
        yield Check(
            name,
            status,
            f"{len(bad):,} {of}",
            "none",
            f"{todo}; the first: {bad[0]}" if bad else "",
        )
    cores = os.cpu_count() or 1
    yield Check(
        "prepare at 256²",
        "note",
        f"about {_hours(seconds * len(files) / cores)} on {cores} cores, "
        f"{_bytes(len(files) * 256**2)} on disk",
    )


def _hours(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 100
        else f"{seconds / 60:.0f} min"
        if seconds < 6000
        else f"{seconds / 3600:.1f} h"
    )


def _bytes(count: float) -> str:
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def _dataset(
    root: Path, source: str, options: Mapping[str, str], everything: bool
) -> Iterator[Check]:
    rejects: list[tuple[str, ...]] = []
    seen = _Seen(read_source(source, root, lambda *why: rejects.append(why), **options))
    yield Check("dataset", "ok", source)
    yield from seen.checks()
    first = f"the first: {rejects[0][0]}: {rejects[0][3]}" if rejects else ""
    yield Check(
        "left out by the reader",
        "warning" if rejects else "ok",
        f"{len(rejects):,} studies, rows or images",
        "none",
        first,
    )
    yield from _official(source, seen.counts)
    yield from _files(seen.files, everything)


def _corpus(path: Path, everything: bool) -> Iterator[Check]:
    corpus = Corpus(path)
    yield Check("corpus", "ok", f"{corpus.name}, {corpus.n_images:,} images of {corpus.size}²")
    yield from _Seen(iter(corpus)).checks()
    total = corpus.facts["total"]
    for what, said in total.items():
        status: Status = "ok" if said["rejected"] <= said["read"] / 20 else "warning"
        yield Check(
            f"{what} rejected by prepare",
            status,
            _share(said["rejected"], said["read"]),
            todo=f"reasons: {path / 'rejects.csv'}" if said["rejected"] else "",
        )
    yield from _pixels(corpus, everything)
    if everything:
        same = corpus_files_sha256(corpus.path, corpus.facts["shards"]) == corpus.fingerprint
        yield Check(
            "fingerprint",
            "ok" if same else "error",
            "as made" if same else "the files changed since",
            "as made",
            "" if same else "prepare it again",
        )


def _pixels(corpus: Corpus, everything: bool) -> Iterator[Check]:
    """Doubles and empty images among a corpus's pixels."""
    step = 1 if everything else max(len(corpus) // 2000, 1)
    first: dict[bytes, Study] = {}
    looked = flat = 0
    doubled: list[str] = []
    leaking = 0
    for row in range(0, len(corpus), step):
        study = corpus[row]
        for image, (number, _) in zip(study.images, corpus.image_rows(row)):
            pixels = np.asarray(corpus.pixels(number))
            looked += 1
            flat += int(pixels.std() < 2)
            other = first.setdefault(
                hashlib.blake2b(pixels.tobytes(), digest_size=16).digest(), study
            )
            if other is not study:
                doubled.append(f"image {image.key} is in two studies")
                leaking += other.split != study.split
    of = f"of {looked:,} looked at" + ("" if step == 1 else " (--all for all)")
    status: Status = "error" if leaking > looked / 100 else "warning" if doubled else "ok"
    todo = (
        f"{leaking:,} of them across splits, which leak; leave one of each out; the first: "
        f"{doubled[0]}"
        if doubled
        else ""
    )
    yield Check("duplicate images", status, f"{len(doubled):,} {of}", "none", todo)
    yield Check("images of nearly one value", "warning" if flat else "ok", f"{flat:,} {of}", "none")


def _tokens(path: Path, corpora: list[Path]) -> Iterator[Check]:
    cache = TokenCache(path)
    codes = np.load(path / "codes.npy", mmap_mode="r")
    yield Check(
        "token cache", "ok", f"{len(codes):,} images of {cache.length} codes out of {cache.codes}"
    )
    used = np.zeros(cache.codes, bool)
    highest = int(codes.max(initial=0))
    if highest >= cache.codes:
        yield Check("codes", "error", f"a code {highest}", f"below {cache.codes}", "tokenize again")
        return
    for start in range(0, len(codes), 4096):
        used[np.unique(codes[start : start + 4096])] = True
    share = used.mean()
    yield Check(
        "codes in use",
        "ok" if share > 0.5 else "warning",
        f"{100 * share:.0f} %",
        "above 50 %",
        "" if share > 0.5 else "the codebook collapsed: see README, tokenizer",
    )
    for corpus in map(Corpus, corpora):
        same = corpus.fingerprint == cache.corpus
        yield Check(
            f"made from {corpus.path}",
            "ok" if same else "error",
            cache.corpus[:12],
            corpus.fingerprint[:12],
            "" if same else "the corpus was prepared anew: tokenize again",
        )
    if not corpora:
        yield Check(
            "its corpus",
            "note",
            f"fingerprint {cache.corpus[:12]}; name it with --corpus to compare",
        )


def _run(path: Path) -> Iterator[Check]:
    import torch

    for checkpoint in sorted((path / "checkpoints").glob("*.ckpt")):
        try:
            said = torch.load(checkpoint, map_location="cpu", weights_only=True)
            bad = [
                name
                for name, value in said["state_dict"].items()
                if value.is_floating_point() and not value.isfinite().all()
            ]
        except Exception as error:
            todo = (
                "delete it; --ckpt_path takes another"
                if checkpoint.name != "last.ckpt"
                else "name another with --ckpt_path"
            )
            yield Check(
                checkpoint.name,
                "error",
                f"not readable ({type(error).__name__})",
                "a whole checkpoint",
                todo,
            )
            continue
        found = f"step {said['global_step']:,}, {_bytes(checkpoint.stat().st_size)}"
        todo = f"not a number in {bad[0]}: train again from an earlier one" if bad else ""
        yield Check(checkpoint.name, "error" if bad else "ok", found, todo=todo)
    if not (path / "checkpoints" / "last.ckpt").exists():
        yield Check(
            "last.ckpt",
            "error",
            "missing",
            "checkpoints/last.ckpt",
            "the run has not saved yet, or was not kept here",
        )


def diagnose(
    path: Path,
    source: str | None,
    options: Mapping[str, str],
    corpora: list[Path],
    everything: bool,
) -> Iterator[Check]:
    """All checks of a folder, whatever it is; raises `UserError` where it is nothing that is known
    here.
    """
    if not path.is_dir():
        raise UserError(
            f"{path} is not a folder; expected a dataset, a corpus, a token cache or a run"
        )
    if source is not None:
        yield from _dataset(path, source, options, everything)
    elif (path / "corpus.json").exists() or (path / "prepare.json").exists():
        yield from _corpus(path, everything)
    elif (path / "tokens.json").exists() or (path / "codes.npy.part").exists():
        yield from _tokens(path, corpora)
    elif (path / "checkpoints").is_dir():
        yield from _run(path)
    else:
        guess = next(
            (
                name
                for name, signs in SIGNS.items()
                if name in SOURCES and any(next(path.glob(sign), None) for sign in signs)
            ),
            None,
        )
        if guess is None:
            raise UserError(
                f"{path} is no corpus, token cache or run, and looks like none of the datasets "
                f"{', '.join(sorted(SOURCES))}: "
                "name it with --source"
            )
        yield from _dataset(path, guess, options, everything)
    free = shutil.disk_usage(path).free
    yield Check("free disk here", "ok" if free > 50e9 else "note", _bytes(free))
