"""The chunked loss against `F.cross_entropy` on logits that are all there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from stages import build_stage, pack_batch, task_losses
from torch import Tensor

from mavilt_pl.language import Stage1, chunked_cross_entropy
from mavilt_pl.language.chunked_cross_entropy import IGNORED, HeadRows, linear_cross_entropy

M, D, V = 37, 16, 101


def tensors(*shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize(
    "chunk", [V, 4 * V + 5, 36 * V, 10**9]
)  # a row at a time, four, all but one, everything
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("span", [(0, V), (7, 90)])
def test_loss_and_gradients_are_those_of_whole_logits(
    chunk: int, bias: bool, span: tuple[int, int]
) -> None:
    """To 1e-5, with a weight for each target and some ignored."""
    hidden, weight, b = tensors((M, D), (V, D), (V,))
    first, last = span
    target = torch.randint(last - first, (M,), generator=torch.Generator().manual_seed(1))
    target[[3, 20, 36]] = IGNORED
    share = torch.rand(M, generator=torch.Generator().manual_seed(2))
    learned = [hidden, weight, *([b] if bias else [])]
    logits = F.linear(hidden, weight[first:last], b[first:last] if bias else None)
    wanted = F.cross_entropy(logits, target, reduction="none")
    gradients = torch.autograd.grad((wanted * share).sum(), learned)
    found = linear_cross_entropy(
        hidden, [HeadRows(weight, b if bias else None, first, last)], target, chunk
    )
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    assert found[[3, 20, 36]].tolist() == [0, 0, 0]
    for a, c in zip(torch.autograd.grad((found * share).sum(), learned), gradients):
        torch.testing.assert_close(a, c, atol=1e-5, rtol=1e-5)


def test_a_head_in_two_parts_is_that_of_both_together() -> None:
    hidden, fixed, new, b = tensors((M, D), (V, D), (30, D), (30,))
    fixed = fixed.detach()
    target = torch.randint(V + 1, (M,), generator=torch.Generator().manual_seed(1))
    logits = torch.cat([F.linear(hidden, fixed), F.linear(hidden, new[:1], b[:1])], 1)
    wanted = F.cross_entropy(logits, target, reduction="none")
    found = linear_cross_entropy(
        hidden, [HeadRows(fixed, None, 0, V), HeadRows(new, b, 0, 1)], target, chunk=5 * V
    )
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    grads = [torch.autograd.grad(x.square().mean(), [hidden, new, b]) for x in (found, wanted)]
    for a, c in zip(*grads):
        torch.testing.assert_close(a, c, atol=1e-5, rtol=1e-5)


def test_under_autocast_it_is_what_a_linear_layer_would_give() -> None:
    hidden, weight = tensors((M, D), (V, D))
    target = torch.randint(V, (M,), generator=torch.Generator().manual_seed(1))
    with torch.autocast("cpu", torch.bfloat16):
        wanted = F.cross_entropy(F.linear(hidden, weight).float(), target)
        found = linear_cross_entropy(
            hidden, [HeadRows(weight, None, 0, V)], target, chunk=5 * V
        ).mean()
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    grads = [torch.autograd.grad(x, [hidden, weight]) for x in (found, wanted)]
    for a, c in zip(*grads):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a, c, atol=2e-4, rtol=2e-2)  # bfloat16 has eight bits


@pytest.mark.parametrize("tuning", ["full", "new_rows"])
def test_a_module_s_step_is_the_same_chunk_by_chunk(
    any_backbone: Path, tokens: Path, tuning: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole of Stage 1's loss and gradients, tied heads included, where a chunk is three
    targets.
    """
    module = build_stage(
        any_backbone, tokens, Stage1, method=tuning, max_text_tokens=12, condition_dropout=0.0
    )  # type: ignore[arg-type]
    studies = [{"text": text, "study": text} for text in ("No effusion.", "The heart is enlarged.")]
    codes = torch.arange(18).view(2, 9)
    results = []
    for chunk in (chunked_cross_entropy.CHUNK, 3 * 330):
        monkeypatch.setattr(chunked_cross_entropy, "CHUNK", chunk)
        module.zero_grad()
        packed = pack_batch(module, {"codes": codes, "studies": studies})
        total = torch.stack([*task_losses(module, packed).values()]).sum()
        total.backward()
        results.append(
            [total.detach(), *(p.grad.clone() for p in module.parameters() if p.grad is not None)]
        )
    assert len(results[0]) == len(results[1])
    for a, b in zip(*results):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
