"""`mavilt tokenize`: a corpus and a trained VQ-GAN → a token cache.

It is made in pieces of `PIECE` images, which lie in OUT/parts until all are there: a killed run
keeps those that are whole, and several processes share them (`mavilt_pl.pieces`).
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import shutil
from collections.abc import Container
from pathlib import Path
from typing import Any

from mavilt_pl.lock import held
from mavilt_pl.pieces import names_in, open_pieces

PIECE = 1024  # images


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--corpus", type=Path, required=True, help="folder made by `mavilt prepare`"
    )
    parser.add_argument(
        "--tokenizer",
        type=Path,
        required=True,
        help="checkpoint of a VQGAN, or the run that holds it; or a published VQ-GAN",
    )
    parser.add_argument(
        "--image-size",
        type=int,
        help="side of a published VQ-GAN's images (default: as its file says, else the corpus')",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the token cache")
    parser.add_argument(
        "--batch-size",
        type=int,
        help="default: 64 on a GPU; on a CPU as many images as its caches hold, at most 64",
    )
    parser.add_argument(
        "--device", default="auto", help="cpu, cuda, … (default: a GPU where there is one)"
    )
    parser.add_argument(
        "--compile",
        action="store_true",
        help="torch.compile the encoder: half a minute's start, then faster",
    )


def images_at_once(shape: dict[str, Any], device: str) -> int:
    """A batch for an encoder of this `Autoencoder.shape`. On a CPU one whose first feature maps
    leave the cache is slower than one image at a time (benchmarks/README.md).
    """
    widest = shape["channels"] * (shape["image_size"] // shape["patch"]) ** 2
    return 64 if device != "cpu" else min(max(2**19 // widest, 1), 64)


def checkpoint_of(path: Path) -> Path:
    """A checkpoint, or a run's last one."""
    return path / "checkpoints" / "last.ckpt" if path.is_dir() else path


def device_of(name: str) -> str:
    """`auto`: a GPU where there is one. Raises `DataError` where torch can compute nothing on the
    device that is asked for.
    """
    import torch

    from mavilt_pl.data.study import DataError

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=name).item()  # a meta device has no values
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = next(iter(str(error).splitlines()), "")[:120]
        raise DataError(
            f"--device: found {name}, on which torch cannot compute here ({reason}); set it to "
            f"cpu, or leave it out"
        ) from error
    return name


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _holds(out: Path, corpus: Any, mark: str) -> bool:
    """Whether a finished cache of this corpus and this tokenizer lies there; of a listing, and
    another process may replace it.
    """
    from mavilt_pl.data.study import DataError
    from mavilt_pl.data.tokens import TokenCache

    if "tokens.json" not in names_in(out):
        return False
    try:
        cache = TokenCache(out)
    except DataError:
        return False
    return (cache.corpus, cache.tokenizer) == (corpus.fingerprint, mark)


def run(args: argparse.Namespace) -> int:
    from mavilt_pl.data.corpus import Corpus
    from mavilt_pl.data.study import DataError
    from mavilt_pl.vqgan.loading import load_tokenizer

    checkpoint = checkpoint_of(args.tokenizer)
    corpus = Corpus(args.corpus)
    tokenizer = load_tokenizer(checkpoint, args.image_size, corpus.size)
    mark = sha256(checkpoint)
    if _holds(args.out, corpus, mark):
        print(f"{args.out} holds these codes already")
        return 0
    if corpus.size != tokenizer.autoencoder.image_size:
        raise DataError(
            f"{args.corpus} holds {corpus.size}² images and the tokenizer {checkpoint} takes "
            f"{tokenizer.autoencoder.image_size}²: prepare the corpus with --size "
            f"{tokenizer.autoencoder.image_size}"
        )
    device = device_of(args.device)
    tokenizer.to(device)
    size = args.batch_size or images_at_once(tokenizer.autoencoder.shape, device)
    if args.compile:
        tokenizer.autoencoder.encoder.compile()
    try:
        _write(args.out, corpus, tokenizer, mark, size, device)
    except FileNotFoundError:  # finished by another process, and its parts tidied away
        if not _holds(args.out, corpus, mark):
            raise
    shutil.rmtree(args.out / "parts", ignore_errors=True)
    print(
        f"{corpus.n_images:,} images of {corpus.name} as {tokenizer.grid**2} codes each: {args.out}"
    )
    return 0


def _begin(parts: Path, made_from: dict[str, Any]) -> None:
    """Drop pieces of another corpus or tokenizer."""
    said = parts / "made_from.json"
    try:
        if json.loads(said.read_text(encoding="utf-8")) == made_from:
            return
    except (OSError, ValueError):
        pass
    for stale in parts.glob("*.npy"):
        stale.unlink()
    part = said.with_suffix(".part")
    part.write_text(json.dumps(made_from), encoding="utf-8")
    os.replace(part, said)


def _write(out: Path, corpus: Any, tokenizer: Any, mark: str, size: int, device: str) -> None:
    """The token cache, in batches of `size`, by this process and all others that are given the same
    task.
    """
    import numpy as np
    import torch
    from rich.progress import Progress

    from mavilt_pl.data.pixels import to_float
    from mavilt_pl.data.tokens import write_tokens

    parts, count = out / "parts", -(-corpus.n_images // PIECE)

    def path(number: int) -> Path:
        return parts / f"{number:05d}.npy"

    def done() -> Container[int]:
        names = names_in(parts)  # before the whole is looked for: they go once it is there
        return (
            range(count)
            if _holds(out, corpus, mark)
            else {n for n in range(count) if path(n).name in names}
        )

    def batch(start: int, end: int) -> np.ndarray:
        images = np.stack([corpus.pixels(row) for row in range(start, end)])
        pixels = to_float(torch.from_numpy(images).to(device))
        with torch.inference_mode():
            return tokenizer.encode(pixels[:, None]).cpu().numpy()

    with held(parts / ".lock"):
        if not _holds(out, corpus, mark):
            _begin(parts, {"corpus": corpus.fingerprint, "tokenizer": mark})
    with Progress() as progress:
        bar = progress.add_task(f"Tokenizing {corpus.name}", total=corpus.n_images)
        for number in open_pieces(parts, count, done):
            first, last = number * PIECE, min((number + 1) * PIECE, corpus.n_images)
            progress.update(bar, completed=first)
            codes = []
            for start in range(first, last, size):
                codes.append(batch(start, min(start + size, last)))
                progress.advance(bar, len(codes[-1]))
            part = path(number).with_suffix(".part")
            whole = (
                io.BytesIO()
            )  # written straight to a file, numpy tells a full disk without its number
            np.save(whole, np.concatenate(codes))
            part.write_bytes(whole.getbuffer())
            os.replace(part, path(number))
        progress.update(bar, completed=corpus.n_images)
    codebook = tokenizer.quantizer.codebook.detach().cpu().numpy()
    with held(parts / ".lock"):
        if not _holds(out, corpus, mark):
            made = (np.load(path(number)) for number in range(count))
            write_tokens(
                out, corpus.fingerprint, mark, codebook, tokenizer.grid, corpus.n_images, made
            )
