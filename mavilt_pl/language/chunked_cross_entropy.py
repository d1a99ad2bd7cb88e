"""Cross-entropy of a linear head without its logits in memory.

The logits are computed chunk by chunk, and again for the gradient. torch's own
`F.linear_cross_entropy` (2.14) does the same for a head in one piece; here a head may consist of
the old rows and the new ones, so this stays our own.

Shape legend: M targets, C targets of a chunk, D width, V rows of the head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

# Measured with this size: 0.14 × the step's memory of full logits (benchmarks/README.md).
CHUNK = 2**22  # logits held at once on a CPU (16 MB)
# Small chunks leave a GPU idle between kernels, and 256 MB are little there.
ACCELERATOR_CHUNKS = 16  # times as many elsewhere
IGNORED = -100  # the target that `F.cross_entropy` ignores too


class HeadRows(NamedTuple):
    """Rows `start` to `stop` of a head's weight [·,D] and bias [·] (None: no bias).

    The whole weight is passed on, so its gradient is one tensor and not a slice's padded to full
    size.
    """

    weight: Tensor
    bias: Tensor | None
    start: int
    stop: int

    @property
    def size(self) -> int:
        """Number of rows."""
        return self.stop - self.start

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [..., rows] of hidden states [..., D]."""
        bias = None if self.bias is None else self.bias[self.start : self.stop]
        return F.linear(hidden, self.weight[self.start : self.stop], bias)


def head_logits(hidden: Tensor, head: Sequence[HeadRows]) -> Tensor:
    """Logits [..., V] of the parts of a head, concatenated."""
    parts = [rows.logits(hidden) for rows in head]
    # Concatenation copies, so the ordinary head of one part avoids it.
    return parts[0] if len(parts) == 1 else torch.cat(parts, -1)


