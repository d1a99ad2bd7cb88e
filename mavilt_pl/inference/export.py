"""Write a trained model as a folder that plain Hugging Face transformers loads.

Shape legend: N codes an image, D width.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from transformers import AutoConfig, AutoTokenizer, GenerationConfig
from transformers.tokenization_utils_base import AddedToken

from mavilt_pl.checkpoint import sha256
from mavilt_pl.data.ood_reference import REFERENCE_FILE, save_references
from mavilt_pl.evaluation.results import write_json
from mavilt_pl.inference.adapter_files import save_adapters
from mavilt_pl.inference.card import EXAMPLE, write_card
from mavilt_pl.inference.exported import FACTS, POSITIONS, VQGAN, settings_of, weight_files
from mavilt_pl.inference.mavilt import MAViLT
from mavilt_pl.language.adapters import merge_adapters
from mavilt_pl.language.model import VisualLanguageModel
from mavilt_pl.language.prompt_builder import PromptBuilder
from mavilt_pl.language.vocabulary import SPECIAL_TOKENS, VIEW_TOKENS, VisualVocabulary
from mavilt_pl.parallel.atomic_write import atomic_write_text
from mavilt_pl.vqgan.loading import save_tokenizer


def export(
    model: MAViLT,
    checkpoint: Mapping[str, Any],
    name: str,
    out: Path,
    results: Mapping[str, Any] | None = None,
    license_id: str = "other",
    base: str | None = None,
) -> None:
    """Write language model, VQ-GAN, an example that runs, and a card that describes them.

    Args:
        model: of a run.
        checkpoint: of that run, for the card.
        name: of the model, on the card.
        out: an empty folder.
        results: results.json of the run's test, if it was tested.
        license_id: as Hugging Face's cards name licences.
        base: write adapters and new rows only, trained on this base model.
    """
    generator = model.generator
    # The weights first: it is the step that a full disk stops.
    facts: dict[str, Any] = {}
    if base is None:
        save_language_model(generator.model, out)
        facts = json.loads((out / FACTS).read_text(encoding="utf-8"))
    else:
        save_adapters(generator.model, base, out)
    save_tokenizer(model.vqgan, out / VQGAN)
    save_references(model.loaded.ood_references, out / REFERENCE_FILE)
    facts |= _prompts(generator.prompts)
    facts["settings"] = settings_of(generator)
    if base is not None:
        tuning = checkpoint["hyper_parameters"]["tuning"]
        facts["settings"] |= {"base": base, "tuning": tuning}
    # What an export was made from stays known wherever it goes.
    facts["checkpoint"] = model.sha256
    facts["training_data"] = model.loaded.training_data
    # After all weights are there.
    facts["sha256"] = {path.name: sha256(path) for path in weight_files(out)}
    atomic_write_text(out / FACTS, json.dumps(facts, indent=1))
    _save_preprocessing(model, out)
    # It needs the whole language model.
    if base is None:
        example = EXAMPLE.read_text(encoding="utf-8")
        (out / "example.py").write_text(example, encoding="utf-8")
    # Figures name no patient, so they may go with the weights.
    if results is not None:
        write_json(out / "results.json", dict(results))
    figures = results["figures"] if results is not None else []
    card = write_card(model, checkpoint, name, facts["sha256"], figures, license_id, base is None)
    (out / "README.md").write_text(card, encoding="utf-8")


def _save_preprocessing(model: MAViLT, out: Path) -> None:
    """How an image becomes the VQ-GAN's input, under Hugging Face's name for it."""
    size = model.vqgan.autoencoder.image_size
    preprocessing = {
        "image_processor_type": "mavilt_pl.data.radiograph.read_sized",
        "size": {"height": size, "width": size},
        "fit": model.encoder.fit,
        "grey": "MONOCHROME2: air dark, bone bright; 0 to 255 becomes -1 to 1",
        "resample": "area",
    }
    atomic_write_text(out / "preprocessor_config.json", json.dumps(preprocessing, indent=1))


def save_language_model(model: VisualLanguageModel, out: Path) -> None:
    """Write the grown model with its adapters merged, and its tokenizer with marks and codes.

    `visual.json` holds the ids of special tokens and codes. `grid_positions.safetensors`, if the
    model has them, holds [N,D] vectors that are added to the embeddings of an image's codes in
    order.
    """
    vocabulary = model.vocabulary
    # Plain transformers knows neither our adapters nor rows that are kept apart from the embedding.
    merge_adapters(model.backbone, vocabulary, model.new_rows).save_pretrained(out)
    model.tokenizer.save_pretrained(out)
    _save_text_tokenizer(vocabulary, out)
    _save_generation(vocabulary, out)
    facts = {
        "special_tokens": _special_tokens(vocabulary),
        "first_code": vocabulary.first_code,
        "codebook_size": vocabulary.codebook_size,
        "codes_per_image": vocabulary.codes_per_image,
        "num_used_rows": vocabulary.num_used_rows,
    }
    atomic_write_text(out / FACTS, json.dumps(facts, indent=1))
    if model.grid_positions is not None:
        positions = model.grid_positions.detach().cpu().contiguous()
        save_file({"grid_positions": positions}, out / POSITIONS)


def _special_tokens(vocabulary: VisualVocabulary) -> dict[str, int]:
    """Ids of marks, and of views if the model has several."""
    special = {name: vocabulary.special_token_id(name) for name in SPECIAL_TOKENS}
    if vocabulary.multi_view:
        for view, name in VIEW_TOKENS.items():
            special[name] = vocabulary.view_token_id(view)
    return special


def _save_text_tokenizer(vocabulary: VisualVocabulary, out: Path) -> None:
    """Teach the exported tokenizer the new rows, in the order of their ids."""
    tokenizer = AutoTokenizer.from_pretrained(out)
    # A conversation's template is the base model's: this one is asked by marks.
    tokenizer.chat_template = None
    # Rows that the base model pads its embedding with have no token.
    names = [f"<unused-{row}>" for row in range(len(tokenizer), vocabulary.num_text_rows)]
    names += SPECIAL_TOKENS
    names += [f"<code-{code}>" for code in range(vocabulary.codebook_size)]
    if vocabulary.multi_view:
        names += VIEW_TOKENS.values()
    tokenizer.add_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    # Some tokenizers number new tokens otherwise, and a wrong id is worse than an unknown mark.
    if tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)) != [
        vocabulary.special_token_id(name) for name in SPECIAL_TOKENS
    ]:
        return
    tokenizer.eos_token, tokenizer.bos_token = "<end>", "<begin>"
    tokenizer.save_pretrained(out)


def _save_generation(vocabulary: VisualVocabulary, out: Path) -> None:
    """Let `generate` end at `<end>`, and write text only."""
    end = vocabulary.end
    ids = {
        "bos_token_id": vocabulary.special_token_id("<begin>"),
        "eos_token_id": end,
        "pad_token_id": end,
    }
    # In the files only: the model in memory may go on training.
    config = AutoConfig.from_pretrained(out)
    for key, value in ids.items():
        setattr(config, key, value)
    config.save_pretrained(out)
    # As `sampling.text_log_probs`: rows that the tokenizer never uses, marks and codes.
    impossible = range(vocabulary.num_used_rows, vocabulary.num_rows)
    suppressed = [row for row in impossible if row != end]
    GenerationConfig(**ids, do_sample=False, suppress_tokens=suppressed).save_pretrained(out)


def _prompts(prompts: PromptBuilder) -> dict[str, Any]:
    """What stands around an image or a text, as ids."""
    vocabulary = prompts.vocabulary
    # What stands around the codes of an image, whatever the number of views.
    before, after = _split_at(prompts.image_prefix([0]), vocabulary.first_code)
    opening = prompts.synthesis_prompt(None)[len(prompts.image_prefix({})) :]
    return {
        "max_text_tokens": prompts.max_text_tokens,
        "report_prompt": {
            "before_image": before,
            "after_image": [*after, *prompts.report_prompt()],
        },
        "synthesis_prompt": {
            "before_text": prompts.image_prefix({}),
            "instruction": prompts.synthesis_text(""),
            "after_text": opening,
        },
    }


def _split_at(ids: list[int], one: int) -> tuple[list[int], list[int]]:
    """The ids before and after the only one of this value."""
    # Codes have ids of their own, so no mark can be mistaken for one.
    where = ids.index(one)
    return ids[:where], ids[where + 1 :]
