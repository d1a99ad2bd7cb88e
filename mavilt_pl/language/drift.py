"""Hold on to the pretrained language: L_reg = λ/2 · ‖θ − θ₀‖² over the pretrained weights (arXiv 2502.05926).

The term is never part of the graph. Its gradient λ (θ − θ₀) is added once an optimizer step, after accumulation and
before clipping, which is exactly what autograd would have given.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Drift:
    """Reference weights θ₀ and the pull towards them.

    Args:
        model: whose weights, as they are now, become θ₀.
        weight: λ. 0 keeps no reference and costs nothing. Default elsewhere: 0.01 (Transfer-Learning-Library,
            `delta.py`); a sum over weights, so its pull on one weight does not depend on the model's size.
        rows: of matrices with more rows than this that are embeddings or heads, the first `rows` count; the new rows
            of the visual vocabulary have no pretrained value to be held at.
    """

    def __init__(self, model: nn.Module, weight: float, rows: int):
        if weight < 0:
            raise ValueError(f"the drift weight must be 0 or more, found {weight}")
        self.weight = weight
        self.names: list[str] = []
        self.parameters: list[nn.Parameter] = []
        self.rows: list[int] = []
        self.reference: list[Tensor] = []
        if weight == 0:
            return
        grown = {id(model.get_input_embeddings().weight)}
        head = model.get_output_embeddings()
        if head is not None:
            grown |= {id(p) for p in head.parameters()}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                count = rows if id(parameter) in grown else len(parameter)
                self.names.append(name)
                self.parameters.append(parameter)
                self.rows.append(count)
                self.reference.append(parameter.detach()[:count].clone())

    def _away(self) -> list[Tensor]:
        now = [p.detach()[:n] for p, n in zip(self.parameters, self.rows)]
        for i, p in enumerate(now):
            if self.reference[i].device != p.device:
                self.reference[i] = self.reference[i].to(p.device)
        return list(torch._foreach_sub(now, self.reference))

    @torch.no_grad()
    def add_gradient(self) -> None:
        """Add λ (θ − θ₀) to the gradients. Call once an optimizer step."""
        if self.weight == 0:
            return
        away = self._away()
        pairs = [(p.grad[:n], a) for p, n, a in zip(self.parameters, self.rows, away) if p.grad is not None]
        torch._foreach_add_([g for g, _ in pairs], [a for _, a in pairs], alpha=self.weight)

    @torch.no_grad()
    def per_layer(self) -> dict[str, float]:
        """‖θ − θ₀‖ of each weight matrix, by name."""
        if self.weight == 0:
            return {}
        return {name: float(n) for name, n in zip(self.names, torch._foreach_norm(self._away()))}

    @torch.no_grad()
    def term(self) -> float:
        """The value of L_reg."""
        return 0.5 * self.weight * sum(n**2 for n in self.per_layer().values())
