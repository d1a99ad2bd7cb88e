"""Cross-entropy of a linear head without its logits in memory: they are made chunk by chunk, and
again for the gradient.

Shape legend: M targets, D width, V words of the head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK = 2**22  # logits held at once on a CPU (16 MB); sixteen times as many elsewhere
IGNORED = -100  # what `F.cross_entropy` ignores too


class Rows(NamedTuple):
    """Rows `first` to `last` of a head's weight [·,D] and bias [·] (None: no bias). The whole
    weight is passed on, so that its gradient is one tensor and not a slice's, padded to full size.
    """

    weight: Tensor
    bias: Tensor | None
    first: int
    last: int

    def logits(self, hidden: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias[self.first : self.last]
        return F.linear(hidden, self.weight[self.first : self.last], bias)


def head_logits(hidden: Tensor, head: Sequence[Rows]) -> Tensor:
    """Logits [..., V] of the parts of a head, side by side."""
    parts = [rows.logits(hidden) for rows in head]
    return parts[0] if len(parts) == 1 else torch.cat(parts, -1)


def linear_cross_entropy(
    hidden_MD: Tensor, head: Sequence[Rows], target_M: Tensor, chunk: int | None = None
) -> Tensor:
    """Cross-entropy of each target, float32 nats [M]; 0, and no gradient, where the target is
    `IGNORED`.

    As `F.cross_entropy(head_logits(hidden, head).float(), target, reduction="none")`, which it is
    where at most `chunk` logits (default: `CHUNK`) are needed. Where there are more, so many are
    held at a time, and the gradient makes them again. torch's own `F.linear_cross_entropy` (2.14)
    does the same, for a head in one piece.
    """
    limit = chunk or (CHUNK if hidden_MD.device.type == "cpu" else 16 * CHUNK)
    words = sum(rows.last - rows.first for rows in head)
    if len(hidden_MD) * words <= limit:
        return F.cross_entropy(
            head_logits(hidden_MD, head).float(), target_M, ignore_index=IGNORED, reduction="none"
        )
    kind = hidden_MD.device.type
    if torch.is_autocast_enabled(kind):  # what autocast does around a linear layer
        dtype = torch.get_autocast_dtype(kind)
        hidden_MD = hidden_MD.to(dtype)
        head = [
            r._replace(weight=r.weight.to(dtype), bias=None if r.bias is None else r.bias.to(dtype))
            for r in head
        ]
    tensors = [tensor for rows in head for tensor in (rows.weight, rows.bias)]
    spans = [(rows.first, rows.last) for rows in head]
    return _Chunked.apply(hidden_MD, target_M, spans, max(limit // words, 1), *tensors)


def _head(spans: Sequence[tuple[int, int]], tensors: Sequence[Tensor | None]) -> list[Rows]:
    pairs = zip(tensors[::2], tensors[1::2], spans)
    return [Rows(weight, bias, first, last) for weight, bias, (first, last) in pairs]  # type: ignore[arg-type]


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        hidden_MD: Tensor,
        target_M: Tensor,
        spans: list[tuple[int, int]],
        step: int,
        *tensors: Tensor | None,
    ) -> Tensor:
        normaliser_M = hidden_MD.new_empty(len(hidden_MD), dtype=torch.float32)
        losses_M = torch.empty_like(normaliser_M)
        with torch.autocast(hidden_MD.device.type, enabled=False):
            for at in range(0, len(hidden_MD), step):
                part = slice(at, at + step)
                logits_CV = head_logits(hidden_MD[part], _head(spans, tensors)).float()
                normaliser_M[part] = logits_CV.logsumexp(1)
                said_C = logits_CV.gather(1, target_M[part].clamp(min=0)[:, None])[:, 0]
                losses_M[part] = normaliser_M[part] - said_C
                del logits_CV  # before the next chunk's are made
        ctx.save_for_backward(hidden_MD, target_M, normaliser_M, *tensors)
        ctx.spans, ctx.step = spans, step
        return losses_M.masked_fill_(target_M == IGNORED, 0.0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_M: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        hidden_MD, target_M, normaliser_M, *tensors = ctx.saved_tensors
        gradient_M = gradient_M.masked_fill(target_M == IGNORED, 0.0)
        wanted = ctx.needs_input_grad
        grads = [torch.zeros_like(t) if w else None for t, w in zip(tensors, wanted[4:])]
        hidden_grad = torch.zeros_like(hidden_MD) if wanted[0] else None
        head = _head(ctx.spans, tensors)
        with torch.autocast(hidden_MD.device.type, enabled=False):
            for at in range(0, len(hidden_MD), ctx.step):
                part = slice(at, at + ctx.step)
                hidden_CD = hidden_MD[part]
                chance_CV = (
                    head_logits(hidden_CD, head).float().sub_(normaliser_M[part, None]).exp_()
                )
                right = target_M[part].clamp(min=0)[:, None]
                chance_CV.scatter_add_(1, right, chance_CV.new_full((1, 1), -1.0).expand_as(right))
                back_CV = chance_CV.mul_(gradient_M[part, None]).to(hidden_MD.dtype)
                start = 0
                for k, rows in enumerate(head):
                    mine = back_CV[:, start : start + rows.last - rows.first]
                    start += rows.last - rows.first
                    if hidden_grad is not None:
                        hidden_grad[part].addmm_(mine, rows.weight[rows.first : rows.last])
                    if (weight_grad := grads[2 * k]) is not None:
                        weight_grad[rows.first : rows.last].addmm_(mine.T, hidden_CD)
                    if (bias_grad := grads[2 * k + 1]) is not None:
                        bias_grad[rows.first : rows.last] += mine.sum(0)
                del chance_CV, back_CV, mine
        return hidden_grad, None, None, None, *grads
