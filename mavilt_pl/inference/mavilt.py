"""A trained language model and its visual tokenizer as one object: report, ask, draw.

Shape legend: B studies, N codes an image, H W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from rich.progress import track
from torch import Tensor

from mavilt_pl.data.collate import sample_key
from mavilt_pl.data.pixels import to_uint8
from mavilt_pl.data.questions import YES_NO, asks_yes_or_no
from mavilt_pl.data.radiograph import Fit
from mavilt_pl.data.records import OTHER, Side
from mavilt_pl.errors import UserError
from mavilt_pl.inference.argument_checks import check_given, check_questions, check_texts
from mavilt_pl.inference.exported import is_exported, load_exported
from mavilt_pl.inference.judge import Judge
from mavilt_pl.inference.outputs import Answer, Drawing, Report
from mavilt_pl.inference.studies import Radiograph, StudyImages, as_list
from mavilt_pl.inference.study_encoder import EncodedStudy, StudyEncoder
from mavilt_pl.inference.trained import LoadedModel, load_trained
from mavilt_pl.parallel.device import resolve_device

# Texts that end leave their batch, so that more at once cost little and save much.
BATCH = 64  # studies at a time
# All of a drawing's codes are kept in the cache, with and without its text if there is guidance.
DRAWN = 16  # images at a time
Studies = Sequence[StudyImages] | StudyImages


class MAViLT:
    """Reads radiographs, answers questions about them, and draws them.

    An image is a DICOM, PNG or JPEG file, a Pillow image, a pydicom dataset or an array; framed as
    `mavilt prepare` does. To a model of several views a study may be given as
    `{"frontal": IMAGE, "lateral": IMAGE}`, either of which may be absent; an image without a view's
    name counts as frontal. A sample depends on the seed and its inputs, not on its position in the
    call or on the other inputs. A text of more than `max_text_tokens` tokens is truncated with a
    warning.

    Args:
        loaded: generator, VQ-GAN and what is known of them.
        fit: framing of images, `pad` or `crop` (default: as in training).
    """

    def __init__(self, loaded: LoadedModel, fit: Fit | None = None):
        self.loaded = loaded
        self.generator, self.vqgan = loaded.generator, loaded.vqgan
        self.multi_view = self.generator.model.vocabulary.multi_view
        self.encoder = StudyEncoder(
            self.vqgan, loaded.ood_references, self.multi_view, fit or loaded.fit
        )

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        device: str = "auto",
        fit: Fit | None = None,
        dtype: Literal["float32", "bfloat16"] = "float32",
        backbone: str | Path | None = None,
    ) -> MAViLT:
        """Load a folder that `mavilt export` wrote, or a run of a training.

        Args:
            path: the folder.
            device: cpu, cuda, …; auto for a GPU if there is one.
            fit: framing of images, `pad` or `crop` (default: as in training).
            dtype: of the language model's weights.
            backbone: path of the base language model (default: the path used in training); an
                export of the whole model has its own.

        Raises:
            UserError: it is neither, or a file is damaged.
        """
        # By a file of the export, not by its name: users rename folders.
        if not is_exported(Path(path)):
            return cls.from_runs(path, None, backbone, device, fit, dtype)
        target = resolve_device(device)
        base = None if backbone is None else str(backbone)
        return cls._placed(load_exported(Path(path), base), target, fit, dtype)

    @classmethod
    def from_runs(
        cls,
        model: str | Path,
        tokenizer: str | Path | None = None,
        backbone: str | Path | None = None,
        device: str = "auto",
        fit: Fit | None = None,
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
            fit: framing of images, `pad` or `crop` (default: as in training).
            dtype: of the language model's weights.

        Raises:
            UserError: the two do not belong together, or a file is not what it should be.
        """
        # Before the weights are read: a wrong device is a typing mistake.
        target = resolve_device(device)
        return cls._placed(load_trained(model, tokenizer, backbone), target, fit, dtype)

    @classmethod
    def _placed(cls, loaded: LoadedModel, device: str, fit: Fit | None, dtype: str) -> MAViLT:
        """A model on a device; only the language model's weights are rounded."""
        # Codes of a rounded VQ-GAN would be others than those of the training.
        loaded.generator.model.to(device, getattr(torch, dtype))
        loaded.vqgan.to(device)
        return cls(loaded, fit)

    @property
    def sha256(self) -> str:
        """SHA-256 of the checkpoint that was trained."""
        return self.loaded.sha256

    @torch.inference_mode()
    def codes(self, images: Sequence[Radiograph]) -> Tensor:
        """Codes int64 [B,N] of images."""
        return self.encoder.codes(images)

    def report(
        self,
        studies: Studies,
        seed: int = 0,
        return_errors: bool = False,
        progress: bool = False,
    ) -> Any:
        """A report of each study.

        Args:
            studies: an image, its views by name, a folder, a pattern such as `scans/*.dcm`, or a
                list of these.
            seed: of text that is sampled (`sampling.text.temperature`).
            return_errors: an image that cannot be read gives its error in place of its report,
                instead of raising it.
            progress: show a progress bar.

        Returns:
            A `Report`, or a list of them for a folder, a pattern or a list.
        """
        listed, is_one = as_list(studies)
        # The same code for one and for many, so that both are read alike.
        reports = list(self.iterate_reports(listed, seed, return_errors, progress))
        return reports[0] if is_one else reports

    def iterate_reports(
        self,
        studies: Sequence[StudyImages],
        seed: int = 0,
        return_errors: bool = False,
        progress: bool = False,
    ) -> Iterator[Report | UserError]:
        """As `report`, for a list of studies of any length, some at a time."""
        starts = range(0, len(studies), BATCH)
        for start in track(starts, "Reading", disable=not progress, transient=True):
            encoded = self.encoder(studies[start : start + BATCH], return_errors)
            # Texts come for those that could be read, in their order.
            texts = iter(self._write_reports(_readable(encoded), seed))
            for study in encoded:
                if isinstance(study, UserError):
                    yield study
                else:
                    yield Report(next(texts), **self._made_from(study, seed))

    @torch.inference_mode()
    def _write_reports(self, studies: Sequence[EncodedStudy], seed: int) -> list[str]:
        # Perhaps none of a batch could be read.
        if not studies:
            return []
        # The seed of each sample follows from its image, so a batch may be cut anywhere.
        keys = [sample_key(study.key) for study in studies]
        return self.generator.generate_reports(self.encoder.collate(studies), seed, keys)

    def _made_from(self, study: EncodedStudy, seed: int) -> dict[str, Any]:
        return {
            "image": study.name,
            "codes": study.codes,
            "seed": seed,
            "model": self.sha256,
            "ood_score": study.ood_score,
        }

    def ask(
        self,
        studies: Studies,
        questions: Sequence[str] | str,
        answers: Sequence[str] | None = None,
        seed: int = 0,
        return_errors: bool = False,
    ) -> Any:
        """Answer questions about studies.

        Args:
            studies: as for `report`.
            questions: one or more.
            answers: expected answers; without, yes and no for a question that asks for them and
                free text for any other. An empty list asks for free text.
            seed: as for `report`.
            return_errors: as for `report`.

        Returns:
            An `Answer`; for several questions a list of them, and for a folder, a pattern or a list
            of studies a list of what one study gives.

        Raises:
            UserError: an answer is given twice, or the model has learned no questions.
        """
        listed, is_one = as_list(studies)
        asked = [questions] if isinstance(questions, str) else [*questions]
        # Before any image is read: a question may be refused whatever the image is.
        check_questions(self.generator.prompts, asked, answers)
        # Any: an answer, its list, or the error of a study.
        results: list[Any] = []
        for start in range(0, len(listed), BATCH):
            encoded = self.encoder(listed[start : start + BATCH], return_errors)
            replies = iter(self._answer(_readable(encoded), asked, answers, seed))
            for study in encoded:
                if isinstance(study, UserError):
                    results.append(study)
                else:
                    of_study = next(replies)
                    results.append(of_study[0] if isinstance(questions, str) else of_study)
        return results[0] if is_one else results

    @torch.inference_mode()
    def _answer(
        self,
        studies: Sequence[EncodedStudy],
        questions: Sequence[str],
        answers: Sequence[str] | None,
        seed: int,
    ) -> list[list[Answer]]:
        """The answers to each question about each study."""
        if not studies:
            return []
        asked: list[tuple[str, Sequence[str]]] = []
        for question in questions:
            expected = answers or ()
            # A model that has learned closed questions only has no words of its own for them.
            if answers is None and asks_yes_or_no(question):
                expected = YES_NO
            asked.append((question, expected))
        # Keyed by what the study shows, as reports are.
        keys = [sample_key(study.key) for study in studies]
        codes = self.encoder.collate(studies)
        replies = self.generator.answer_questions(codes, [asked] * len(studies), seed, keys)
        results = []
        for study, of_study in zip(studies, replies):
            made_from = self._made_from(study, seed)
            row = []
            for (question, expected), reply in zip(asked, of_study):
                probabilities = None
                # Of expected answers nothing is sampled: each has its share.
                if expected:
                    probabilities = dict(zip(expected, reply))
                    reply = max(probabilities, key=probabilities.__getitem__)
                row.append(Answer(reply, question, probabilities, **made_from))
            results.append(row)
        return results

    @torch.inference_mode()
    def draw(
        self,
        texts: Sequence[str] | str,
        seed: int = 0,
        best_of: int = 1,
        judge: Any = None,
        view: Side | None = None,
        given: Sequence[Mapping[Side, Radiograph]] | None = None,
        names: Sequence[str] | None = None,
    ) -> Any:
        """Generate an image for each text.

        The same text under the same seed and name is the same image, also within one call.

        Args:
            texts: a report, or findings; or a list of them.
            seed: of the samples.
            best_of: images generated for each text, of which the judge's choice is kept; a text
                that states none of its findings gets the first, with a warning.
            judge: an encoder with findings (`load_encoder`).
            view: of a model of several views, what to generate (default: frontal).
            given: of a model of several views, the other view's image of each text's study.
            names: one a text; the same text under another name is another sample.

        Returns:
            A `Drawing`, or a list of them for a list of texts.
        """
        # A string is one text, and not a list of letters.
        listed = [texts] if isinstance(texts, str) else [*texts]
        # The judge works on the model's device: its candidates are decoded there.
        scorer = None
        if judge is not None:
            scorer = Judge(judge.to(self.generator.device), self.vqgan)
        check_texts(self.generator.prompts, listed, scorer, best_of)
        check_given(listed, view, given, self.multi_view)
        # Whoever gets a drawing learns from its file how it was made.
        details = [f"{view} view"] if view else []
        if given:
            details.append(f"from the {OTHER[view or 'frontal']} image")
        if scorer:
            details.append(f"best of {best_of} by a judge")
        drawings = []
        for start in range(0, len(listed), DRAWN):
            part = listed[start : start + DRAWN]
            named = part if names is None else names[start : start + DRAWN]
            keys, other = [sample_key(name) for name in named], None
            if given is not None:
                studies = self.encoder(given[start : start + DRAWN])
                other = self.encoder.collate(studies)
                # The same text with another given view is another sample.
                keys = [sample_key(f"{text} {study.key}") for text, study in zip(part, studies)]
            # A model of one view knows no name for it.
            views = [view or "frontal"] * len(part) if self.multi_view else None
            codes_BN = self.generator.generate_images(
                part, seed, keys, best_of, scorer, views, other
            )
            for text, codes_N in zip(part, codes_BN):
                drawings.append(self._drawing(text, codes_N, seed, tuple(details)))
        return drawings[0] if isinstance(texts, str) else drawings

    def _drawing(self, text: str, codes_N: Tensor, seed: int, details: tuple[str, ...]) -> Drawing:
        # One at a time: within a batch, a pixel may round to the other side.
        (pixels,) = to_uint8(self.vqgan.decode(codes_N[None]))
        return Drawing(pixels, text, codes_N.cpu().numpy(), seed, self.sha256, details)


def _readable(encoded: Sequence[EncodedStudy | UserError]) -> list[EncodedStudy]:
    return [study for study in encoded if not isinstance(study, UserError)]
