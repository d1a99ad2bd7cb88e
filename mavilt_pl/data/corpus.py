"""Read a prepared corpus: a dataset's studies as one table, its images as 8-bit pixels.

    corpus.json         counts and fingerprint; written last, so a folder without it is not a corpus
    studies.parquet     one row a study, for people and their tools
    studies.arrow       the same rows uncompressed, which loaders map into memory
    pixels-00000.npy …  uint8 [n, S, S], one shard for each run of studies
    rejects.csv         study, file, stage and reason of everything rejected
    prepare.json        the settings of `mavilt prepare`
    secret.key          the key of the studies' hidden names; not part of the fingerprint

`mavilt_pl.data.prepare` writes it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mavilt_pl.data.hidden_names import hidden_name, read_secret
from mavilt_pl.data.records import Image, Question, Split, Study, View
from mavilt_pl.errors import UserError

FORMAT = 2
TEXT_COLUMNS = ("source", "patient", "study", "split", "findings", "impression", "report")
JSON_COLUMNS = ("labels", "questions", "images", "attributes")
SCHEMA = pa.schema([(name, pa.string()) for name in (*TEXT_COLUMNS, *JSON_COLUMNS)])
BLOCK = 1 << 22  # bytes hashed at a time
OPEN_SHARDS = 64  # of a corpus in a process; each holds a file descriptor
LABEL_VALUES = {"present": 1.0, "absent": 0.0}


def pixels_path(corpus: Path, number: int) -> Path:
    """The file with the pixels of shard `number`."""
    return corpus / f"pixels-{number:05d}.npy"


def corpus_files_sha256(path: Path, shards: int) -> str:
    """The fingerprint of a corpus: SHA-256 of its table and all its pixels.

    Args:
        path: folder of the corpus.
        shards: number of pixel shards.
    """
    # Not the settings or the rejects: the same studies and pixels are the same corpus.
    files = [path / "studies.parquet"]
    files += [pixels_path(path, number) for number in range(shards)]
    digest = hashlib.sha256()
    for name in files:
        with name.open("rb") as file:
            while block := file.read(BLOCK):
                digest.update(block)
    return digest.hexdigest()


class _PixelShards:
    """Pixels of a corpus by image row; shards are mapped when they are read, a few at a time.

    A map holds a file descriptor, of which a process usually has 1,024 for everything.

    Args:
        corpus: folder of the corpus.
        count: number of shards.

    Raises:
        OSError, ValueError: a shard is missing or damaged.
    """

    def __init__(self, corpus: Path, count: int):
        self.corpus = corpus
        # All headers are read here: a damaged corpus must not fail in the middle of an epoch.
        lengths = [_shard_length(pixels_path(corpus, number)) for number in range(count)]
        # Image row i is in the last shard that starts at or before i.
        self.starts = np.cumsum([0, *lengths])
        self._open: OrderedDict[int, np.ndarray] = OrderedDict()

    def __getitem__(self, image: int) -> np.ndarray:
        # `right`, because a row that starts a shard belongs to it and not to the one before.
        number = int(np.searchsorted(self.starts, image, side="right")) - 1
        if number not in self._open:
            self._open[number] = np.load(pixels_path(self.corpus, number), mmap_mode="r")
        # The shard that was not read for the longest time is closed.
        self._open.move_to_end(number)
        if len(self._open) > OPEN_SHARDS:
            self._open.popitem(last=False)
        return self._open[number][image - self.starts[number]]


def _shard_length(path: Path) -> int:
    """Images of a shard, from its header and its size.

    Raises:
        OSError, ValueError: the file is missing, cut short or no array.
    """
    # A header is 128 bytes; mapping every file would hold its descriptor.
    with path.open("rb") as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0
        shape, _, dtype = (read if version == (1, 0) else np.lib.format.read_array_header_2_0)(file)
        missing = file.tell() + math.prod(shape) * dtype.itemsize - path.stat().st_size
    if missing > 0:
        raise ValueError(f"{path.name} lacks its last {missing:,} bytes")
    return shape[0]


class Corpus:
    """A prepared corpus; `len()` counts studies.

    The table and the pixels are mapped, not read: opening a large corpus costs no memory.

    Args:
        path: folder that `mavilt prepare` has finished.

    Attributes:
        name: the corpus's name in results.
        size: pixels along each side of an image.
        fingerprint: SHA-256 of the table and the pixels.
        n_images: number of images.
        fit: framing of its images; None if that is not recorded.
        facts: contents of corpus.json.

    Raises:
        UserError: the corpus is unfinished, of another format, incomplete or damaged.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.facts = self._read_facts()
        self.name: str = self.facts["name"]
        self.size: int = self.facts["size"]
        self.fingerprint: str = self.facts["fingerprint"]
        self.n_images: int = self.facts["images"]
        self.fit: str | None = self._read_fit()
        self._secret = read_secret(self.path)
        # All parts are opened here: a damaged corpus must not fail in the middle of an epoch.
        try:
            table = pa.ipc.open_file(pa.memory_map(str(self.path / "studies.arrow"))).read_all()
            self._pixels = _PixelShards(self.path, self.facts["shards"])
        except (OSError, ValueError, pa.ArrowInvalid) as error:
            raise UserError(
                f"{self.path}: {error}: a part of the corpus is missing or damaged; prepare it "
                "again"
            ) from None
        self._rows = len(table)
        # A corpus of an earlier version has no attributes.
        self._columns = {name: table[name] for name in table.column_names}
        num_images = int(self._pixels.starts[-1])
        if self._rows != self.facts["studies"] or num_images != self.n_images:
            raise UserError(
                f"{self.path}: {self._rows} studies and {num_images} images found; expected "
                f"{self.facts['studies']} and {self.n_images} by corpus.json: prepare it again"
            )

    def _read_facts(self) -> dict[str, Any]:
        try:
            facts = json.loads((self.path / "corpus.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(
                f"{self.path} is not a finished corpus (corpus.json: {error}); create or finish it "
                f"with `mavilt prepare SOURCE ROOT --out {self.path}`"
            ) from None
        if facts["format"] != FORMAT:
            raise UserError(
                f"{self.path}: corpus of format {facts['format']}, this version reads {FORMAT}: "
                "prepare it again"
            )
        return facts

    def _read_fit(self) -> str | None:
        # For information only: a corpus is whole without it.
        try:
            return json.loads((self.path / "prepare.json").read_text(encoding="utf-8"))["fit"]
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def __reduce__(self) -> tuple[Any, ...]:
        # Each loader process maps the files itself. The secret goes with it: where a corpus has
        # none, every process would draw its own.
        return Corpus, (self.path,), {"_secret": self._secret}

    def __len__(self) -> int:
        return self._rows

    def __getitem__(self, row: int) -> Study:
        # The path is the corpus's: the original file may be on another machine by now.
        images = []
        for image in self._json("images", row):
            images.append(Image(self.path, image["view"], image["key"]))
        questions = []
        for question in self._json("questions", row):
            questions.append(Question(**{**question, "candidates": tuple(question["candidates"])}))
        return Study(
            **self._texts(row),
            images=tuple(images),
            labels=self._json("labels", row),
            questions=tuple(questions),
            attributes=self.attributes(row),
        )

    def __iter__(self) -> Iterator[Study]:
        return (self[row] for row in range(len(self)))

    def _value(self, column: str, row: int) -> Any:
        return self._columns[column][int(row)].as_py()

    def _json(self, column: str, row: int) -> Any:
        return json.loads(self._value(column, row))

    def _texts(self, row: int) -> dict[str, Any]:
        return {name: self._value(name, row) for name in TEXT_COLUMNS}

    def rows(self, split: Split | str | None = None) -> np.ndarray:
        """Numbers of the studies of a split (None: of all), int64, in order."""
        if split is None:
            return np.arange(len(self))
        # Arrow's strings have no numpy type, so they have to be copied.
        return np.flatnonzero(self._columns["split"].to_numpy(zero_copy_only=False) == split)

    def text(self, row: int) -> Study:
        """Study `row` with its texts and identifiers only.

        It takes a fraction of the time of the whole study, for selecting among many.
        """
        # Without parsing the three JSON columns.
        return Study(**self._texts(row), images=())

    def hidden_name(self, identifier: str) -> str:
        """A study's or a patient's name for logs and pages, see `hidden_names`."""
        return hidden_name(self._secret, identifier)

    def attributes(self, row: int) -> dict[str, str]:
        """What is known of a study's patient and scanner."""
        return self._json("attributes", row) if "attributes" in self._columns else {}

    def image_rows(self, row: int) -> list[tuple[int, View]]:
        """Pixel rows and views of a study's images, in the order of its `images`."""
        return [(image["row"], image["view"]) for image in self._json("images", row)]

    def pixels(self, image: int) -> np.ndarray:
        """Pixels of image row `image`, uint8 [S,S], memory-mapped."""
        return self._pixels[image]

    def labels(self, findings: Sequence[str], blank_is_absent: bool = False) -> np.ndarray:
        """Labels of all studies, float32 [studies, F].

        1 present, 0 absent, nan uncertain or not mentioned.

        Args:
            findings: of the columns.
            blank_is_absent: a finding that is not mentioned is absent, where the study has labels
                and the corpus labels that finding in some study.
        """
        # Parsed once for all findings: JSON takes most of the time.
        labels_SF = np.full((len(self), len(findings)), np.nan, np.float32)
        is_blank_SF = np.zeros(labels_SF.shape, bool)
        for row, text in enumerate(self._columns["labels"]):
            labels = json.loads(text.as_py())
            for column, finding in enumerate(findings):
                # Uncertain is not a third class: NaN takes part in neither loss nor metric.
                labels_SF[row, column] = LABEL_VALUES.get(labels.get(finding), np.nan)
                is_blank_SF[row, column] = bool(labels) and finding not in labels
        if blank_is_absent:
            # Of a finding that a source never labels nothing is known.
            is_labelled_F = ~np.isnan(labels_SF).all(0)
            labels_SF[is_blank_SF & is_labelled_F] = 0
        return labels_SF
