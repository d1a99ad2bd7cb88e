"""Check whether training would be right on a raw dataset, a corpus, a token cache or a run.

Every check is one line: what was found, what was expected, what to do. `error` means that training
on it would be wrong; `warning` means that you should know.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mavilt_pl.data.check_images import check_files, check_pixels, format_bytes
from mavilt_pl.data.check_studies import Check, Status, StudySummary, check_release, share
from mavilt_pl.data.corpus import Corpus, corpus_files_sha256
from mavilt_pl.data.sources import SOURCES, read_source
from mavilt_pl.data.token_cache import TokenCache
from mavilt_pl.errors import UserError

# Files that only this dataset's folder holds, to recognise a source that the user has not named.
SIGNS = {
    "mimic-cxr-jpg": ("mimic-cxr-2.0.0-split.csv*", "files/p1*/p*/s*/*.jpg"),
    "mimic-cxr": ("cxr-record-list.csv*",),
    "indiana": ("ecgen-radiology",),
    "indiana-kaggle": ("indiana_reports.csv",),
    "r2gen": ("annotation.json",),
    "nih": ("Data_Entry_2017*.csv*",),
    "chexpert": ("train.csv", "valid.csv", "CheXpert*batch*"),
    "rsna": ("stage_2_train_labels.csv*",),
    "table": ("studies.csv*", "studies.jsonl"),
}
ENOUGH_DISK = 50e9  # bytes
FREE_DISK = "free disk here"
DEPTH = 3  # of a run in a recipe's folder: arm, seed, module
CODE_ROWS = 4096  # rows of codes read at a time


def diagnose(
    path: Path,
    source: str | None,
    options: Mapping[str, Any],
    corpora: Sequence[Path],
    check_all: bool,
) -> Iterator[Check]:
    """Yield all checks of a folder, whatever it is.

    Args:
        path: a dataset, a corpus, a token cache, a run, a recipe's folder or an exported model.
        source: the reader of a dataset; None to recognise the folder.
        options: of the reader, and `follow_links`.
        corpora: to compare a token cache with.
        check_all: read every file instead of a sample.

    Raises:
        UserError: the folder is none of these.
    """
    if not path.is_dir():
        raise UserError(
            f"{path} is not a folder; expected a dataset, a corpus, a token cache, a run, a "
            "recipe's folder or an exported model"
        )
    if source is not None:
        yield from _check_dataset(path, source, options, check_all)
    elif (path / "corpus.json").exists() or (path / "prepare.json").exists():
        # Our own folders first: each has a file that no dataset has. An unfinished one counts too.
        yield from _check_corpus(path, check_all)
    elif (path / "tokens.json").exists() or (path / "parts" / "encoder.json").exists():
        yield from _check_token_cache(path, corpora)
    elif (path / "checkpoints").is_dir():
        yield from _check_run(path)
    elif (path / "visual.json").exists():
        yield from _check_exported(path)
    elif (path / ".steps").is_dir():
        yield from _check_recipe(path, check_all)
    else:
        yield from _check_dataset(path, recognise_source(path), options, check_all)
    free = shutil.disk_usage(path).free
    yield Check(FREE_DISK, "ok" if free > ENOUGH_DISK else "note", format_bytes(free))


def recognise_source(path: Path) -> str:
    """The reader of a download, by its files.

    Raises:
        UserError: it looks like none of them.
    """
    for name, signs in SIGNS.items():
        for sign in signs:
            # The first hit is enough: MIMIC-CXR has 377,110 images to list.
            if next(path.glob(sign), None) is not None:
                return name
    raise UserError(
        f"{path} is no corpus, token cache or run, and looks like none of the datasets "
        f"{', '.join(sorted(SOURCES))}: name it with --source"
    )


def _check_dataset(
    root: Path, source: str, options: Mapping[str, Any], check_all: bool
) -> Iterator[Check]:
    rejects: list[tuple[str, str]] = []  # study and reason

    def reject(study: str, file: str, stage: str, reason: str) -> None:
        rejects.append((study, reason))

    summary = StudySummary(read_source(source, root, reject, **options))
    yield Check("dataset", "ok", source)
    yield from summary.checks()
    name, found = "rejected by the reader", f"{len(rejects):,} studies, rows or images"
    if rejects:
        study, reason = rejects[0]
        yield Check(name, "warning", found, "none", f"the first: {study}: {reason}")
    else:
        yield Check(name, "ok", found, "none")
    yield from check_release(source, summary.counts)
    # Last, because it takes longest: the lines above are on the screen by then.
    yield from check_files(summary.files, check_all)


def _check_corpus(path: Path, check_all: bool) -> Iterator[Check]:
    corpus = Corpus(path)
    yield Check("corpus", "ok", f"{corpus.name}, {corpus.n_images:,} images of {corpus.size}²")
    yield from StudySummary(iter(corpus)).checks()
    for kind, total in corpus.facts["total"].items():
        rejected, read = total["rejected"], total["read"]
        status: Status = "ok" if rejected <= read / 20 else "warning"
        todo = f"reasons: {path / 'rejects.csv'}" if rejected else ""
        yield Check(f"{kind} rejected by prepare", status, share(rejected, read), todo=todo)
    yield from check_pixels(corpus, check_all)
    # The fingerprint reads every byte of the corpus.
    if check_all:
        yield _check_fingerprint(corpus)


def _check_fingerprint(corpus: Corpus) -> Check:
    expected = "as prepared"
    if corpus_files_sha256(corpus.path, corpus.facts["shards"]) == corpus.fingerprint:
        return Check("fingerprint", "ok", expected, expected)
    return Check("fingerprint", "error", "the files changed since", expected, "prepare it again")


def _check_token_cache(path: Path, corpora: Sequence[Path]) -> Iterator[Check]:
    cache = TokenCache(path)
    codes_IN = np.load(path / "codes.npy", mmap_mode="r")  # [images, N]
    found = (
        f"{len(codes_IN):,} images of {cache.codes_per_image} codes out of {cache.codebook_size}"
    )
    yield Check("token cache", "ok", found)
    # A code outside the codebook would become a wrong row of the language model's embedding.
    # `initial`: a cache of no images has no maximum.
    highest = int(codes_IN.max(initial=0))
    if highest >= cache.codebook_size:
        expected = f"below {cache.codebook_size}"
        yield Check("codes", "error", f"a code {highest}", expected, "tokenize again")
        return
    yield _check_codebook_use(codes_IN, cache.codebook_size)
    for corpus in map(Corpus, corpora):
        name = f"encoded from {corpus.path}"
        cached, current = cache.corpus[:12], corpus.fingerprint[:12]
        if corpus.fingerprint == cache.corpus:
            yield Check(name, "ok", cached, current)
        else:
            todo = "the corpus was prepared again: tokenize again"
            yield Check(name, "error", cached, current, todo)
    if not corpora:
        found = f"fingerprint {cache.corpus[:12]}; name it with --corpus to compare"
        yield Check("its corpus", "note", found)


def _check_codebook_use(codes_IN: np.ndarray, codebook_size: int) -> Check:
    # Block by block: the mapped array may be larger than the memory.
    used = np.zeros(codebook_size, bool)
    for start in range(0, len(codes_IN), CODE_ROWS):
        used[np.unique(codes_IN[start : start + CODE_ROWS])] = True
    name, found, expected = "codes in use", f"{100 * used.mean():.0f} %", "above 50 %"
    if used.mean() > 0.5:
        return Check(name, "ok", found, expected)
    todo = "the codebook collapsed: see docs/tokenizer.md, Health"
    return Check(name, "warning", found, expected, todo)


def _check_run(path: Path) -> Iterator[Check]:
    for checkpoint in sorted((path / "checkpoints").glob("*.ckpt")):
        yield _check_checkpoint(checkpoint)
    if not (path / "checkpoints" / "last.ckpt").exists():
        yield Check(
            "last.ckpt",
            "error",
            "missing",
            "checkpoints/last.ckpt",
            "the run has not saved yet, or was not kept here",
        )


def _check_recipe(path: Path, check_all: bool) -> Iterator[Check]:
    """Check everything that the finished steps of a recipe have written."""
    for begun in sorted((path / ".steps").glob("*.json.begun")):
        name = f"step {begun.name.removesuffix('.json.begun')}"
        if begun.with_suffix("").exists():
            yield Check(name, "ok", "finished", "finished")
        else:
            todo = "the same `mavilt run` continues it"
            yield Check(name, "warning", "begun", "finished", todo)
    for folder in _known_folders(path, DEPTH):
        name = str(folder.relative_to(path))
        for check in diagnose(folder, None, {}, (), check_all):
            if check.name != FREE_DISK:
                yield replace(check, name=f"{name}: {check.name}")


def _known_folders(path: Path, depth: int) -> Iterator[Path]:
    """Corpora, token caches and runs at most `depth` levels below a recipe's folder."""
    for child in sorted(path.iterdir()):
        if child.is_symlink() or not child.is_dir():
            continue
        if any((child / mark).exists() for mark in ("corpus.json", "tokens.json", "checkpoints")):
            yield child
        # Datasets, which may have a million files, lie in `raw`.
        elif depth > 1 and child.name != "raw" and not child.name.startswith("."):
            yield from _known_folders(child, depth - 1)


