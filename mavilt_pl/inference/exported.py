"""Read back what `mavilt export` wrote: generator and VQ-GAN of one folder."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers.utils.logging import disable_progress_bar

from mavilt_pl.errors import UserError
from mavilt_pl.inference.trained import build_generator
from mavilt_pl.language.backbone import UnsupportedAttentionError, load_backbone
from mavilt_pl.language.generation import Generator
from mavilt_pl.language.model import VisualLanguageModel
from mavilt_pl.language.options import ModelOptions, SamplingOptions, as_options
from mavilt_pl.language.vocabulary import VisualVocabulary
from mavilt_pl.vqgan.loading import load_tokenizer
from mavilt_pl.vqgan.tokenizer import Tokenizer

FACTS = "visual.json"
POSITIONS = "grid_positions.safetensors"
VQGAN = "vqgan.ckpt"


def is_exported(folder: Path) -> bool:
    """Whether a folder is an exported model."""
    return (folder / FACTS).is_file()


def settings_of(generator: Generator) -> dict[str, Any]:
    """What `load_exported` needs and Hugging Face's files do not say, for `visual.json`."""
    return {
        "vocabulary": asdict(generator.model.vocabulary),
        "model": asdict(generator.model.options),
        "sampling": asdict(generator.sampling),
        "instructed": generator.prompts.instructed,
    }


def load_exported(folder: Path) -> tuple[Generator, Tokenizer]:
    """Generator and VQ-GAN of an exported folder, on the CPU in evaluation mode.

    Raises:
        UserError: a file is missing, damaged or of another version.
    """
    facts = _read_facts(folder)
    settings = facts["settings"]
    vocabulary = VisualVocabulary(**settings["vocabulary"])
    options = as_options(ModelOptions, settings["model"], f"{folder / FACTS}: model")
    # Somebody waits for an answer, not for weights.
    disable_progress_bar()
    # "sdpa" exists on every device, and some architectures have only the plain kernel.
    try:
        backbone, tokenizer = load_backbone(str(folder), "sdpa", local_files_only=True)
    except UnsupportedAttentionError:
        backbone, tokenizer = load_backbone(str(folder), "eager", local_files_only=True)
    # Rows of codes are in the embedding; nothing starts from a codebook.
    codebook = torch.zeros(vocabulary.codebook_size, 1)
    model = VisualLanguageModel(
        backbone, tokenizer, codebook, vocabulary.codes_per_image, options, grown=vocabulary
    )
    # Added to the embeddings of codes, which plain transformers does not know.
    if model.grid_positions is not None:
        positions = _read_positions(folder / POSITIONS)
        if positions.shape != model.grid_positions.shape:
            raise UserError(
                f"{folder / POSITIONS} holds {tuple(positions.shape)}; expected "
                f"{tuple(model.grid_positions.shape)} by {FACTS}: export the run again"
            )
        model.grid_positions.data.copy_(positions)
    sampling = as_options(SamplingOptions, settings["sampling"], f"{folder / FACTS}: sampling")
    generator = build_generator(model.eval(), settings["instructed"], sampling)
    return generator, load_tokenizer(folder / VQGAN)


def _read_facts(folder: Path) -> dict[str, Any]:
    # Written by another version, or by hand.
    try:
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        known = {"vocabulary", "model", "sampling", "instructed"} <= facts["settings"].keys()
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        known = False
    if not known:
        raise UserError(
            f"{folder / FACTS} has no settings of a model; expected what `mavilt export` of this "
            "version writes: export the run again"
        )
    return facts


def _read_positions(path: Path) -> torch.Tensor:
    # safetensors raises errors of its own.
    try:
        return load_file(path)["grid_positions"]
    except Exception as error:
        reason = " ".join(str(error).split())[:100]
        raise UserError(f"{path} is not readable ({reason}): export the run again") from None
