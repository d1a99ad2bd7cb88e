"""`mavilt tokenize`: a corpus and a trained VQ-GAN → a token cache."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--corpus", type=Path, required=True, help="folder made by `mavilt prepare`")
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
        "--batch-size", type=int, help="default: 64 on a GPU; on a CPU as many images as its caches hold, at most 64"
    )
    parser.add_argument("--device", default="auto", help="cpu, cuda, … (default: a GPU where there is one)")
    parser.add_argument(
        "--compile", action="store_true", help="torch.compile the encoder: half a minute's start, then faster"
    )


def images_at_once(shape: dict[str, Any], device: str) -> int:
    """A batch for an encoder of this `Autoencoder.shape`. On a CPU one whose first feature maps leave the cache is slower than
    one image at a time (benchmarks/README.md)."""
    widest = shape["channels"] * (shape["image_size"] // shape["patch"]) ** 2
    return 64 if device != "cpu" else min(max(2**19 // widest, 1), 64)


def checkpoint_of(path: Path) -> Path:
    """A checkpoint, or a run's last one."""
    return path / "checkpoints" / "last.ckpt" if path.is_dir() else path


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def run(args: argparse.Namespace) -> int:
    import numpy as np
    import torch
    from rich.progress import track

    from mavilt_pl.data.corpus import Corpus
    from mavilt_pl.data.study import DataError
    from mavilt_pl.data.tokens import TokenCache, write_tokens
    from mavilt_pl.vqgan.loading import load_tokenizer

    checkpoint = checkpoint_of(args.tokenizer)
    corpus = Corpus(args.corpus)
    tokenizer = load_tokenizer(checkpoint, args.image_size, corpus.size)
    mark = sha256(checkpoint)
    if (args.out / "tokens.json").exists():
        cache = TokenCache(args.out)
        if (cache.corpus, cache.tokenizer) == (corpus.fingerprint, mark):
            print(f"{args.out} holds these codes already")
            return 0
    if corpus.size != tokenizer.autoencoder.image_size:
        raise DataError(
            f"{args.corpus} holds {corpus.size}² images and the tokenizer {checkpoint} takes "
            f"{tokenizer.autoencoder.image_size}²: prepare the corpus with --size {tokenizer.autoencoder.image_size}"
        )
    device = ("cuda" if torch.cuda.is_available() else "cpu") if args.device == "auto" else args.device
    tokenizer.to(device)
    size = args.batch_size or images_at_once(tokenizer.autoencoder.shape, device)
    if args.compile:
        tokenizer.autoencoder.encoder.compile()
    starts = range(0, corpus.n_images, size)

    def batches() -> Iterator[np.ndarray]:
        for start in track(starts, f"Tokenizing {corpus.name}"):
            images = [corpus.pixels(row) for row in range(start, min(start + size, corpus.n_images))]
            pixels = torch.from_numpy(np.stack(images)).to(device).float().div_(127.5).sub_(1)[:, None]
            with torch.inference_mode():
                yield tokenizer.encode(pixels).cpu().numpy()

    codebook = tokenizer.quantizer.codebook.detach().cpu().numpy()
    write_tokens(args.out, corpus.fingerprint, mark, codebook, tokenizer.grid, corpus.n_images, batches())
    print(f"{corpus.n_images:,} images of {corpus.name} as {tokenizer.grid**2} codes each: {args.out}")
    return 0
