"""The token cache: every image of a corpus as N codes, and a refusal of any cache that another
tokenizer or another corpus made.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from mavilt_pl.errors import UserError

FORMAT = 1


def write_tokens(
    out: Path,
    corpus_fingerprint: str,
    tokenizer: str,
    codebook: np.ndarray,
    grid: int,
    images: int,
    batches: Iterable[np.ndarray],
) -> None:
    """Write the codes of `images` images, given as int arrays [b, N] in the corpus's order.

    `tokens.json` is written last, so that a folder without it is not a cache. `tokenizer` is the
    sha256 of the checkpoint that made the codes; `codebook` float32 [K, width].
    """
    out.mkdir(parents=True, exist_ok=True)
    (out / "tokens.json").unlink(missing_ok=True)
    part = out / "codes.npy.part"
    dtype = np.dtype(np.uint16 if len(codebook) <= 2**16 else np.uint32)
    row = 0
    with part.open(
        "wb"
    ) as file:  # written in order, not mapped: a full disk is an error here and not a dead process
        shape = (images, grid * grid)
        np.lib.format.write_array_header_1_0(
            file, {"descr": dtype.str, "fortran_order": False, "shape": shape}
        )
        for batch in batches:
            file.write(np.ascontiguousarray(batch, dtype).tobytes())
            row += len(batch)
    if row != images:
        raise UserError(
            f"{out}: the tokenizer gave codes of {row} images, the corpus has {images}; run "
            f"tokenize again"
        )
    os.replace(part, out / "codes.npy")
    np.save(out / "codebook.npy", codebook.astype(np.float32))
    facts = {
        "format": FORMAT,
        "corpus": corpus_fingerprint,
        "tokenizer": tokenizer,
        "codes": len(codebook),
        "grid": grid,
        "images": images,
    }
    (out / "tokens.json.part").write_text(json.dumps(facts, indent=1), encoding="utf-8")
    os.replace(out / "tokens.json.part", out / "tokens.json")


class TokenCache:
    """Codes of a corpus, memory-mapped. `codes` is K, `grid` the side of the code map, `length` N =
    grid².
    """

    def __init__(self, path: str | Path, corpus_fingerprint: str | None = None):
        self.path = Path(path)
        try:
            facts = json.loads((self.path / "tokens.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(
                f"{self.path} is not a finished token cache (tokens.json: {error}); make it with "
                f"`mavilt tokenize --corpus CORPUS --tokenizer RUN --out {self.path}`"
            ) from None
        if facts["format"] != FORMAT:
            raise UserError(
                f"{self.path}: token cache of format {facts['format']}, this version reads "
                f"{FORMAT}: tokenize again"
            )
        if corpus_fingerprint is not None and facts["corpus"] != corpus_fingerprint:
            raise UserError(
                f"{self.path} holds the codes of another corpus (fingerprint "
                f"{facts['corpus'][:12]}, expected "
                f"{corpus_fingerprint[:12]}): the corpus was prepared anew; run `mavilt tokenize` "
                f"again"
            )
        self.tokenizer: str = facts["tokenizer"]
        self.codes: int = facts["codes"]
        self.grid: int = facts["grid"]
        self.length = self.grid**2
        self.corpus: str = facts["corpus"]
        self._codes = np.load(self.path / "codes.npy", mmap_mode="r")
        if self._codes.shape != (facts["images"], self.length):
            raise UserError(
                f"{self.path}/codes.npy holds {self._codes.shape}, tokens.json says "
                f"{(facts['images'], self.length)}: tokenize again"
            )

    def __getitem__(self, row: int) -> np.ndarray:
        """Codes of image `row` of the corpus, int64 [N]."""
        return self._codes[row].astype(np.int64)

    def codebook(self) -> np.ndarray:
        return np.load(self.path / "codebook.npy")

    def same_tokenizer(self, other: TokenCache) -> None:
        if (self.tokenizer, self.codes, self.grid) != (other.tokenizer, other.codes, other.grid):
            raise UserError(
                f"{self.path} and {other.path} were made by different tokenizers (checkpoint "
                f"sha256 {self.tokenizer[:12]} "
                f"and {other.tokenizer[:12]}): their codes mean different things; tokenize both "
                f"with one checkpoint"
            )
