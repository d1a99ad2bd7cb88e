"""What the page does with a model, without a page: open an image, report, ask, draw."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from mavilt_pl.data.pixels import to_uint8
from mavilt_pl.errors import UserError, escape
from mavilt_pl.inference.mavilt import MAViLT
from mavilt_pl.inference.outputs import Answer, Drawing, Report
from mavilt_pl.serving.examples import EXAMPLES, example
from mavilt_pl.serving.uploads import Upload, UploadReader

LONGEST_QUESTION = 500  # characters
LONGEST_TEXT = 4000  # characters of a text to draw from; reports have some hundred
MOST_ANSWERS = 20
MOST_DRAWINGS = 4
LARGEST_SEED = 2**31 - 1


@dataclass(frozen=True)
class Opened:
    """A radiograph on the page, as the server remembers it: without its preview.

    Args:
        name: of the file.
        pixels: uint8 [H,W] of the model's size.
        note: how it differs from the training images, or that it does not.
    """

    name: str
    pixels: np.ndarray
    note: str


class ServedModel:
    """A model behind a page; what comes from a browser is checked here.

    Args:
        model: is used by one request at a time.
    """

    def __init__(self, model: MAViLT):
        self.model = model
        size = model.vqgan.autoencoder.image_size
        self.read_upload = UploadReader(size, model.encoder.fit)
        # One thread for the model: torch keeps pools and caches for each that calls it, and the
        # server's threads come and go.
        self.worker = ThreadPoolExecutor(1, "model")

    def close(self) -> None:
        """Stop the decoder of uploads and the model's thread."""
        self.read_upload.close()
        self.worker.shutdown(cancel_futures=True)

    def read_file(self, path: str | None) -> Upload:
        """Read an uploaded file; needs no model, so that it need not wait for one.

        Raises:
            UserError: there is none, or it is no radiograph.
        """
        if not path:
            raise UserError("no image: upload a DICOM, PNG or JPEG file")
        return self.read_upload(Path(path))

    def read_example(self, title: str) -> Upload:
        """One of `EXAMPLES`.

        Raises:
            UserError: there is none of this title.
        """
        if title not in EXAMPLES:
            raise UserError(f"example: found {title!r}; expected one of {', '.join(EXAMPLES)}")
        return example(title, self.read_upload.size, self.read_upload.fit)

    def open(self, upload: Upload) -> tuple[Opened, np.ndarray]:
        """See an image as the model does; its reconstruction uint8 [H,W] from codes as well."""
        return self.worker.submit(self._open, upload).result()

    @torch.inference_mode()
    def _open(self, upload: Upload) -> tuple[Opened, np.ndarray]:
        # The pixels that `report` and `ask` will read, so that the score is theirs too.
        (study,) = self.model.encoder([upload.pixels])
        # Models of earlier versions, and of few validation images, have no reference.
        note = "This model cannot tell whether an image is unlike its training images."
        if study.ood_score is not None:
            note = f"Like the training images (score {study.ood_score:.2f}, limit 1)."
            if study.ood_score > 1:
                note = (
                    f"UNLIKE THE TRAINING IMAGES (score {study.ood_score:.2f}, limit 1): do not "
                    "believe what the model says about it."
                )
        # An image without a view's name is frontal to a model that knows views.
        codes = study.codes["frontal"] if self.model.multi_view else study.codes
        codes_1N = torch.from_numpy(codes[None]).to(self.model.generator.device)
        (reconstruction,) = to_uint8(self.model.vqgan.decode(codes_1N))
        return Opened(upload.name, upload.pixels, f"{escape(upload.name)}. {note}"), reconstruction

    def report(self, opened: Opened | None, seed: float) -> Report:
        """A report of the opened image.

        Raises:
            UserError: no image is open, or the seed is none.
        """
        return self.worker.submit(self.model.report, _pixels(opened), _seed(seed)).result()

    def ask(self, opened: Opened | None, question: str, answers: str, seed: float) -> Answer:
        """An answer about the opened image.

        Args:
            opened: the image.
            question: in words.
            answers: expected ones, separated by commas; empty for the model's choice.
            seed: of sampled text.

        Raises:
            UserError: something is missing, too long, or given twice.
        """
        question = _text(question, "question", LONGEST_QUESTION)
        # Commas at the ends and twice in a row are typing mistakes.
        expected = [part.strip() for part in answers.split(",") if part.strip()]
        if len(expected) == 1 or len(expected) > MOST_ANSWERS or len(answers) > LONGEST_TEXT:
            raise UserError(
                f"answers: found {len(expected)}; expected none, or 2 to {MOST_ANSWERS} separated "
                "by commas"
            )
        asked = (_pixels(opened), question, expected or None, _seed(seed))
        return self.worker.submit(self.model.ask, *asked).result()

    def draw(self, text: str, seed: float, count: float) -> list[Drawing]:
        """Drawings of a text, of this seed and the following ones.

        Raises:
            UserError: the text is missing or too long, or a number is out of range.
        """
        text = _text(text, "text", LONGEST_TEXT)
        number = _whole(count, "count", 1, MOST_DRAWINGS)
        first = _seed(seed)
        # A seed of its own for each: the same text and seed are the same image.
        seeds = range(first, first + number)
        return [self.worker.submit(self.model.draw, text, seed).result() for seed in seeds]


def _pixels(opened: Opened | None) -> np.ndarray:
    if opened is None:
        raise UserError("no image: upload one, or choose an example")
    return opened.pixels


def _text(text: str, name: str, longest: int) -> str:
    # A browser may send null.
    text = (text or "").strip()
    if not text or len(text) > longest:
        raise UserError(f"{name}: found {len(text):,} characters; expected 1 to {longest:,}")
    return text


def _seed(seed: float) -> int:
    return _whole(seed, "seed", 0, LARGEST_SEED)


def _whole(value: float, name: str, lowest: int, highest: int) -> int:
    """A number from a browser, which may send anything."""
    # NaN differs from itself.
    if not isinstance(value, (int, float)) or value != value or not lowest <= value <= highest:
        raise UserError(f"{name}: found {str(value)[:20]}; expected {lowest} to {highest}")
    return int(value)
