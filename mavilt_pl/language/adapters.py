"""Ways of tuning: every weight, low-rank adapters (LoRA, arXiv 2106.09685, through peft), or
nothing but the new rows.

With adapters and with new rows alone the pretrained weights are fixed to the bit. So the model
keeps its own V rows, and the rows of marks and codes are parameters of their own, trained in full:
the optimizer, weight decay included, never meets an old row.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any, Literal, TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mavilt_pl.errors import UserError
from mavilt_pl.language.vocabulary import VisualVocabulary, first_rows

Tuning = Literal["full", "lora", "new_rows"]


class Lora(TypedDict, total=False):
    """Rank 16, alpha 32 (the adapter's output is scaled by alpha / r), dropout 0.05, and all linear
    layers but the head, as QLoRA has found best (arXiv 2305.14314); `targets` names others, as
    peft's `target_modules` does.
    """

    r: int
    alpha: float
    dropout: float
    targets: str | list[str]


LORA: Lora = {"r": 16, "alpha": 32.0, "dropout": 0.05, "targets": "all-linear"}


class NewRows(nn.Module):
    """The rows of marks and codes behind a model's own V rows: embedding [R,D], and head [R,D]
    where it is not tied, with a bias [R] where the model's head has one.
    """

    def __init__(self, model: Any, vocabulary: VisualVocabulary, codebook: Tensor | None):
        super().__init__()
        embedding_RD, head_RD, bias_R = first_rows(model, vocabulary, codebook)
        self.embedding = nn.Parameter(embedding_RD)
        self.head = None if head_RD is None else nn.Parameter(head_RD)
        self.bias = None if bias_R is None else nn.Parameter(bias_R)

    def embed(self, old: nn.Module, ids_BT: Tensor, rows: int) -> Tensor:
        """Embeddings [B,T,D] of ids of which those from `rows` on are new."""
        new = ids_BT >= rows
        known_BTD = old(ids_BT.masked_fill(new, 0))
        added_BTD = F.embedding((ids_BT - rows).clamp(min=0), self.embedding).to(known_BTD.dtype)
        return torch.where(new[..., None], added_BTD, known_BTD)


def freeze(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.requires_grad_(False)


def add_adapters(model: Any, settings: Lora | None) -> None:
    """Put adapters into the model, in place; they start as the identity and are all that is trained
    in it.

    Raises `UserError` for unknown or impossible settings, and for targets that are not there or are
    embedding or head.
    """
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.tuners_utils import BaseTunerLayer

    given: dict[str, Any] = {**LORA, **(settings or {})}
    if unknown := sorted(set(given) - set(LORA)):
        raise UserError(f"lora: unknown key {unknown[0]}; the keys are {', '.join(LORA)}")
    if given["r"] < 1 or given["alpha"] <= 0 or not 0 <= given["dropout"] < 1:
        raise UserError(
            f"lora: found r {given['r']}, alpha {given['alpha']}, dropout {given['dropout']}; "
            f"expected r of 1 or more, alpha "
            "above 0 and dropout in [0, 1)"
        )
    config = LoraConfig(
        r=given["r"],
        lora_alpha=given["alpha"],
        lora_dropout=given["dropout"],
        target_modules=given["targets"],
        fan_in_fan_out=any(
            type(module).__name__ == "Conv1D" for module in model.modules()
        ),  # GPT-2's, stored transposed
    )
    linear = sorted({name.rpartition(".")[2] for name, m in model.named_modules() if _is_linear(m)})
    try:
        inject_adapter_in_model(config, model)
    except ValueError as error:
        raise UserError(
            f"lora.targets: {given['targets']} does not fit this model "
            f"({str(error).splitlines()[0]}); its linear layers are "
            f"{', '.join(linear)}"
        ) from None
    for name, part in (
        ("embedding", model.get_input_embeddings()),
        ("head", model.get_output_embeddings()),
    ):
        if isinstance(part, BaseTunerLayer):
            raise UserError(
                f"lora.targets: {given['targets']} takes in the {name}, whose old rows stay as "
                f"they are and whose new rows are "
                f"trained in full anyway; name some of {', '.join(linear)}"
            )


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def adapters(model: nn.Module) -> list[tuple[str, nn.Parameter, nn.Parameter, float]]:
    """Name, A [r,in], B [out,r] and scale of every adapter: the layer's weight is W + scale · BA."""
    found = []
    for name, module in model.named_modules():
        if hasattr(module, "lora_A") and "default" in module.lora_A:
            a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
            found.append((name, a, b, float(module.scaling["default"])))
    return found


def from_full(module: Any, weights: Mapping[str, Tensor], rows: int) -> dict[str, Tensor]:
    """The weights of a module that was trained in full, by the names they have in one whose
    pretrained weights are fixed: the first `rows` of embedding and head stay the model's, those
    behind them become the new rows; adapters are as they start. What has no counterpart there is
    left out, for the caller's check to name.
    """
    own = module.state_dict()
    head = module.model.get_output_embeddings()
    ends = {
        id(head.weight): "new_rows.head",
        id(getattr(head, "bias", None)): "new_rows.bias",
        id(
            module.model.get_input_embeddings().weight
        ): "new_rows.embedding",  # the last word where the head is tied
    }
    named = dict(module.named_parameters(remove_duplicate=False))
    found = {name: value for name, value in own.items() if ".lora_" in name}
    for name in own:
        value = weights.get(name.replace(".base_layer.", "."))
        if value is None:
            continue
        field = ends.get(id(named[name])) if name in named else None
        found[name] = value if field is None else value[:rows]
        if field in own:
            found[field] = value[rows:]
    return found


def merged(model: Any, vocabulary: VisualVocabulary, new_rows: NewRows | None) -> Any:
    """A copy of the model as plain Hugging Face has it: adapters added into the weights they adapt,
    new rows behind the old.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    plain = copy.deepcopy(model)
    for name, layer in [*plain.named_modules()]:
        if isinstance(layer, BaseTunerLayer):
            layer.merge()
            parent, _, last = name.rpartition(".")
            setattr(plain.get_submodule(parent), last, layer.get_base_layer())
    for parameter in plain.parameters():
        parameter.requires_grad_(True)
    if new_rows is None:
        return plain
    plain.resize_token_embeddings(vocabulary.total, mean_resizing=False)
    with torch.no_grad():
        plain.get_input_embeddings().weight[vocabulary.text :] = new_rows.embedding
        head = plain.get_output_embeddings()
        if new_rows.head is not None:
            head.weight[vocabulary.text :] = new_rows.head
        if new_rows.bias is not None:
            head.bias[vocabulary.text :] = new_rows.bias
    return plain


class AdapterDrift:
    """L_reg of a model with adapters: λ/2 Σ ‖W − W₀‖² with W − W₀ = s (BA − B₀A₀), from products of
    r × r only.

    ‖BA‖² is tr((BᵀB)(AAᵀ)), and its gradients are (BᵀB)A and B(AAᵀ): no matrix of the model's size
    is made. θ₀ is the backbone where B₀ = 0, as peft starts, and then costs nothing.

    Args:
        model: with adapters in it, as they are now.
        weight: λ, as `Drift`.
    """

    def __init__(self, model: nn.Module, weight: float):
        self.weight = weight
        found = adapters(model) if weight else []
        self.names = [name for name, *_ in found]
        self.factors = [(a, b, scale) for _, a, b, scale in found]
        self.start = [
            (a.detach().clone(), b.detach().clone()) if bool(b.any()) else None
            for a, b, _ in self.factors
        ]

    def _start_on(self, device: torch.device, k: int) -> tuple[Tensor, Tensor] | None:
        start = self.start[k]
        if start is not None and start[0].device != device:
            start = self.start[k] = (start[0].to(device), start[1].to(device))
        return start

    @torch.no_grad()
    def add_gradient(self) -> None:
        """Add the term's gradient to those of A and B. Call once an optimizer step."""
        for k, (a, b, scale) in enumerate(self.factors):
            if a.grad is None or b.grad is None:
                continue
            pull, start = self.weight * scale**2, self._start_on(a.device, k)
            to_a, to_b = (b.T @ b) @ a, b @ (a @ a.T)
            if start is not None:
                to_a, to_b = to_a - (b.T @ start[1]) @ start[0], to_b - start[1] @ (start[0] @ a.T)
            a.grad.add_(to_a, alpha=pull)
            b.grad.add_(to_b, alpha=pull)

    @torch.no_grad()
    def per_layer(self) -> dict[str, float]:
        """‖W − W₀‖ of each adapted matrix, by name."""
        lengths = {}
        for k, (name, (lora_a, lora_b, scale)) in enumerate(zip(self.names, self.factors)):
            a, b = lora_a.double(), lora_b.double()  # the terms may nearly cancel
            if (start := self._start_on(a.device, k)) is not None:
                a, b = torch.cat([a, start[0].double()]), torch.cat([b, -start[1].double()], 1)
            square = ((b.T @ b) * (a @ a.T)).sum()
            lengths[name] = scale * math.sqrt(max(float(square), 0.0))
        return lengths

    @torch.no_grad()
    def term(self, lengths: Mapping[str, float] | None = None) -> float:
        """The value of L_reg, from what `per_layer` has given."""
        return 0.5 * self.weight * sum(n**2 for n in (lengths or self.per_layer()).values())
