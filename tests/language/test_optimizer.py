"""Muon against a singular value decomposition, against torch's own, and through a checkpoint."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mavilt_pl.language.optim import Muon, orthogonalise
from mavilt_pl.trainer.lr_schedule import warm_cosine


@pytest.mark.parametrize("shape", [(3, 24, 24), (2, 40, 16), (2, 16, 40)])
def test_orthogonalised_keeps_the_directions_and_evens_the_lengths(
    shape: tuple[int, int, int],
) -> None:
    stack = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, size, vh = torch.linalg.svd(stack, full_matrices=False)
    inner = torch.diagonal(u.mT @ orthogonalise(stack) @ vh.mT, dim1=1, dim2=2)
    large = inner[
        size > 0.1 * size.amax(1, keepdim=True)
    ]  # five rounds do not lift what is next to nothing
    assert large.min() > 0.6
    assert inner.min() > 0
    assert inner.max() < 1.3


def steps(optimizer: torch.optim.Optimizer, model: nn.Module, count: int, start: int = 0) -> None:
    for n in range(start, start + count):
        inputs = torch.randn(32, 12, generator=torch.Generator().manual_seed(n))
        optimizer.zero_grad()
        (model(inputs) - inputs.flip(1)).square().mean().backward()
        optimizer.step()


def build() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 30), nn.GELU(), nn.Linear(30, 12))


def split(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    return [p for p in model.parameters() if p.ndim == 2], [
        p for p in model.parameters() if p.ndim < 2
    ]


def test_the_same_steps_as_torch_s_muon_and_adamw() -> None:
    """torch orthogonalises in bfloat16: the same to about a hundredth of the way that was gone."""
    ours, theirs = build(), build()
    matrices, others = split(ours)
    steps(
        Muon(matrices, others, matrix_learning_rate=0.02, learning_rate=1e-3, weight_decay=0.01),
        ours,
        8,
    )
    matrices, others = split(theirs)
    muon = torch.optim.Muon(
        matrices, lr=0.02, weight_decay=0.01, momentum=0.95, adjust_lr_fn="original"
    )
    adamw = torch.optim.AdamW(others, lr=1e-3, betas=(0.9, 0.95), weight_decay=0.01)

    class Both:
        def zero_grad(self) -> None:
            theirs.zero_grad()

        def step(self) -> None:
            muon.step(), adamw.step()

    steps(Both(), theirs, 8)  # type: ignore[arg-type]
    for begun, a, b in zip(build().parameters(), ours.parameters(), theirs.parameters()):
        assert (a - b).norm() < 0.1 * (b - begun).norm()


def test_a_loaded_state_goes_on_as_if_never_stopped() -> None:
    whole, first, second = build(), build(), build()
    steps(Muon(*split(whole)), whole, 6)
    optimizer = Muon(*split(first))
    steps(optimizer, first, 3)
    second.load_state_dict(first.state_dict())
    resumed = Muon(*split(second))
    resumed.load_state_dict(optimizer.state_dict())
    steps(resumed, second, 3, start=3)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), second.parameters()))


def test_the_schedule_warms_up_and_falls_to_a_hundredth_of_each_rate() -> None:
    optimizer = Muon(*split(build()), matrix_learning_rate=0.02, learning_rate=0.001)
    schedule = warm_cosine(optimizer, 10, 100)
    rates = []
    for _ in range(101):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    adamw, muon = zip(*rates)
    assert adamw[10] == pytest.approx(0.001)
    assert muon[10] == pytest.approx(0.02)
    assert adamw[0] < 0.0002
    assert adamw[100] == pytest.approx(0.00001)
    assert muon[100] == pytest.approx(0.0002)
    assert list(adamw[10:]) == sorted(adamw[10:], reverse=True)
