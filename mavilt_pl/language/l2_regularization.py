"""Hold on to the pretrained language: L_reg = λ/2 · ‖θ − θ₀‖² over the pretrained weights (arXiv
2502.05926).

The term is never part of the graph. Its gradient λ (θ − θ₀) is added once an optimizer step, after
accumulation and before clipping, which is exactly what autograd would have given. It is walked
through in pieces that stay in the cache, so that the step needs no second copy of the weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from mavilt_pl.parallel.distributed import all_reduce_sum

Keep = Literal["bfloat16", "float32"]
Place = Literal["device", "host"]
PIECE = 2**18  # weights at a time


def _own(tensor: Tensor) -> Tensor:
    """This rank's rows of a tensor in shards; any other as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


class Drift:
    """Reference weights θ₀ and the pull towards them.

    Args:
        model: whose weights, as they are now, become θ₀.
        weight: λ. 0 keeps no reference and costs nothing. Default elsewhere: 0.01
            (Transfer-Learning-Library, `delta.py`); a sum over weights, so its pull on one weight
            does not depend on the model's size.
        rows: of matrices with more rows than this that are embeddings or heads, the first `rows`
            count; the new rows of the visual vocabulary have no pretrained value to be held at.
        keep: θ₀ as bfloat16, 2 bytes a weight: exact for models that were published so, else within
            2⁻⁹ of each weight; or as float32, exact, 4 bytes.
        place: θ₀ beside the weights on their device, or in the host's memory, from where it is
            copied piece by piece.
    """

    def __init__(
        self,
        model: nn.Module,
        weight: float,
        rows: int,
        keep: Keep = "bfloat16",
        place: Place = "device",
    ):
        if weight < 0:
            raise ValueError(f"the drift weight must be 0 or more, found {weight}")
        self.weight, self.place, self.in_shards = weight, place, False
        self.names: list[str] = []
        self.parameters: list[nn.Parameter] = []
        self.rows: list[int] = []
        self.reference: list[Tensor] = []  # flat
        if weight == 0:
            return
        grown = {id(model.get_input_embeddings().weight)}
        head = model.get_output_embeddings()
        if head is not None:
            grown |= {id(p) for p in head.parameters()}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                count = rows if id(parameter) in grown else len(parameter)
                reference = parameter.detach()[:count].flatten().to(getattr(torch, keep), copy=True)
                self.names.append(name)
                self.parameters.append(parameter)
                self.rows.append(count)
                self.reference.append(reference.cpu() if place == "host" else reference)

    def shard(self, model: nn.Module, mesh: DeviceMesh) -> None:
        """Go on with the model's weights after they were sharded by rows: θ₀ becomes that of this
        rank's rows.
        """
        now, rank, size = dict(model.named_parameters()), mesh.get_local_rank(), mesh.size()
        for index, name in enumerate(self.names):
            whole = now[name]
            each, width = -(-len(whole) // size), whole.numel() // len(whole)
            first, last = (min(edge * each, self.rows[index]) for edge in (rank, rank + 1))
            self.parameters[index], self.rows[index] = whole, last - first
            self.reference[index] = self.reference[index][first * width : last * width].clone()
        self.in_shards = True

    def _away(self, index: int) -> Iterator[tuple[slice, Tensor]]:
        """θ − θ₀ of one weight, float32, piece by piece of its flat form."""
        now = _own(self.parameters[index].detach())[: self.rows[index]].flatten()
        if self.place == "device":
            self.reference[index] = self.reference[index].to(now.device)
        for start in range(0, len(now), PIECE):
            piece = slice(start, start + PIECE)
            yield piece, now[piece].float() - self.reference[index][piece].to(now.device)

    @torch.no_grad()
    def add_gradient(self) -> None:
        """Add λ (θ − θ₀) to the gradients. Call once an optimizer step."""
        for index, (parameter, count) in enumerate(zip(self.parameters, self.rows)):
            if parameter.grad is not None:
                gradient = _own(parameter.grad)[:count].view(-1)
                for piece, away in self._away(index):
                    gradient[piece].add_(away, alpha=self.weight)

    @torch.no_grad()
    def per_layer(self) -> dict[str, float]:
        """‖θ − θ₀‖ of each weight matrix, by name."""
        if not self.names:
            return {}
        squares = torch.stack([self._square(index) for index in range(len(self.names))])
        lengths = (all_reduce_sum(squares) if self.in_shards else squares).sqrt()
        return dict(zip(self.names, lengths.tolist()))

    def _square(self, index: int) -> Tensor:
        pieces = [away.square().sum() for _, away in self._away(index)]
        return (
            torch.stack(pieces).sum()
            if pieces
            else torch.zeros((), device=_own(self.parameters[index]).device)
        )

    @torch.no_grad()
    def term(self, lengths: Mapping[str, float] | None = None) -> float:
        """The value of L_reg, from what `per_layer` has given."""
        return 0.5 * self.weight * sum(n**2 for n in (lengths or self.per_layer()).values())
