"""A trained language model and its visual tokenizer as one object: report, ask, draw.

Shape legend: B studies, N codes an image, H W pixels.
"""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from mavilt_pl.data.collate import sample_key
from mavilt_pl.data.pixels import to_float, to_uint8
from mavilt_pl.data.radiograph import Fit, read_sized
from mavilt_pl.data.records import OTHER, Side
from mavilt_pl.errors import MaviltWarning, UserError
from mavilt_pl.inference.exported import is_exported, load_exported
from mavilt_pl.inference.judge import Judge
from mavilt_pl.inference.trained import load_trained
from mavilt_pl.language.generation import Generator
from mavilt_pl.language.vocabulary import VIEW_TOKENS
from mavilt_pl.parallel.device import resolve_device
from mavilt_pl.vqgan.tokenizer import Tokenizer

BATCH = 16  # studies at a time
Radiograph = str | Path
StudyImages = Radiograph | Mapping[Side, Radiograph]  # the image of a study, or each view's
NO_VIEWS = (
    "a view is named, and this model was trained on one image of a study without a name: give that "
    "image alone, or use a model trained with views (model.init_args.model.multi_view, "
    "data.each_view)"
)


class MAViLT:
    """Reads radiographs, answers questions about them, and draws them.

    Images are DICOM, PNG or JPEG files, framed as `mavilt prepare` does. To a model of several
    views a study may be given as `{"frontal": FILE, "lateral": FILE}`, either of which may be
    absent; an image without a view's name counts as frontal. A sample depends on the seed and its
    inputs, not on its position in the call or on the other inputs. A text of more than
    `max_text_tokens` tokens is truncated with a warning.

    Args:
        generator: decodes with the language model.
        vqgan: the visual tokenizer that the language model was trained with.
        fit: framing of images, `pad` or `crop`.
    """

    def __init__(self, generator: Generator, vqgan: Tokenizer, fit: Fit = "pad"):
        self.generator, self.vqgan, self.fit = generator, vqgan, fit
        self.multi_view = generator.model.vocabulary.multi_view

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        device: str = "auto",
        fit: Fit = "pad",
        dtype: Literal["float32", "bfloat16"] = "float32",
    ) -> MAViLT:
        """Load a folder that `mavilt export` wrote, or a run of a training.

        Args:
            path: the folder.
            device: cpu, cuda, …; auto for a GPU if there is one.
            fit: framing of images, `pad` or `crop`.
            dtype: of the language model's weights.

        Raises:
            UserError: it is neither, or a file is damaged.
        """
        if not is_exported(Path(path)):
            return cls.from_runs(path, device=device, fit=fit, dtype=dtype)
        target = resolve_device(device)
        return cls._placed(load_exported(Path(path)), target, fit, dtype)

    @classmethod
    def from_runs(
        cls,
        model: str | Path,
        tokenizer: str | Path | None = None,
        backbone: str | Path | None = None,
        device: str = "auto",
        fit: Fit = "pad",
        dtype: Literal["float32", "bfloat16"] = "float32",
    ) -> MAViLT:
        """Load the runs of a training.

        Args:
            model: a run of Stage 1 or Stage 2, or its checkpoint.
            tokenizer: the VQ-GAN's run or its checkpoint, or a published one (default: the one
                that the training used).
            backbone: path of the base language model (default: the path used in training); its
                config and tokenizer are read there.
            device: cpu, cuda, …; auto for a GPU if there is one.
            fit: framing of images, `pad` or `crop`.
            dtype: of the language model's weights.

        Raises:
            UserError: the two do not belong together, or a file is not what it should be.
        """
        # Before the weights are read: a wrong device is a typing mistake.
        target = resolve_device(device)
        return cls._placed(load_trained(model, tokenizer, backbone), target, fit, dtype)

    @classmethod
    def _placed(
        cls, parts: tuple[Generator, Tokenizer], device: str, fit: Fit, dtype: str
    ) -> MAViLT:
        """Generator and VQ-GAN on a device; only the language model's weights are rounded."""
        generator, vqgan = parts
        generator.model.to(device, getattr(torch, dtype))
        return cls(generator, vqgan.to(device), fit)

    @torch.inference_mode()
    def codes(self, images: Sequence[Radiograph]) -> Tensor:
        """Codes int64 [B,N] of image files."""
        # Read as `mavilt prepare` reads: another resize would be other codes.
        size = self.vqgan.autoencoder.image_size
        pixels_BHW = np.stack([read_sized(Path(image), size, self.fit) for image in images])
        pixels = to_float(torch.from_numpy(pixels_BHW).to(self.generator.device))
        return self.vqgan.encode(pixels[:, None])

    def _study_codes(self, studies: Sequence[StudyImages]) -> Any:
        """Codes [B,N], or the codes of each study's views."""
        if not self.multi_view:
            if any(isinstance(study, Mapping) for study in studies):
                raise UserError(NO_VIEWS)
            return self.codes(studies)  # type: ignore[arg-type]
        views_of_studies = [_ordered_views(study) for study in studies]
        # All images of the batch are encoded at once; studies may have one or two.
        files: list[Radiograph] = []
        for views in views_of_studies:
            files += views.values()
        codes = iter(self.codes(files).tolist())
        codes_of_studies = []
        for views in views_of_studies:
            codes_of_studies.append({view: next(codes) for view in views})
        return codes_of_studies

    def _warn_if_truncated(self, name: str, text: str) -> None:
        prompts = self.generator.prompts
        found, limit = len(prompts.tokenize(text)), prompts.max_text_tokens
        if found > limit:
            warnings.warn(
                f"{name}: its {found:,} tokens were truncated to max_text_tokens = {limit}",
                # Points at the user's call of `ask` or `draw`.
                MaviltWarning,
                stacklevel=4,
            )

    @torch.inference_mode()
    def report(self, studies: Sequence[StudyImages] | StudyImages, seed: int = 0) -> list[str]:
        """A report of each study.

        Args:
            studies: image files, or views by name; or a single one of them.
            seed: of text that is sampled (`sampling.text.temperature`).
        """
        # One study is a list of one: a string would be taken apart into letters.
        if isinstance(studies, (str, Path, Mapping)):
            studies = [studies]
        reports: list[str] = []
        for start in range(0, len(studies), BATCH):
            codes = self._study_codes(studies[start : start + BATCH])
            # The seed of each sample follows from its image, so a batch may be cut anywhere.
            keys = [sample_key(_codes_text(one)) for one in codes]
            reports += self.generator.generate_reports(codes, seed, keys)
        return reports

    @torch.inference_mode()
    def ask(
        self,
        study: StudyImages,
        questions: Sequence[str] | str,
        answers: Sequence[str] = (),
        seed: int = 0,
    ) -> list[Any]:
        """Answer questions about a study.

        Args:
            study: an image file, or views by name.
            questions: one or more.
            answers: possible answers; without, answers are free text.
            seed: as for `report`.

        Returns:
            For each question a text, or with `answers` the probability of each (they sum to 1).

        Raises:
            UserError: an answer is given twice, or the model has learned no questions.
        """
        if not self.generator.prompts.instructed:
            raise UserError(
                "the model has learned no questions: it is of Stage 1; expected a checkpoint of "
                "Stage 2"
            )
        if isinstance(questions, str):
            questions = [questions]
        # Twice the same answer would share its probability.
        if len({*answers}) < len(answers):
            raise UserError(
                f"answers: found {[*answers]}; expected each of them once: drop repeated ones"
            )
        for question in questions:
            self._warn_if_truncated(f"question {textwrap.shorten(question, 40)!r}", question)
        codes = self._study_codes([study])
        if not answers:
            shown = _codes_text(codes[0])
            keys = [sample_key(f"{shown} {question}") for question in questions]
            return self.generator.generate_answers(codes, [questions], seed, [keys])[0]
        # With given answers nothing is sampled: each is scored, and the scores are normalised.
        asked = [(question, answers) for question in questions]
        probabilities = self.generator.answer_questions(codes, [asked])[0]
        return [dict(zip(answers, row)) for row in probabilities]

    @torch.inference_mode()
    def draw(
        self,
        texts: Sequence[str],
        seed: int = 0,
        best_of: int = 1,
        judge: Any = None,
        view: Side | None = None,
        given: Sequence[Mapping[Side, Radiograph]] | None = None,
    ) -> np.ndarray:
        """Generate an image for each text, uint8 [B,H,W].

        The same text under the same seed is the same image, also within one call.

        Args:
            texts: reports, or findings.
            seed: of the samples.
            best_of: images generated for each text, of which the judge's choice is kept; a text
                that states none of its findings gets the first, with a warning.
            judge: an encoder with findings (`load_encoder`).
            view: of a model of several views, what to generate (default: frontal).
            given: of a model of several views, the other view's image of each text's study.
        """
        # The judge works on the model's device: its candidates are decoded there.
        scorer = None
        if judge is not None:
            scorer = Judge(judge.to(self.generator.device), self.vqgan)
        self._check_texts(texts, scorer, best_of)
        self._check_given(texts, view, given)
        size = self.vqgan.autoencoder.image_size
        # Without any text the result is an empty array of the right shape.
        images = [np.empty((0, size, size), np.uint8)]
        for start in range(0, len(texts), BATCH):
            part = texts[start : start + BATCH]
            views = [view or "frontal"] * len(part) if self.multi_view else None
            keys = [sample_key(text) for text in part]
            other = None
            if given is not None:
                other = self._study_codes(given[start : start + BATCH])
                # The same text with another given view is another sample.
                keys = []
                for text, codes in zip(part, other):
                    keys.append(sample_key(f"{text} {_codes_text(codes)}"))
            codes_BN = self.generator.generate_images(
                part, seed, keys, best_of, scorer, views, other
            )
            # One at a time: within a batch, a pixel may round to the other side.
            for codes_N in codes_BN:
                images.append(to_uint8(self.vqgan.decode(codes_N[None])))
        return np.concatenate(images)

    def _check_texts(self, texts: Sequence[str], scorer: Judge | None, best_of: int) -> None:
        """Warn of truncated texts, and of texts that the judge cannot score."""
        for number, text in enumerate(texts, 1):
            prompt = self.generator.prompts.synthesis_text(text)
            self._warn_if_truncated(f"text {number}", prompt)
            if scorer and best_of > 1 and not scorer.stated_findings(text):
                warnings.warn(
                    f"text {number} states none of the judge's findings "
                    f"({', '.join(scorer.findings)}); the first of its {best_of} images was kept",
                    MaviltWarning,
                    stacklevel=3,
                )

    def _check_given(self, texts: Sequence[str], view: Side | None, given: Any) -> None:
        if (view or given) and not self.multi_view:
            raise UserError(NO_VIEWS)
        generated: Side = view or "frontal"
        if generated not in OTHER:
            raise UserError(f"view: found {generated!r}; expected one of {', '.join(OTHER)}")
        if given is not None and len(given) != len(texts):
            raise UserError(
                f"given: found the images of {len(given)} studies for {len(texts)} texts; expected "
                "one each"
            )
        # What is generated cannot be given; so of the two views there is one to give.
        other = OTHER[generated]
        for study in given or ():
            if not isinstance(study, Mapping) or set(study) != {other}:
                raise UserError(
                    f"given: found {study!r}; expected {{{other!r}: FILE}}, the view that the "
                    f"{generated} one is generated from"
                )


def _ordered_views(study: StudyImages) -> dict[Side, Radiograph]:
    """The images of a study by view, in the vocabulary's order.

    The same views are then the same study, in whatever order they were given.
    """
    views = study if isinstance(study, Mapping) else {"frontal": study}
    if not views or set(views) - set(VIEW_TOKENS):
        raise UserError(
            f"found the views {[*views]}; expected some of {', '.join(VIEW_TOKENS)}, each with its "
            "image"
        )
    return {view: views[view] for view in VIEW_TOKENS if view in views}


def _codes_text(codes: Any) -> str:
    """Codes of a study as a text that is the same for the same codes."""
    return str(codes.tolist() if isinstance(codes, Tensor) else codes)