def linear_cross_entropy(
    hidden_MD: Tensor, head: Sequence[HeadRows], target_M: Tensor, chunk: int | None = None
) -> Tensor:
    """Cross-entropy of each target, float32 nats [M]; 0 and no gradient for `IGNORED` targets.

    Equal to `F.cross_entropy(head_logits(hidden, head).float(), target, reduction="none")`, which
    it calls if at most `chunk` logits are needed (default: `CHUNK`).

    Args:
        hidden_MD: hidden states.
        head: parts of the head.
        target_M: int64 rows of the concatenated head.
        chunk: logits held at once.
    """
    device = hidden_MD.device.type
    limit = chunk or (CHUNK if device == "cpu" else ACCELERATOR_CHUNKS * CHUNK)
    num_rows = sum(rows.size for rows in head)
    # For few targets the plain kernel is faster: it does not compute the logits twice.
    if len(hidden_MD) * num_rows <= limit:
        logits_MV = head_logits(hidden_MD, head).float()
        return F.cross_entropy(logits_MV, target_M, ignore_index=IGNORED, reduction="none")
    if torch.is_autocast_enabled(device):
        # The chunks run outside autocast; cast what autocast would cast around a linear layer.
        dtype = torch.get_autocast_dtype(device)
        hidden_MD = hidden_MD.to(dtype)
        head = [_cast(rows, dtype) for rows in head]
    tensors: list[Tensor | None] = []
    for rows in head:
        tensors += [rows.weight, rows.bias]
    spans = [(rows.start, rows.stop) for rows in head]
    # At least one target a chunk, even if its logits alone exceed the limit.
    step = max(limit // num_rows, 1)
    return _ChunkedCrossEntropy.apply(hidden_MD, target_M, spans, step, *tensors)


def _cast(rows: HeadRows, dtype: torch.dtype) -> HeadRows:
    bias = None if rows.bias is None else rows.bias.to(dtype)
    return rows._replace(weight=rows.weight.to(dtype), bias=bias)


def _rebuild_head(
    spans: Sequence[tuple[int, int]], tensors: Sequence[Tensor | None]
) -> list[HeadRows]:
    """The head's parts from their flat tensors, a weight and a bias each."""
    head = []
    for index, (start, stop) in enumerate(spans):
        weight, bias = tensors[2 * index], tensors[2 * index + 1]
        head.append(HeadRows(weight, bias, start, stop))  # type: ignore[arg-type]
    return head


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Forward keeps the log-normaliser of each target; backward computes the logits again."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_MD: Tensor,
        target_M: Tensor,
        spans: list[tuple[int, int]],
        step: int,
        *tensors: Tensor | None,
    ) -> Tensor:
        normaliser_M = hidden_MD.new_empty(len(hidden_MD), dtype=torch.float32)
        losses_M = torch.empty_like(normaliser_M)
        head = _rebuild_head(spans, tensors)
        with torch.autocast(hidden_MD.device.type, enabled=False):
            for start in range(0, len(hidden_MD), step):
                part = slice(start, start + step)
                logits_CV = head_logits(hidden_MD[part], head).float()
                normaliser_M[part] = logits_CV.logsumexp(1)
                # `IGNORED` is negative and would be out of range; its loss is set to 0 below.
                target_C1 = target_M[part].clamp(min=0)[:, None]
                target_logit_C = logits_CV.gather(1, target_C1)[:, 0]
                losses_M[part] = normaliser_M[part] - target_logit_C
                del logits_CV  # before the next chunk's logits are computed
        # M numbers instead of M × V logits; softmax = exp(logit − normaliser) is formed again from
        # them.
        ctx.save_for_backward(hidden_MD, target_M, normaliser_M, *tensors)
        ctx.spans, ctx.step = spans, step
        return losses_M.masked_fill_(target_M == IGNORED, 0.0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_M: Tensor) -> tuple[Tensor | None, ...]:
        hidden_MD, target_M, normaliser_M, *tensors = ctx.saved_tensors
        gradient_M = gradient_M.masked_fill(target_M == IGNORED, 0.0)
        needs_grad = ctx.needs_input_grad
        grads: list[Tensor | None] = []
        for tensor, needed in zip(tensors, needs_grad[4:]):
            grads.append(torch.zeros_like(tensor) if needed else None)
        # Only the gradients that autograd asks for: with adapters the old rows of the head are
        # fixed.
        hidden_grad = torch.zeros_like(hidden_MD) if needs_grad[0] else None
        head = _rebuild_head(ctx.spans, tensors)
        with torch.autocast(hidden_MD.device.type, enabled=False):
            for start in range(0, len(hidden_MD), ctx.step):
                part = slice(start, start + ctx.step)
                # d loss / d logits = softmax − one-hot, times the incoming gradient.
                logits_CV = head_logits(hidden_MD[part], head).float()
                softmax_CV = logits_CV.sub_(normaliser_M[part, None]).exp_()
                target_C1 = target_M[part].clamp(min=0)[:, None]
                minus_one = softmax_CV.new_full((1, 1), -1.0).expand_as(target_C1)
                softmax_CV.scatter_add_(1, target_C1, minus_one)
                logits_grad_CV = softmax_CV.mul_(gradient_M[part, None]).to(hidden_MD.dtype)
                _add_gradients(head, logits_grad_CV, hidden_MD[part], hidden_grad, part, grads)
                del softmax_CV, logits_CV, logits_grad_CV
        return hidden_grad, None, None, None, *grads


def _add_gradients(
    head: Sequence[HeadRows],
    logits_grad_CV: Tensor,
    hidden_CD: Tensor,
    hidden_grad_MD: Tensor | None,
    part: slice,
    grads: Sequence[Tensor | None],
) -> None:
    """Add one chunk's share to the gradients of hidden states, weights and biases."""
    # Parts follow one another in the logits' columns, each from its own rows of its weight.
    column = 0
    for index, rows in enumerate(head):
        grad_CR = logits_grad_CV[:, column : column + rows.size]
        column += rows.size
        span = slice(rows.start, rows.stop)
        if hidden_grad_MD is not None:
            hidden_grad_MD[part].addmm_(grad_CR, rows.weight[span])
        # Two entries a part, in the order of `tensors`.
        weight_grad, bias_grad = grads[2 * index], grads[2 * index + 1]
        if weight_grad is not None:
            weight_grad[span].addmm_(grad_CR.T, hidden_CD)
        if bias_grad is not None:
            bias_grad[span] += grad_CR.sum(0)
