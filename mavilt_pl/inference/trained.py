"""Read the runs of a training: generator, VQ-GAN, and what is known of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

from mavilt_pl.checkpoint import resolve_checkpoint, sha256
from mavilt_pl.data.ood_reference import OODReference, from_plain
from mavilt_pl.data.radiograph import Fit
from mavilt_pl.errors import UserError
from mavilt_pl.language.generation import Generator
from mavilt_pl.language.model import VisualLanguageModel
from mavilt_pl.language.options import SamplingOptions, as_options
from mavilt_pl.language.prompt_builder import PromptBuilder
from mavilt_pl.vqgan.loading import find_tokenizer, load_tokenizer
from mavilt_pl.vqgan.tokenizer import Tokenizer

INSTRUCTED_STAGES = ("Stage2",)


@dataclass
class LoadedModel:
    """The parts of a trained model.

    Args:
        generator: decodes with the language model.
        vqgan: the visual tokenizer that the language model was trained with.
        sha256: of the checkpoint that was trained.
        ood_references: what the training images are like; empty if that is not known.
        training_data: name, framing and counts of each dataset; empty if that is not known.
    """

    generator: Generator
    vqgan: Tokenizer
    sha256: str
    ood_references: list[OODReference] = field(default_factory=list)
    training_data: list[dict[str, Any]] = field(default_factory=list)

    @property
    def fit(self) -> Fit:
        """The framing of the training images."""
        for dataset in self.training_data:
            if dataset.get("fit") in get_args(Fit):
                return dataset["fit"]
        return "pad"


def load_trained(
    model: str | Path, tokenizer: str | Path | None, backbone: str | Path | None
) -> LoadedModel:
    """The model of a training, on the CPU in evaluation mode.

    Args:
        model: a run of Stage 1 or Stage 2, or its checkpoint.
        tokenizer: the VQ-GAN's run or its checkpoint; None for the one that the training used.
        backbone: path of the base language model; None for the path used in training.

    Raises:
        UserError: the two do not belong together, or a file is not what it should be.
    """
    model_path = resolve_checkpoint(Path(model))
    name = None if backbone is None else str(backbone)
    language_model, checkpoint = VisualLanguageModel.from_checkpoint(model_path, name)
    # After the language model, whose checkpoint names its tokenizer.
    vqgan = _load_vqgan(tokenizer, checkpoint, model_path)
    settings = checkpoint["hyper_parameters"]
    instructed = settings["_class_path"].rpartition(".")[2] in INSTRUCTED_STAGES
    sampling = as_options(SamplingOptions, settings["sampling"], "sampling")
    generator = build_generator(language_model, instructed, sampling)
    # Checkpoints of a Trainer of one's own, and of tokens without a reference, have none.
    references = from_plain(checkpoint.get("ood_references") or [])
    # Likewise: older checkpoints did not record it.
    data = checkpoint.get("training_data") or []
    return LoadedModel(generator, vqgan, sha256(model_path), references, data)


def build_generator(
    model: VisualLanguageModel, instructed: bool, sampling: SamplingOptions
) -> Generator:
    """A generator of a loaded model.

    Args:
        model: in evaluation mode.
        instructed: whether it was trained with instructions (Stage 2).
        sampling: as in its training.
    """
    # Dropped conditions and views are for training, so `regularization` is not needed.
    prompts = PromptBuilder(
        model.vocabulary, model.tokenizer, model.max_context, instructed, model.options
    )
    # One image is not worth a compilation.
    sampling = replace(sampling, image=replace(sampling.image, compile=False))
    # Several questions about one image are branches of one sequence, if attention masks.
    shares_prefix = model.can_share_prefix(prompts.longest_pair() + prompts.max_text_tokens)
    return Generator(model, prompts, sampling, shares_prefix)


def _load_vqgan(
    tokenizer: str | Path | None, checkpoint: Mapping[str, Any], model_path: Path
) -> Tokenizer:
    """The VQ-GAN that a checkpoint was trained with."""
    trained_with = checkpoint["visual_tokenizer"]
    # By checksum, at its old path or near the run.
    if tokenizer is None:
        recorded = checkpoint.get("visual_tokenizer_path")
        return load_tokenizer(find_tokenizer(recorded, trained_with, model_path))
    tokenizer_path = resolve_checkpoint(Path(tokenizer))
    vqgan = load_tokenizer(tokenizer_path)
    # The file's bytes are its name: a path says nothing about what it holds.
    given = sha256(tokenizer_path)
    # Nothing else would notice: any code is a valid code of a tokenizer of the same size.
    if trained_with != given:
        raise UserError(
            f"{model_path} was trained on the codes of tokenizer {trained_with[:12]} and "
            f"{tokenizer_path} is {given[:12]}: its codes mean different things. Name the "
            "tokenizer of that training"
        )
    return vqgan