def _check_exported(path: Path) -> Iterator[Check]:
    """Check a folder of `mavilt export`: its weights are finite, and its tokens are there."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        facts = json.loads((path / "visual.json").read_text(encoding="utf-8"))
        rows = json.loads((path / "config.json").read_text(encoding="utf-8"))["vocab_size"]
        last = facts["first_code"] + facts["codebook_size"]
    except (OSError, KeyError, TypeError, ValueError) as error:
        yield Check("exported model", "error", f"not readable ({error})", todo="export it again")
        return
    fits = last <= rows
    yield Check("codes", "ok" if fits else "error", f"up to {last:,}", f"at most {rows:,} rows")
    files = sorted(path.glob("model*.safetensors"))
    if not files:
        yield Check("weights", "error", "none", "model.safetensors", "export it again")
    for file in files:
        try:
            finite = all(weight.isfinite().all() for weight in load_file(file).values())
        except (OSError, SafetensorError) as error:
            yield Check(file.name, "error", f"not readable ({error})", todo="export it again")
            continue
        found = "all weights finite" if finite else "weights that are not finite"
        yield Check(file.name, "ok" if finite else "error", found, "all finite")


def _check_checkpoint(path: Path) -> Check:
    """Check that a checkpoint can be read and that its weights are finite."""
    import torch

    # `weights_only`: a doctor must not run what a pickle of unknown origin contains.
    try:
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        not_finite = []
        for name, value in checkpoint["state_dict"].items():
            if value.is_floating_point() and not value.isfinite().all():
                not_finite.append(name)
    except Exception as error:
        todo = "delete it; --ckpt_path takes another"
        if path.name == "last.ckpt":
            todo = "name another with --ckpt_path"
        found = f"not readable ({type(error).__name__})"
        return Check(path.name, "error", found, "a whole checkpoint", todo)
    found = f"step {checkpoint['global_step']:,}, {format_bytes(path.stat().st_size)}"
    if not_finite:
        todo = f"not a number in {not_finite[0]}: train again from an earlier one"
        return Check(path.name, "error", found, todo=todo)
    return Check(path.name, "ok", found)
