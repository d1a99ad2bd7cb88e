"""A trained language model and the tokenizer that it was trained with, as one thing to call."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mavilt_pl.checkpoint import read_weights, resolve_checkpoint, sha256
from mavilt_pl.data.datamodule import sample_key
from mavilt_pl.data.pixels import to_float, to_uint8
from mavilt_pl.data.radiograph import Fit, read_sized
from mavilt_pl.data.records import OTHER, Side
from mavilt_pl.data.token_cache import write_tokens
from mavilt_pl.errors import UserError
from mavilt_pl.inference.judge import Judge
from mavilt_pl.language import Stage1, Stage2
from mavilt_pl.language.backbone import NoKernel
from mavilt_pl.language.module import LanguageModule
from mavilt_pl.language.vocabulary import VIEW_MARKS
from mavilt_pl.parallel.device import resolve_device
from mavilt_pl.vqgan.loading import load_tokenizer
from mavilt_pl.vqgan.tokenizer import Tokenizer

BATCH = 16  # studies
Radiograph = str | Path
Seen = Radiograph | Mapping[Side, Radiograph]  # what is shown of a study: its image, or each view's
NAMELESS = (
    "a view is named, and this model was trained on one image of a study without a name: give that "
    "image alone, or use a model "
    "trained with views (model.init_args.views, data.each_view)"
)


class MAViLT:
    """Reads radiographs, answers questions about them, and draws them.

    Images are files, DICOM, PNG or JPEG, framed as `mavilt prepare` does. To a model of several
    views (`views`) a study may be shown as `{"frontal": FILE, "lateral": FILE}`, of which either
    may be absent; an image without a view's name is taken for a frontal one. What is sampled
    depends on the seed and on what it is made from, not on its place in the call or on what stands
    beside it. A text of more than `max_words` tokens is cut, with a warning that names it.
    """

    def __init__(self, module: LanguageModule, tokenizer: Tokenizer, fit: Fit = "pad"):
        self.module, self.tokenizer, self.fit = module, tokenizer, fit

    @classmethod
    def from_runs(
        cls,
        model: str | Path,
        tokenizer: str | Path,
        backbone: str | Path | None = None,
        device: str = "auto",
        fit: Fit = "pad",
    ) -> MAViLT:
        """Args: model: a run of Stage 1 or Stage 2, or a checkpoint. tokenizer: the VQ-GAN's run,
        or its checkpoint; or a published one. backbone: where the language model that it began from
        lies now; its configuration and its words are read there.

        Raises `UserError` where the two do not belong together, or where one is not what it should
        be.
        """
        place = resolve_device(device)
        path, seen = resolve_checkpoint(Path(model)), resolve_checkpoint(Path(tokenizer))
        checkpoint = read_weights(path)
        settings = dict(checkpoint.get("hyper_parameters", {}))
        kinds = {"Stage1": Stage1, "Stage2": Stage2}
        kind = kinds.get(str(settings.get("_class_path", "")).rpartition(".")[2])
        if kind is None:
            raise UserError(
                f"{path} is a checkpoint of another module; expected one of Stage 1 or Stage 2"
            )
        eyes = load_tokenizer(seen)
        given = {
            key: settings[key]
            for key in signature(LanguageModule.__init__).parameters
            if key in settings
        }
        # All weights come from the checkpoint: neither the backbone's nor an earlier stage's are
        # read. How it was trained to be fast does not bind its use: another machine may lack the
        # kernel, and one image is not worth a compilation.
        given |= {
            "init_from": None,
            "drift": 0.0,
            "pretrained": False,
            "backbone": str(backbone or given["backbone"]),
        }
        given |= {"attention": "sdpa", "compile_drawing": False}
        # Shape and codebook are told as a token cache tells them, of no image.
        with tempfile.TemporaryDirectory() as folder:
            book = eyes.quantizer.codebook.detach().cpu().numpy()
            write_tokens(Path(folder), "", sha256(seen), book, eyes.grid, 0, [])
            given["tokens"] = folder
            try:
                module = kind(**given)
            except NoKernel:
                module = kind(**{**given, "attention": "eager"})
        module.on_load_checkpoint(checkpoint)
        module.load_state_dict(checkpoint["state_dict"])
        return cls(module.to(place).eval(), eyes.to(place), fit)

    @torch.inference_mode()
    def codes(self, images: Sequence[str | Path]) -> Tensor:
        """int64 [B,N]."""
        size = self.tokenizer.autoencoder.image_size
        pixels_BHW = np.stack([read_sized(Path(image), size, self.fit) for image in images])
        return self.tokenizer.encode(
            to_float(torch.from_numpy(pixels_BHW).to(self.module.device))[:, None]
        )

    def _shown(self, studies: Sequence[Seen]) -> Any:
        """Codes [B,N], or of each study those of its views."""
        if not self.module.vocabulary.views:
            if any(isinstance(study, Mapping) for study in studies):
                raise UserError(NAMELESS)
            return self.codes(studies)  # type: ignore[arg-type]
        named: list[Mapping[Any, Any]] = [
            s if isinstance(s, Mapping) else {"frontal": s} for s in studies
        ]
        for study in named:
            if not study or set(study) - {*VIEW_MARKS}:
                raise UserError(
                    f"found the views {[*study]}; expected some of {', '.join(VIEW_MARKS)}, each "
                    f"with its image"
                )
        in_order = [{view: study[view] for view in VIEW_MARKS if view in study} for study in named]
        rows = iter(self.codes([image for study in in_order for image in study.values()]).tolist())
        return [{view: next(rows) for view in study} for study in in_order]

    def _check_given(self, texts: Sequence[str], view: Side | None, given: Any) -> None:
        if (view or given) and not self.module.vocabulary.views:
            raise UserError(NAMELESS)
        drawn: Side = view or "frontal"
        if drawn not in OTHER:
            raise UserError(f"view: found {drawn!r}; expected one of {', '.join(OTHER)}")
        if given is not None and len(given) != len(texts):
            raise UserError(
                f"given: found the images of {len(given)} studies for {len(texts)} texts; expected "
                f"one each"
            )
        other = OTHER[drawn]
        for study in given or ():
            if not isinstance(study, Mapping) or set(study) != {other}:
                raise UserError(
                    f"given: found {study!r}; expected {{{other!r}: FILE}}, the view that the "
                    f"{drawn} one is drawn from"
                )

    def _tell_cut(self, name: str, text: str) -> None:
        found, most = len(self.module.words(text)), self.module.hparams["max_words"]
        if found > most:
            warnings.warn(
                f"{name}: found {found:,} tokens as the model reads it; it was cut to max_words = "
                f"{most}",
                stacklevel=4,
            )

    @torch.inference_mode()
    def report(self, studies: Sequence[Seen], seed: int = 0) -> list[str]:
        """A report of each study. `seed` matters where the model's `text_decoding` samples."""
        written: list[str] = []
        for start in range(0, len(studies), BATCH):
            shown = self._shown(studies[start : start + BATCH])
            written += self.module.write_reports(
                shown, seed, [sample_key(_spelled(codes)) for codes in shown]
            )
        return written

    @torch.inference_mode()
    def ask(
        self, study: Seen, questions: Sequence[str], answers: Sequence[str] = (), seed: int = 0
    ) -> list[Any]:
        """Free text to each question, with `seed` as in `report`; or, where `answers` are given,
        how likely each of them is (they sum to 1). Raises `UserError` for an answer that is given
        twice.
        """
        if len({*answers}) < len(answers):
            raise UserError(
                f"answers: found {[*answers]}; expected each of them once: drop what is repeated"
            )
        for number, question in enumerate(questions, 1):
            self._tell_cut(f"question {number}", question)
        shown = self._shown([study])
        if not answers:
            keys = [sample_key(f"{_spelled(shown[0])} {question}") for question in questions]
            return self.module.write_answers(shown, [questions], seed, [keys])[0]
        return [
            dict(zip(answers, shares))
            for shares in self.module.answer(
                shown, [[(question, answers) for question in questions]]
            )[0]
        ]

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
        """An image for each text, uint8 [B,H,W]; the same text under the same seed is the same
        image, also within one call.

        A model of several views draws the `view` (default: frontal), of each study from its text
        and the other view's image where that is `given`, one mapping a text.

        Of `best_of` drawn it is the one that `judge`, an encoder with findings (`load_encoder`),
        finds likeliest to show what the text states (`Judge`); a text that states none of its
        findings gets the first, with a warning that names it.
        """
        scorer = None if judge is None else Judge(judge.to(self.module.device), self.tokenizer)
        for number, text in enumerate(texts, 1):
            self._tell_cut(f"text {number}", self.module.draw_words(text, "", training=False))
            if scorer and best_of > 1 and not scorer.states(text):
                warnings.warn(
                    f"text {number}: states none of the judge's findings "
                    f"({', '.join(scorer.findings)}); the first of its "
                    f"{best_of} drawings was taken",
                    stacklevel=3,
                )
        self._check_given(texts, view, given)
        several = self.module.vocabulary.views
        size = self.tokenizer.autoencoder.image_size
        drawn = [np.empty((0, size, size), np.uint8)]
        for start in range(0, len(texts), BATCH):
            some = texts[start : start + BATCH]
            views: Any = [view or "frontal"] * len(some) if several else None
            seen = None if given is None else self._shown(given[start : start + BATCH])
            names = (
                some
                if seen is None
                else [f"{text} {_spelled(codes)}" for text, codes in zip(some, seen)]
            )
            codes_BN = self.module.draw(
                some, seed, [*map(sample_key, names)], best_of, scorer, views, seen
            )
            # One at a time: in a batch a pixel now and then is rounded to the other side.
            drawn += [to_uint8(self.tokenizer.decode(row_N[None])) for row_N in codes_BN]
        return np.concatenate(drawn)


def _spelled(shown: Any) -> str:
    """What a study is shown by, as a text that is the same for the same codes."""
    return str(shown.tolist() if isinstance(shown, Tensor) else shown)
