"""Optimizers of the language models: AdamW for pretrained ones, Muon for those that are trained
from little or nothing.

Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) steps along the orthogonalised momentum
of each weight matrix, so that rare directions learn as fast as common ones. On the demo a step of
it teaches as much as two to three of AdamW (EXPERIMENTS.md). torch.optim.Muon orthogonalises in
bfloat16, which a CPU does not do in useful time, and takes matrices only; here embeddings, norms
and head are AdamW's, in one optimizer with one state and one schedule.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from lightning import LightningModule
from torch import Tensor, nn

from mavilt_pl.trainer.lr_schedule import warm_cosine

Kind = Literal["adamw", "muon"]
BETAS, DECAY = (0.9, 0.95), 0.01


def orthogonalised(stack_NRC: Tensor, rounds: int = 5) -> Tensor:
    """Matrices [N,R,C] with their singular values drawn to about 1 (0.7 to 1.2), by the quintic
    Newton-Schulz iteration with the coefficients of the Muon post.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = stack_NRC.shape[1] > stack_NRC.shape[2]
    x = stack_NRC.mT if tall else stack_NRC
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(rounds):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return x.mT if tall else x


class Muon(torch.optim.AdamW):
    """Muon for `matrices`, AdamW (0.9, 0.95) for `others`.

    Args:
        matrices: two-dimensional weights within the transformer.
        others: everything else that is trained.
        matrix_rate: how far a matrix moves in a step, as a share of its spectral norm scale; 0.02
            as published.
        rate: AdamW's.
        momentum: Nesterov's; 0.95 as published.
    """

    def __init__(
        self,
        matrices: Iterable[nn.Parameter],
        others: Iterable[nn.Parameter],
        matrix_rate: float = 0.02,
        rate: float = 2e-3,
        momentum: float = 0.95,
        weight_decay: float = DECAY,
    ):
        groups = [
            {"params": list(others), "lr": rate, "momentum": None},
            {"params": list(matrices), "lr": matrix_rate, "momentum": momentum},
        ]
        super().__init__(groups, rate, betas=BETAS, weight_decay=weight_decay, foreach=True)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        every = self.param_groups
        try:
            self.param_groups = [group for group in every if group["momentum"] is None]
            super().step()
        finally:
            self.param_groups = every
        for group in every:
            if group["momentum"] is not None:
                self._matrices(group)
        return loss

    def _matrices(self, group: dict[str, Any]) -> None:
        same: dict[torch.Size, list[nn.Parameter]] = {}
        for parameter in group["params"]:
            if parameter.grad is not None:
                same.setdefault(parameter.shape, []).append(parameter)
        for shape, parameters in same.items():
            heading = []
            for parameter in parameters:
                state = self.state[parameter]
                if not state:
                    state["momentum"] = torch.zeros_like(parameter)
                    state["step"] = torch.zeros(())  # AdamW looks for it when a state is loaded
                momentum = state["momentum"]
                momentum.mul_(group["momentum"]).add_(parameter.grad)
                heading.append(parameter.grad + group["momentum"] * momentum)
            moves = (
                orthogonalised(torch.stack(heading).float()) * max(1.0, shape[0] / shape[1]) ** 0.5
            )
            for parameter, move in zip(parameters, moves):
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(move.to(parameter.dtype), alpha=-group["lr"])


def configured(
    module: LightningModule,
    transformer: nn.Module,
    kind: Kind,
    rate: float,
    matrix_rate: float,
    warmup: int,
) -> dict[str, Any]:
    """What `configure_optimizers` gives: the optimizer of `kind` over all that is trained in
    `module`, with linear warm-up and a cosine down to a hundredth over the trainer's steps. Muon's
    matrices are those of `transformer`, the body without embeddings and head.
    """
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer: torch.optim.Optimizer
    if kind == "adamw":
        optimizer = torch.optim.AdamW(
            trained, lr=rate, betas=BETAS, weight_decay=DECAY, foreach=True
        )
    else:
        embedding = {
            id(p)
            for m in transformer.modules()
            if isinstance(m, nn.Embedding)
            for p in m.parameters()
        }
        matrices = [
            p
            for p in transformer.parameters()
            if p.ndim == 2 and p.requires_grad and id(p) not in embedding
        ]
        chosen = {id(parameter) for parameter in matrices}
        optimizer = Muon(matrices, [p for p in trained if id(p) not in chosen], matrix_rate, rate)
    schedule = warm_cosine(optimizer, warmup, int(module.trainer.estimated_stepping_batches))
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
