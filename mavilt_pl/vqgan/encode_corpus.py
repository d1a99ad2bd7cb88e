"""Encode the images of a corpus into a token cache, in shards that several processes share.

Finished shards of `SHARD` images lie in OUT/parts until the cache is whole, so a killed run keeps
them. `parts/encoder.json` says which corpus and tokenizer they belong to.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Container
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.markup import escape as escape_markup
from rich.progress import Progress

from mavilt_pl.data.corpus import Corpus
from mavilt_pl.data.ood_reference import REFERENCE_FILE, save_references
from mavilt_pl.data.pixels import to_float
from mavilt_pl.data.token_cache import TokenCache, write_tokens
from mavilt_pl.errors import UserError
from mavilt_pl.parallel.atomic_write import atomic_write_bytes, atomic_write_text
from mavilt_pl.parallel.file_lock import file_lock
from mavilt_pl.parallel.own_files import check_folder
from mavilt_pl.parallel.shards import claim_shards, list_names
from mavilt_pl.vqgan.out_of_distribution import fit_references
from mavilt_pl.vqgan.tokenizer import Tokenizer

# A killed process loses one shard's work at most.
SHARD = 1024  # images
# Every name that `tokenize` gives to a file in OUT/parts.
MARKS = ("tokens.json", "codebook.npy", REFERENCE_FILE, "parts/encoder.json", "parts/.lock")
PART_NAME = re.compile(r"\.lock|\d+\.(?:lock|npy)|encoder\.json|\..+\.part")
# Measured on two x86 cores: 801 images/s with 16 at once for the demo's network, 22.0 with one at a
# time for the published one (benchmarks/README.md).
CPU_CACHE = 2**19  # numbers of a feature map that a CPU's cache holds
LARGEST_BATCH = 64


def batch_size_for(config: dict[str, Any], device: str) -> int:
    """Images encoded at a time by an `Autoencoder` of this config.

    On a CPU, a batch whose first feature maps leave the cache is slower than one image at a time
    (benchmarks/README.md).
    """
    # A GPU has no such cache to leave; 64 fill it.
    if device != "cpu":
        return LARGEST_BATCH
    # Numbers of one image in the first feature map, the largest.
    widest = config["channels"] * (config["image_size"] // config["patch"]) ** 2
    return min(max(CPU_CACHE // widest, 1), LARGEST_BATCH)


def is_cached(out: Path, corpus: Corpus, tokenizer_sha256: str) -> bool:
    """Whether a finished cache of this corpus and tokenizer lies in `out`, from a fresh listing."""
    # `tokens.json` is written last, so a cache with it is whole.
    if "tokens.json" not in list_names(out):
        return False
    try:
        cache = TokenCache(out)
    # Another process may be writing or removing it at this moment.
    except UserError:
        return False
    return (cache.corpus, cache.tokenizer) == (corpus.fingerprint, tokenizer_sha256)


class CorpusEncoder:
    """Writes the token cache of a corpus, alone or with other processes that do the same.

    Args:
        out: folder of the cache.
        corpus: images of the tokenizer's size.
        tokenizer: on its device.
        tokenizer_path: of its checkpoint, recorded in the cache.
        tokenizer_sha256: of the checkpoint, likewise.
        batch_size: images encoded at a time.
        device: of the tokenizer.
    """

    def __init__(
        self,
        out: Path,
        corpus: Corpus,
        tokenizer: Tokenizer,
        tokenizer_path: Path,
        tokenizer_sha256: str,
        batch_size: int,
        device: str,
    ):
        self.out, self.corpus, self.tokenizer = out, corpus, tokenizer
        self.tokenizer_path, self.batch_size, self.device = tokenizer_path, batch_size, device
        self.tokenizer_sha256 = tokenizer_sha256
        self.parts = out / "parts"
        # Rounded up: the last shard may be short.
        self.count = -(-corpus.n_images // SHARD)

    def run(self) -> None:
        """Encode the shards that no other process has, and write the cache when all are there."""
        check_folder(self.out, MARKS, "a token cache")
        try:
            with file_lock(self.parts / ".lock"):
                if not self._is_cached():
                    self._drop_stale_shards()
            self._encode_shards()
            # All shards exist now. The first process to come here joins them, the others find the
            # cache.
            with file_lock(self.parts / ".lock"):
                if not self._is_cached():
                    self._join_shards()
        except FileNotFoundError:  # another process has finished and removed the parts
            if not self._is_cached():
                raise
        self._remove_parts()

    def _is_cached(self) -> bool:
        return is_cached(self.out, self.corpus, self.tokenizer_sha256)

    def _remove_parts(self) -> None:
        """Delete what this command has written into the parts, and the folder if it is empty."""
        # Another process may remove the same files now, or the folder may hold a user's file: then
        # it stays.
        with suppress(OSError):
            for path in self.parts.iterdir():
                if PART_NAME.fullmatch(path.name):
                    path.unlink(missing_ok=True)
            self.parts.rmdir()

    def _path(self, number: int) -> Path:
        return self.parts / f"{number:05d}.npy"

    def _finished(self) -> Container[int]:
        # List the parts before looking for the cache: they are removed once it is there.
        names = list_names(self.parts)
        if self._is_cached():
            return range(self.count)
        return {number for number in range(self.count) if self._path(number).name in names}

    def _drop_stale_shards(self) -> None:
        """Remove shards of another corpus or tokenizer."""
        # Shards have no header of their own, so one file says what all of them were made from.
        record = self.parts / "encoder.json"
        encoder = {"corpus": self.corpus.fingerprint, "tokenizer": self.tokenizer_sha256}
        try:
            if json.loads(record.read_text(encoding="utf-8")) == encoder:
                return
        except (OSError, ValueError):
            pass
        # Before the record: killed between the two, the next run removes the rest.
        for number in range(self.count):
            self._path(number).unlink(missing_ok=True)
        atomic_write_text(record, json.dumps(encoder))

    def _encode_shards(self) -> None:
        total = self.corpus.n_images
        with Progress() as progress:
            bar = progress.add_task(f"Tokenizing {escape_markup(self.corpus.name)}", total=total)
            for number in claim_shards(self.parts, self.count, self._finished):
                first = number * SHARD
                last = min(first + SHARD, total)
                # Shards before this one are done, or in work in another process.
                progress.update(bar, completed=first)
                codes = []
                for start in range(first, last, self.batch_size):
                    end = min(start + self.batch_size, last)
                    codes.append(self._encode(start, end))
                    progress.advance(bar, len(codes[-1]))
                # Through memory: np.save to a file reports a full disk without its error number.
                buffer = io.BytesIO()
                np.save(buffer, np.concatenate(codes))
                atomic_write_bytes(self._path(number), buffer.getbuffer())
            progress.update(bar, completed=total)

    def _encode(self, start: int, end: int) -> np.ndarray:
        """Codes int64 [B,N] of the images from `start` up to `end`."""
        images = np.stack([self.corpus.pixels(row) for row in range(start, end)])
        pixels = to_float(torch.from_numpy(images).to(self.device))
        with torch.inference_mode():
            return self.tokenizer.encode(pixels[:, None]).cpu().numpy()

    def _join_shards(self) -> None:
        # Before the cache is whole: a killed run writes it again.
        references = fit_references(self.corpus, self.tokenizer, self.batch_size)
        save_references(references, self.out / REFERENCE_FILE)
        codebook = self.tokenizer.quantizer.codebook.detach().cpu().numpy()
        # Read one by one: the codes of a large corpus need not fit into memory.
        shards = (np.load(self._path(number)) for number in range(self.count))
        write_tokens(
            self.out,
            self.corpus.fingerprint,
            self.tokenizer_sha256,
            codebook,
            self.tokenizer.grid,
            self.corpus.n_images,
            shards,
            self.tokenizer_path,
        )
