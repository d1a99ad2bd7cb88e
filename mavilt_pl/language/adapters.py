"""Train low-rank adapters (LoRA, arXiv 2106.09685, through peft), or nothing but the new rows.

With adapters and with new rows alone the pretrained weights are fixed to the bit. So the model
keeps its own V rows, and the rows of special tokens and codes are parameters of their own, trained
in full: the optimizer, weight decay included, never meets an old row.

Shape legend: B batch, T positions, D width, R new rows, r rank of an adapter.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mavilt_pl.errors import UserError
from mavilt_pl.language.options import LoraOptions
from mavilt_pl.language.vocabulary import VisualVocabulary, initial_rows


class NewRows(nn.Module):
    """Rows of special tokens and codes behind a model's own V rows.

    Embedding [R,D]; head [R,D] if it is not tied; bias [R] if the model's head has one.
    """

    def __init__(self, model: Any, vocabulary: VisualVocabulary, codebook: Tensor | None):
        super().__init__()
        embedding_RD, head_RD, bias_R = initial_rows(model, vocabulary, codebook)
        self.embedding = nn.Parameter(embedding_RD)
        self.head = None if head_RD is None else nn.Parameter(head_RD)
        self.bias = None if bias_R is None else nn.Parameter(bias_R)

    def embed(self, old: nn.Module, ids_BT: Tensor, num_text_rows: int) -> Tensor:
        """Embeddings [B,T,D] of ids; those from `num_text_rows` on are new."""
        is_new = ids_BT >= num_text_rows
        # New ids are out of the old embedding's range, so it reads row 0 for them.
        old_BTD = old(ids_BT.masked_fill(is_new, 0))
        # And old ids are out of the new rows' range.
        new_ids_BT = (ids_BT - num_text_rows).clamp(min=0)
        new_BTD = F.embedding(new_ids_BT, self.embedding).to(old_BTD.dtype)
        return torch.where(is_new[..., None], new_BTD, old_BTD)


def freeze(model: nn.Module) -> None:
    """Fix all parameters."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)


def add_adapters(model: Any, lora: LoraOptions) -> None:
    """Add adapters to a model in place.

    They start as the identity, and nothing else in the model is trained.

    Raises:
        UserError: the targets do not exist, or are the embedding or the head.
    """
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.tuners_utils import BaseTunerLayer

    # GPT-2 stores its linear layers transposed.
    # peft must know, to merge ΔW in the right orientation.
    transposed = any(type(module).__name__ == "Conv1D" for module in model.modules())
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]
        lora_dropout=lora.dropout,
        target_modules=lora.targets,
        fan_in_fan_out=transposed,
    )
    # Collected before injection, which wraps the layers, for the message below.
    linear = set()
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D":
            linear.add(name.rpartition(".")[2])
    names = ", ".join(sorted(linear))
    try:
        inject_adapter_in_model(config, model)
    except ValueError as error:
        raise UserError(
            f"tuning.lora.targets: {lora.targets} does not fit this model "
            f"({str(error).splitlines()[0]}); its linear layers are {names}"
        ) from None
    # A pattern may match both; peft itself excludes the head from "all-linear" only.
    ends = {"embedding": model.get_input_embeddings(), "head": model.get_output_embeddings()}
    for name, module in ends.items():
        if isinstance(module, BaseTunerLayer):
            raise UserError(
                f"tuning.lora.targets: {lora.targets} includes the {name}, whose old rows stay "
                f"fixed and whose new rows are trained in full anyway; name some of {names}"
            )


class Adapter(NamedTuple):
    """One adapter: its layer's weight is W + scale · BA."""

    name: str
    a: nn.Parameter  # [r, in]
    b: nn.Parameter  # [out, r]
    scale: float


def list_adapters(model: nn.Module) -> list[Adapter]:
    """All adapters of a model."""
    found = []
    for name, module in model.named_modules():
        # "default" is the name that `inject_adapter_in_model` gives.
        if hasattr(module, "lora_A") and "default" in module.lora_A:
            a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
            found.append(Adapter(name, a, b, float(module.scaling["default"])))
    return found


def split_full_state_dict(module: Any, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a model trained in full, under the names of one with fixed pretrained weights.

    The first V rows of embedding and head stay the model's; those behind them become the new rows;
    adapters keep their initial values. Weights without a counterpart are left out, for the caller's
    check to name.

    Args:
        module: a `VisualLanguageModel` with adapters or new rows.
        weights: state dict of a `VisualLanguageModel` trained in full.
    """
    # Names are the same up to peft's `.base_layer.`, which wraps each adapted layer.
    own = module.state_dict()
    first_new = module.vocabulary.num_text_rows
    embedding, head = (
        module.backbone.get_input_embeddings(),
        module.backbone.get_output_embeddings(),
    )
    # By parameter: where its rows behind V go. A tied head is overwritten by the embedding.
    grown = {
        id(head.weight): "new_rows.head",
        id(getattr(head, "bias", None)): "new_rows.bias",
        id(embedding.weight): "new_rows.embedding",
    }
    # With duplicates, since a tied head has two names and both may be in the checkpoint.
    parameters = dict(module.named_parameters(remove_duplicate=False))
    found = {name: value for name, value in own.items() if ".lora_" in name}
    for name in own:
        value = weights.get(name.replace(".base_layer.", "."))
        if value is None:
            continue
        new_name = grown.get(id(parameters[name])) if name in parameters else None
        if new_name is None:
            found[name] = value
            continue
        found[name] = value[:first_new]
        # A tied head is in the checkpoint a second time, and the module has no row for it.
        if new_name in own:
            found[new_name] = value[first_new:]
    return found


def merge_adapters(model: Any, vocabulary: VisualVocabulary, new_rows: NewRows | None) -> Any:
    """A copy of the model as plain Hugging Face has it.

    Adapters are added into the weights that they adapt, new rows appended to the old ones.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    # Training may continue with the original after an export.
    plain = copy.deepcopy(model)
    for name, layer in [*plain.named_modules()]:
        if isinstance(layer, BaseTunerLayer):
            layer.merge()
            parent, _, attribute = name.rpartition(".")
            setattr(plain.get_submodule(parent), attribute, layer.get_base_layer())
    # Loaded by other programs, so no weight should come out frozen.
    for parameter in plain.parameters():
        parameter.requires_grad_(True)
    if new_rows is None:
        return plain
    plain.resize_token_embeddings(vocabulary.num_rows, mean_resizing=False)
    first = vocabulary.num_text_rows
    with torch.no_grad():
        plain.get_input_embeddings().weight[first:] = new_rows.embedding
        head = plain.get_output_embeddings()
        if new_rows.head is not None:
            head.weight[first:] = new_rows.head
        if new_rows.bias is not None:
            head.bias[first:] = new_rows.bias
    return plain
