"""Write a trained language model as a folder that plain Hugging Face transformers loads.

Shape legend: N codes an image, D width.
"""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import save_file

from mavilt_pl.language.adapters import merge_adapters
from mavilt_pl.language.model import VisualLanguageModel
from mavilt_pl.language.vocabulary import SPECIAL_TOKENS, VIEW_TOKENS
from mavilt_pl.parallel.atomic_write import atomic_write_text


def save_language_model(model: VisualLanguageModel, out: Path) -> None:
    """Write the grown model with its adapters merged, and its tokenizer.

    `visual.json` holds the ids of special tokens and codes. `grid_positions.safetensors`, if the
    model has them, holds [N,D] vectors that are added to the embeddings of an image's codes in
    order.
    """
    vocabulary = model.vocabulary
    # Plain transformers knows neither our adapters nor rows that are kept apart from the embedding.
    merge_adapters(model.backbone, vocabulary, model.new_rows).save_pretrained(out)
    model.tokenizer.save_pretrained(out)
    special = {name: vocabulary.special_token_id(name) for name in SPECIAL_TOKENS}
    if vocabulary.multi_view:
        for view, name in VIEW_TOKENS.items():
            special[name] = vocabulary.view_token_id(view)
    facts = {
        "special_tokens": special,
        "first_code": vocabulary.first_code,
        "codebook_size": vocabulary.codebook_size,
        "codes_per_image": vocabulary.codes_per_image,
        "num_used_rows": vocabulary.num_used_rows,
    }
    atomic_write_text(out / "visual.json", json.dumps(facts, indent=1))
    if model.grid_positions is not None:
        positions = model.grid_positions.detach().cpu().contiguous()
        save_file({"grid_positions": positions}, out / "grid_positions.safetensors")
