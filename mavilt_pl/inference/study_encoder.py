"""Images of studies as codes, with how far each is from the training images.

Shape legend: B images, N codes an image, H W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mavilt_pl.data.ood_reference import OODReference, lowest_scores
from mavilt_pl.data.pixels import to_float
from mavilt_pl.data.radiograph import Fit, read_sized
from mavilt_pl.data.records import Side
from mavilt_pl.errors import UserError
from mavilt_pl.inference.outputs import Codes
from mavilt_pl.inference.studies import Radiograph, StudyImages, name_of
from mavilt_pl.language.vocabulary import VIEW_TOKENS
from mavilt_pl.vqgan.encode_corpus import batch_size_for
from mavilt_pl.vqgan.out_of_distribution import measure
from mavilt_pl.vqgan.tokenizer import Tokenizer

NO_VIEWS = (
    "a view is named, and this model was trained on one image of a study without a name: give that "
    "image alone, or use a model trained with views (model.init_args.model.multi_view, "
    "data.each_view)"
)


@dataclass(frozen=True)
class EncodedStudy:
    """A study as the model sees it.

    Args:
        name: of its image, or of each view's.
        codes: int64 [N], or of each view.
        ood_score: of its least familiar image; None without a reference.
    """

    name: Any
    codes: Codes
    ood_score: float | None

    @property
    def key(self) -> str:
        """A text that is the same for the same codes, by which samples are drawn."""
        # By plain numbers: the text of a long array is cut.
        if isinstance(self.codes, Mapping):
            return str({view: codes.tolist() for view, codes in self.codes.items()})
        return str(self.codes.tolist())


class StudyEncoder:
    """Encodes images as `mavilt prepare` and `mavilt tokenize` do.

    Args:
        vqgan: on its device.
        references: of the training images of each dataset; may be empty.
        multi_view: whether the model knows views by name.
        fit: framing of images.
    """

    def __init__(
        self, vqgan: Tokenizer, references: Sequence[OODReference], multi_view: bool, fit: Fit
    ):
        self.vqgan, self.references = vqgan, references
        self.multi_view, self.fit = multi_view, fit

    def __call__(self, studies: Sequence[StudyImages], return_errors: bool = False) -> list[Any]:
        """An `EncodedStudy` of each study.

        Args:
            studies: of one image, or views by name.
            return_errors: the error of a study that cannot be read takes its place.

        Raises:
            UserError: a study cannot be read, without `return_errors`.
        """
        results: list[Any] = []
        positions: list[int] = []  # of the studies that could be read
        views_of: list[list[Side]] = []
        pixels: list[np.ndarray] = []
        for study in studies:
            # Its place in the results is kept, whatever becomes of it.
            results.append(study)
            try:
                views = self._ordered_views(study)
                images = [self._read(image) for image in views.values()]
            except UserError as error:
                if not return_errors:
                    raise
                results[-1] = error
                continue
            positions.append(len(results) - 1)
            views_of.append([*views])
            pixels += images
        # All images of the batch are encoded at once; studies may have one or two.
        sides = [view for views in views_of for view in views]
        codes, scores = self._encode(pixels, sides)
        start = 0
        for position, names in zip(positions, views_of):
            rows = slice(start, start + len(names))
            start = rows.stop
            of_views: Codes = dict(zip(names, codes[rows]))
            if not self.multi_view:
                (of_views,) = codes[rows]
            # One view that the model does not know is enough to doubt the study.
            score = None if scores is None else float(scores[rows].max())
            results[position] = EncodedStudy(name_of(results[position]), of_views, score)
        return results

    def codes(self, images: Sequence[Radiograph]) -> Tensor:
        """Codes int64 [B,N] of images."""
        pixels = [self._read(image) for image in images]
        codes, _ = self._encode(pixels, ["frontal"] * len(images))
        return torch.from_numpy(codes).to(self._device)

    @property
    def _device(self) -> torch.device:
        return self.vqgan.quantizer.codebook.device

    def collate(self, studies: Sequence[EncodedStudy]) -> Any:
        """Codes as `Generator` takes them: [B,N], or each study's codes by view."""
        # Studies of several views differ in their number, and make no array.
        if self.multi_view:
            by_view = []
            for study in studies:
                by_view.append({view: codes.tolist() for view, codes in study.codes.items()})
            return by_view
        codes = np.stack([np.asarray(study.codes) for study in studies])
        return torch.from_numpy(codes).to(self._device)

    def _read(self, image: Radiograph) -> np.ndarray:
        # Read as `mavilt prepare` reads: another resize would be other codes.
        source = Path(image) if isinstance(image, (str, Path)) else image
        return read_sized(source, self.vqgan.autoencoder.image_size, self.fit)

    @torch.inference_mode()
    def _encode(
        self, pixels: Sequence[np.ndarray], sides: Sequence[Side]
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Codes [B,N] of images, and their scores [B] if there is a reference."""
        num_codes = self.vqgan.grid**2
        batch = batch_size_for(self.vqgan.autoencoder.config, self._device.type)
        # Begun with nothing, so that no image at all has the right shape too.
        codes, scores = [np.empty((0, num_codes), np.int64)], [np.empty(0)]
        for start in range(0, len(pixels), batch):
            part = slice(start, start + batch)
            images = to_float(torch.from_numpy(np.stack(pixels[part])).to(self._device))
            # Without a reference, decoding would be for nothing.
            if not self.references:
                codes.append(self.vqgan.encode(images[:, None]).cpu().numpy())
                continue
            measured = measure(self.vqgan, images[:, None])
            codes.append(measured.codes)
            scores.append(lowest_scores(self.references, measured, sides[part]))
        return np.concatenate(codes), np.concatenate(scores) if self.references else None

    def _ordered_views(self, study: StudyImages) -> dict[Side, Any]:
        """The images of a study by view, in the vocabulary's order.

        The same views are then the same study, in whatever order they were given.
        """
        if not self.multi_view:
            if isinstance(study, Mapping):
                raise UserError(NO_VIEWS)
            return {"frontal": study}
        views = study if isinstance(study, Mapping) else {"frontal": study}
        if not views or set(views) - set(VIEW_TOKENS):
            raise UserError(
                f"found the views {[*views]}; expected some of {', '.join(VIEW_TOKENS)}, each with "
                "its image"
            )
        # In the order of the training's prompts.
        return {view: views[view] for view in VIEW_TOKENS if view in views}
