"""Read back what `mavilt export` wrote: a model in one folder."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers.utils.logging import disable_progress_bar

from mavilt_pl.checkpoint import sha256
from mavilt_pl.data.ood_reference import REFERENCE_FILE, read_references
from mavilt_pl.errors import UserError
from mavilt_pl.inference.adapter_files import ADAPTERS, load_adapters, load_base
from mavilt_pl.inference.trained import LoadedModel, build_generator
from mavilt_pl.language.generation import Generator
from mavilt_pl.language.model import VisualLanguageModel
from mavilt_pl.language.options import ModelOptions, SamplingOptions, as_options
from mavilt_pl.language.vocabulary import VisualVocabulary
from mavilt_pl.vqgan.loading import load_tokenizer

FACTS = "visual.json"
POSITIONS = "grid_positions.safetensors"
VQGAN = "vqgan.safetensors"


def is_exported(folder: Path) -> bool:
    """Whether a folder is an exported model."""
    return (folder / FACTS).is_file()


def is_apart(folder: Path) -> bool:
    """Whether an exported folder needs its base model from elsewhere."""
    return (folder / ADAPTERS).is_file()


def settings_of(generator: Generator) -> dict[str, Any]:
    """What `load_exported` needs and Hugging Face's files do not say, for `visual.json`."""
    return {
        "vocabulary": asdict(generator.model.vocabulary),
        "model": asdict(generator.model.options),
        "sampling": asdict(generator.sampling),
        "instructed": generator.prompts.instructed,
    }


def weight_files(folder: Path) -> list[Path]:
    """All files of weights of an exported folder, sorted by name."""
    return sorted(folder.glob("*.safetensors"))


def load_exported(folder: Path, base: str | None = None) -> LoadedModel:
    """The model of an exported folder, on the CPU in evaluation mode.

    Args:
        folder: that `export` wrote.
        base: path of the base language model, if the folder has adapters only (default: as in
            training).

    Raises:
        UserError: a file is missing, damaged or of another version.
    """
    facts = _read_facts(folder)
    _verify_files(folder, facts["sha256"])
    settings = facts["settings"]
    # Somebody waits for an answer, not for weights.
    disable_progress_bar()
    # Adapters alone are no model; the base model is read from elsewhere.
    if is_apart(folder):
        model = load_adapters(folder, settings, base)
    else:
        model = _load_whole(folder, settings)
    sampling = as_options(SamplingOptions, settings["sampling"], f"{folder / FACTS}: sampling")
    return LoadedModel(
        build_generator(model, settings["instructed"], sampling),
        load_tokenizer(folder / VQGAN),
        facts["checkpoint"],
        read_references(folder / REFERENCE_FILE),
        facts["training_data"],
    )


def _load_whole(folder: Path, settings: dict[str, Any]) -> VisualLanguageModel:
    """The language model of a folder that holds all of it."""
    vocabulary = VisualVocabulary(**settings["vocabulary"])
    options = as_options(ModelOptions, settings["model"], f"{folder / FACTS}: model")
    backbone, tokenizer = load_base(str(folder))
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
    return model.eval()


def _verify_files(folder: Path, checksums: dict[str, str]) -> None:
    """Compare all weights with what was exported: a download may have ended early."""
    for name, checksum in checksums.items():
        path = folder / name
        if not path.is_file():
            raise UserError(f"{path} is missing: copy or download the folder again")
        # safetensors would load changed numbers without a word.
        if sha256(path) != checksum:
            raise UserError(
                f"{path} is damaged: its checksum is not that of {FACTS}; copy or download the "
                "folder again"
            )


def _read_facts(folder: Path) -> dict[str, Any]:
    # Written by another version, or by hand.
    try:
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        known = {"vocabulary", "model", "sampling", "instructed"} <= facts["settings"].keys()
        known = known and {"checkpoint", "sha256", "training_data"} <= facts.keys()
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
