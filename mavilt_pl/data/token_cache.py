"""The token cache: every image of a corpus as N codes.

    tokens.json   tokenizer, corpus, codebook size; written last, so a folder without it is no cache
    codes.npy     uint16 (or uint32) [images, N], in the order of the corpus's images
    codebook.npy  float32 [K, d]
    ood.safetensors  what the corpus's images are like (`mavilt_pl.data.ood_reference`)

A cache of another tokenizer or another corpus is refused.
Shapes: b images of a batch, N codes per image, K codebook size, d width of a code.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from mavilt_pl.data.ood_reference import REFERENCE_FILE, OODReference, read_references
from mavilt_pl.errors import UserError
from mavilt_pl.parallel.atomic_write import atomic_open, atomic_write_text

FORMAT = 2  # 1 had the key `codes` in place of `codebook_size`


def write_tokens(
    out: Path,
    corpus_fingerprint: str,
    tokenizer: str,
    codebook: np.ndarray,
    grid: int,
    images: int,
    batches: Iterable[np.ndarray],
    tokenizer_path: Path | None = None,
) -> None:
    """Write the codes of all images of a corpus.

    Args:
        out: folder of the cache.
        corpus_fingerprint: of the corpus.
        tokenizer: SHA-256 of the checkpoint that encoded the images.
        codebook: [K,d].
        grid: side of the code map; N = grid².
        images: number of images.
        batches: integer arrays [b,N] in the corpus's order.
        tokenizer_path: of that checkpoint, so that runs on this cache find it.

    Raises:
        UserError: the batches hold another number of images.
    """
    out.mkdir(parents=True, exist_ok=True)
    # A cache that is written again is no cache until it is whole.
    (out / "tokens.json").unlink(missing_ok=True)
    # Half the size of int32: the codes of MIMIC-CXR, 256 an image, are 190 MB.
    dtype = np.dtype(np.uint16 if len(codebook) <= 2**16 else np.uint32)
    header = {"descr": dtype.str, "fortran_order": False, "shape": (images, grid * grid)}
    # Written in order, not mapped: a full disk is an error here, with a map it kills the process.
    with atomic_open(out / "codes.npy", "wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        num_written = 0
        for codes_bN in batches:
            file.write(np.ascontiguousarray(codes_bN, dtype).tobytes())
            num_written += len(codes_bN)
        if num_written != images:
            raise UserError(
                f"{out}: the tokenizer gave codes of {num_written} images, the corpus has "
                f"{images}; run tokenize again"
            )
    with atomic_open(out / "codebook.npy", "wb") as file:
        np.save(file, codebook.astype(np.float32))
    facts = {
        "format": FORMAT,
        "corpus": corpus_fingerprint,
        "tokenizer": tokenizer,
        "tokenizer_path": str(tokenizer_path.resolve()) if tokenizer_path else None,
        "codebook_size": len(codebook),
        "grid": grid,
        "images": images,
    }
    atomic_write_text(out / "tokens.json", json.dumps(facts, indent=1))


class TokenCache:
    """Codes of a corpus, memory-mapped; index it with an image row of the corpus.

    Args:
        path: folder of the cache.
        corpus_fingerprint: of the corpus that the codes must be of; None for any.

    Attributes:
        tokenizer: SHA-256 of the checkpoint that encoded the images.
        tokenizer_path: where it was then; None if that is not known.
        corpus: fingerprint of the corpus.
        codebook_size: K.
        grid: side of the code map.
        codes_per_image: N = grid².

    Raises:
        UserError: the cache is unfinished, of another format or corpus, or damaged.
    """

    def __init__(self, path: str | Path, corpus_fingerprint: str | None = None):
        self.path = Path(path)
        facts = self._read_facts()
        self.tokenizer: str = facts["tokenizer"]
        self.tokenizer_path: str | None = facts.get("tokenizer_path")
        self.corpus: str = facts["corpus"]
        self.codebook_size: int = facts["codebook_size"]
        self.grid: int = facts["grid"]
        self.codes_per_image = self.grid**2
        # Codes are found by image row, and a corpus that was prepared again may have others.
        if corpus_fingerprint is not None and self.corpus != corpus_fingerprint:
            raise UserError(
                f"{self.path} holds the codes of another corpus (fingerprint {self.corpus[:12]}, "
                f"expected {corpus_fingerprint[:12]}): the corpus was prepared again; run `mavilt "
                "tokenize` again"
            )
        # Mapped: all workers of a machine share one copy in the page cache.
        self._codes = np.load(self.path / "codes.npy", mmap_mode="r")
        # tokens.json is written last, so the two differ only if a file was exchanged or cut.
        expected = (facts["images"], self.codes_per_image)
        if self._codes.shape != expected:
            raise UserError(
                f"{self.path}/codes.npy holds {self._codes.shape}, tokens.json says {expected}: "
                "tokenize again"
            )

    def _read_facts(self) -> dict[str, Any]:
        try:
            facts = json.loads((self.path / "tokens.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(
                f"{self.path} is not a finished token cache (tokens.json: {error}); make it with "
                f"`mavilt tokenize --corpus CORPUS --tokenizer RUN --out {self.path}`"
            ) from None
        # Refused and not converted: tokenizing again takes minutes.
        if facts["format"] != FORMAT:
            raise UserError(
                f"{self.path}: token cache of format {facts['format']}, this version reads "
                f"{FORMAT}: tokenize again"
            )
        return facts

    def __getitem__(self, row: int) -> np.ndarray:
        """Codes of image `row` of the corpus, int64 [N]."""
        # torch's embedding and cross-entropy want int64.
        return self._codes[row].astype(np.int64)

    def codebook(self) -> np.ndarray:
        """The tokenizer's codebook, float32 [K,d]."""
        return np.load(self.path / "codebook.npy")

    def ood_references(self) -> list[OODReference]:
        """What the corpus's images are like, by view; empty if it has too few to say.

        Raises:
            UserError: the file is damaged.
        """
        return read_references(self.path / REFERENCE_FILE)

    def same_tokenizer(self, other: TokenCache) -> None:
        """Check that another cache was encoded by the same tokenizer.

        Raises:
            UserError: it was not, so equal codes mean different things.
        """
        here = (self.tokenizer, self.codebook_size, self.grid)
        there = (other.tokenizer, other.codebook_size, other.grid)
        if here != there:
            raise UserError(
                f"{self.path} and {other.path} were encoded by different tokenizers (checkpoint "
                f"sha256 {self.tokenizer[:12]} and {other.tokenizer[:12]}): their codes mean "
                "different things; tokenize both with one checkpoint"
            )
