"""`mavilt tokenize`: encode a corpus with a trained VQ-GAN into a token cache."""

from __future__ import annotations

import argparse
from pathlib import Path

from mavilt_pl.cli.terminal import say

MAY_STAND_ALONE = True  # in a project folder the verb needs no words


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `mavilt tokenize`."""
    parser.add_argument(
        "name", nargs="?", help="in a project folder: a dataset (default: all of them)"
    )
    parser.add_argument("--corpus", type=Path, help="folder written by `mavilt prepare`")
    parser.add_argument(
        "--tokenizer",
        type=Path,
        help="run of the VQ-GAN, its checkpoint, or a published VQ-GAN (default in a project: "
        "runs/vqgan)",
    )
    parser.add_argument(
        "--image-size",
        type=int,
        help="side of a published VQ-GAN's images (default: as its file says, else the corpus')",
    )
    parser.add_argument("--out", type=Path, help="folder of the token cache")
    parser.add_argument(
        "--batch-size",
        type=int,
        help="default: 64 on a GPU; on a CPU as many images as its caches hold, at most 64",
    )
    parser.add_argument(
        "--device", default="auto", help="cpu, cuda, … (default: a GPU if there is one)"
    )
    parser.add_argument(
        "--compile",
        action="store_true",
        help="torch.compile the encoder: half a minute to start, then faster",
    )


def run(args: argparse.Namespace) -> int:
    """Encode the corpora, or report that they are encoded already."""
    from mavilt_pl.errors import UserError
    from mavilt_pl.project import here

    if args.corpus is not None:
        if args.tokenizer is None or args.out is None:
            raise UserError("tokenize --corpus needs --tokenizer and --out too")
        return _encode(args)
    # In a project folder everything is named already.
    project = here("tokenize without --corpus, --tokenizer and --out")
    # A model is loaded for each: a corpus takes far longer than that.
    for name in project.chosen(args.name):
        of_source = argparse.Namespace(**vars(args))
        of_source.corpus, of_source.out = Path("corpora") / name, args.out or Path("tokens") / name
        of_source.tokenizer = args.tokenizer or Path("runs/vqgan")
        _encode(of_source)
    return 0


def _encode(args: argparse.Namespace) -> int:
    """Encode one corpus."""
    from mavilt_pl.checkpoint import resolve_checkpoint, sha256
    from mavilt_pl.data.corpus import Corpus
    from mavilt_pl.errors import UserError
    from mavilt_pl.parallel.device import resolve_device
    from mavilt_pl.vqgan.encode_corpus import CorpusEncoder, batch_size_for, is_cached
    from mavilt_pl.vqgan.loading import load_tokenizer

    # A run's folder stands for its newest checkpoint.
    checkpoint = resolve_checkpoint(args.tokenizer)
    corpus = Corpus(args.corpus)
    tokenizer = load_tokenizer(checkpoint, args.image_size, corpus.size)
    # Codes of another checkpoint mean different things, so a cache is known by the checkpoint's
    # bytes.
    checksum = sha256(checkpoint)
    if is_cached(args.out, corpus, checksum):
        say(f"{args.out} holds these codes already")
        return 0
    size = tokenizer.autoencoder.image_size
    # Resizing here would hide that the tokenizer was trained on other images.
    if corpus.size != size:
        raise UserError(
            f"{args.corpus} holds {corpus.size}² images and the tokenizer {checkpoint} takes "
            f"{size}²: prepare the corpus with --size {size}"
        )
    device = resolve_device(args.device)
    tokenizer.to(device)
    # Only the encoder runs here.
    if args.compile:
        tokenizer.autoencoder.encoder.compile()
    batch_size = args.batch_size or batch_size_for(tokenizer.autoencoder.config, device)
    CorpusEncoder(args.out, corpus, tokenizer, checkpoint, checksum, batch_size, device).run()
    codes = tokenizer.grid**2
    say(f"{corpus.n_images:,} images of {corpus.name} as {codes} codes each: {args.out}")
    return 0
