"""Keep the pretrained language: L_reg = λ/2 · ‖θ − θ₀‖² over the pretrained weights.

This is L2-SP (arXiv 1802.01483), the regularizer of MAViLT (arXiv 2502.05926). The term is never
part of the graph. Its gradient λ (θ − θ₀) is added once an optimizer step, after accumulation and
before clipping, which is exactly what autograd would give. Weights are processed in pieces that
stay in the cache, so the step needs no second copy of them.

Shape legend: r rank of an adapter.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from mavilt_pl.language.adapters import list_adapters
from mavilt_pl.parallel.distributed import all_reduce_sum

# 1 MB in float32, so a piece and its difference stay in the cache (0.85 % of a step and 1 MB more
# memory than without the term, benchmarks/README.md).
PIECE = 2**18  # weights at a time
# A GPU has no such cache, and thousands of small kernels would take longer than their work.
ACCELERATOR_PIECE = 2**26
# Names of layer lists in Llama and others (layers), GPT-2 and others (h), MPT and others (blocks).
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")
_EMBEDDING = re.compile(r"embed|wte|wpe")


def _local(tensor: Tensor) -> Tensor:
    """This rank's rows of a sharded tensor; any other tensor as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


class L2SPRegularizer:
    """Reference weights θ₀ and the gradient towards them.

    Args:
        model: a Hugging Face model whose current weights become θ₀.
        lambda_reg: λ; 0 keeps no reference and costs nothing. The term is a sum over weights, so
            its gradient on one weight does not depend on the model's size.
        num_text_rows: of embedding and head, only the first rows count: the new rows of the visual
            vocabulary have no pretrained value.
        dtype: bfloat16 is exact for models that were published so, else within 2⁻⁹ of each weight;
            float32 is exact.
        device: keep θ₀ on the weights' device, or in the host's memory, from where it is copied
            piece by piece.
    """

    def __init__(
        self,
        model: nn.Module,
        lambda_reg: float,
        num_text_rows: int,
        dtype: Literal["bfloat16", "float32"] = "bfloat16",
        device: Literal["device", "host"] = "device",
    ):
        if lambda_reg < 0:
            raise ValueError(f"lambda_reg must be 0 or more, found {lambda_reg}")
        self.lambda_reg, self.device, self.is_sharded = lambda_reg, device, False
        self.names: list[str] = []
        self.parameters: list[nn.Parameter] = []
        self.num_rows: list[int] = []  # rows of each parameter that count
        self.reference: list[Tensor] = []  # flat
        if lambda_reg == 0:
            return
        # By identity, since names of embedding and head differ between families, and a tied head is
        # the embedding itself.
        grown = {id(model.get_input_embeddings().weight)}
        head = model.get_output_embeddings()
        if head is not None:
            grown |= {id(parameter) for parameter in head.parameters()}
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            rows = num_text_rows if id(parameter) in grown else len(parameter)
            # `copy=True`: a weight of the same dtype would otherwise be its own reference, and the
            # term zero.
            reference = parameter.detach()[:rows].flatten().to(getattr(torch, dtype), copy=True)
            self.names.append(name)
            self.parameters.append(parameter)
            self.num_rows.append(rows)
            self.reference.append(reference.cpu() if device == "host" else reference)

    def shard(self, model: nn.Module, mesh: DeviceMesh) -> None:
        """Continue with weights that were sharded by rows: θ₀ becomes that of this rank's rows."""
        parameters = dict(model.named_parameters())
        rank, size = mesh.get_local_rank(), mesh.size()
        for index, name in enumerate(self.names):
            parameter = parameters[name]
            # FSDP2 shards by rows like torch.chunk: equal parts rounded up, so late ranks may have
            # fewer or none.
            rows_per_rank = -(-len(parameter) // size)
            width = parameter.numel() // len(parameter)
            first = min(rank * rows_per_rank, self.num_rows[index])
            # Rows of the visual vocabulary do not count, on whichever rank they are.
            last = min((rank + 1) * rows_per_rank, self.num_rows[index])
            self.parameters[index], self.num_rows[index] = parameter, last - first
            # A clone, so the whole reference can be freed.
            own_rows = slice(first * width, last * width)
            self.reference[index] = self.reference[index][own_rows].clone()
        self.is_sharded = True

    def _differences(self, index: int) -> Iterator[tuple[slice, Tensor]]:
        """θ − θ₀ of one parameter, float32, in pieces of its flat form."""
        own_rows = _local(self.parameters[index].detach())
        weights = own_rows[: self.num_rows[index]].flatten()
        # Lightning moves the module after construction, and θ₀ is no parameter or buffer that would
        # move along: buffers would be saved in each checkpoint.
        if self.device == "device":
            self.reference[index] = self.reference[index].to(weights.device)
        reference = self.reference[index]
        size = PIECE if weights.device.type == "cpu" else ACCELERATOR_PIECE
        for start in range(0, len(weights), size):
            piece = slice(start, start + size)
            # In float32: θ − θ₀ is small, and in bfloat16 it would be rounded to nothing.
            yield piece, weights[piece].float() - reference[piece].to(weights.device)

    @torch.no_grad()
    def add_gradient(self) -> None:
        """Add λ (θ − θ₀) to the gradients. Call once an optimizer step."""
        for index, parameter in enumerate(self.parameters):
            # No target of this step used it; autograd would leave it alone too.
            if parameter.grad is None:
                continue
            gradient = _local(parameter.grad)[: self.num_rows[index]].view(-1)
            for piece, difference in self._differences(index):
                gradient[piece].add_(difference, alpha=self.lambda_reg)

    @torch.no_grad()
    def distances(self) -> dict[str, float]:
        """‖θ − θ₀‖ of each parameter, by name."""
        if not self.names:
            return {}
        # One tensor for all parameters, so the host waits for the device once.
        squares = torch.stack([self._squared_distance(index) for index in range(len(self.names))])
        if self.is_sharded:
            squares = all_reduce_sum(squares)
        return dict(zip(self.names, squares.sqrt().tolist()))

    def _squared_distance(self, index: int) -> Tensor:
        pieces = [difference.square().sum() for _, difference in self._differences(index)]
        if not pieces:
            return torch.zeros((), device=_local(self.parameters[index]).device)
        return torch.stack(pieces).sum()

    def term(self, distances: Mapping[str, float]) -> float:
        """The value of L_reg, from `distances`."""
        return 0.5 * self.lambda_reg * sum(distance**2 for distance in distances.values())


class AdapterL2SPRegularizer:
    """L_reg of a model with adapters: λ/2 Σ ‖W − W₀‖² with W − W₀ = s (BA − B₀A₀).

    Only products of r × r are formed: ‖BA‖² is tr((BᵀB)(AAᵀ)), and its gradients are (BᵀB)A and
    B(AAᵀ). If θ₀ is the backbone, B₀ = 0 and the reference costs nothing.

    Args:
        model: with adapters, as they are now.
        lambda_reg: λ, as for `L2SPRegularizer`.
    """

    is_sharded = False

    def __init__(self, model: nn.Module, lambda_reg: float):
        self.lambda_reg = lambda_reg
        self.adapters = list_adapters(model) if lambda_reg else []
        self.start: list[tuple[Tensor, Tensor] | None] = []  # A₀ and B₀; None for B₀ = 0
        for adapter in self.adapters:
            start = None
            # B is zero unless an earlier stage trained the adapter.
            if bool(adapter.b.any()):
                start = adapter.a.detach().clone(), adapter.b.detach().clone()
            self.start.append(start)

    def _start_on(self, device: torch.device, index: int) -> tuple[Tensor, Tensor] | None:
        start = self.start[index]
        if start is not None and start[0].device != device:
            a0, b0 = start
            start = (a0.to(device), b0.to(device))
            self.start[index] = start
        return start

    @torch.no_grad()
    def add_gradient(self) -> None:
        """Add the term's gradient to those of A and B. Call once an optimizer step."""
        for index, (_, a, b, scale) in enumerate(self.adapters):
            if a.grad is None or b.grad is None:
                continue
            start = self._start_on(a.device, index)
            # Brackets matter: (BᵀB)A costs r² a column, Bᵀ(BA) would form the full matrix.
            grad_a = (b.T @ b) @ a
            grad_b = b @ (a @ a.T)
            if start is not None:
                a0, b0 = start
                grad_a = grad_a - (b.T @ b0) @ a0
                grad_b = grad_b - b0 @ (a0 @ a.T)
            # ‖s BA‖² = s² ‖BA‖²; the factor ½ of λ/2 cancels against the derivative's 2.
            factor = self.lambda_reg * scale**2
            a.grad.add_(grad_a, alpha=factor)
            b.grad.add_(grad_b, alpha=factor)

    @torch.no_grad()
    def distances(self) -> dict[str, float]:
        """‖W − W₀‖ of each adapted matrix, by name."""
        found = {}
        for index, adapter in enumerate(self.adapters):
            a, b = adapter.a.double(), adapter.b.double()  # the terms may nearly cancel
            start = self._start_on(a.device, index)
            if start is not None:
                # W − W₀ = s [B, −B₀] [A; A₀]
                a = torch.cat([a, start[0].double()])
                b = torch.cat([b, -start[1].double()], 1)
            square = ((b.T @ b) * (a @ a.T)).sum()
            # Rounding may leave a tiny negative square where nothing has moved yet.
            found[adapter.name] = adapter.scale * math.sqrt(max(float(square), 0.0))
        return found

    def term(self, distances: Mapping[str, float]) -> float:
        """The value of L_reg, from `distances`."""
        return 0.5 * self.lambda_reg * sum(distance**2 for distance in distances.values())


Regularizer = L2SPRegularizer | AdapterL2SPRegularizer


def group_distances(distances: Mapping[str, float]) -> dict[str, float]:
    """Distances by layer group: embedding, layer_00, layer_01, …, other.

    The distance of a group is the norm over all its parameters.

    >>> group_distances({"model.layers.0.a": 3.0, "model.layers.0.b": 4.0, "lm_head.weight": 1.0})
    {'layer_00': 5.0, 'other': 1.0}
    """
    squares: defaultdict[str, float] = defaultdict(float)
    for name, distance in distances.items():
        layer = _LAYER.search(name)
        if layer:
            group = f"layer_{int(layer[1]):02d}"
        elif _EMBEDDING.search(name):
            group = "embedding"
        else:
            group = "other"
        squares[group] += distance**2
    return {group: math.sqrt(square) for group, square in sorted(squares.items())}
