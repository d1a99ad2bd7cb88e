"""Optimizers: AdamW for pretrained models, Muon for models trained from little or nothing.

Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) steps along the orthogonalised momentum
of each weight matrix, so rare directions learn as fast as common ones. On the demo one of its steps
is worth two to three of AdamW's (EXPERIMENTS.md). torch.optim.Muon orthogonalises in bfloat16,
which is slow on a CPU, and takes matrices only; here embeddings, norms and head are AdamW's, in one
optimizer with one state and one schedule.

Shape legend: N matrices of one shape, R rows, C columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from lightning import LightningModule
from torch import Tensor, nn

from mavilt_pl.language.options import TuningOptions
from mavilt_pl.trainer.lr_schedule import warm_cosine

# β₂ of 0.95 instead of 0.999, as language models are trained (GPT-3, Llama): it forgets spikes
# sooner.
BETAS = (0.9, 0.95)
WEIGHT_DECAY = 0.01


def orthogonalise(stack_NRC: Tensor, rounds: int = 5) -> Tensor:
    """Matrices [N,R,C] with singular values near 1 (0.7 to 1.2).

    The quintic Newton-Schulz iteration with the coefficients of the Muon post.
    """
    # Chosen there for a steep slope at 0, not for convergence: values end near 1, not at 1.
    a, b, c = 3.4445, -4.7750, 2.0315
    is_tall = stack_NRC.shape[1] > stack_NRC.shape[2]
    x = stack_NRC.mT if is_tall else stack_NRC
    # The iteration needs a spectral norm of at most 1; the Frobenius norm bounds it.
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(rounds):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return x.mT if is_tall else x


class Muon(torch.optim.AdamW):
    """Muon for `matrices`, AdamW (0.9, 0.95) for `others`.

    Args:
        matrices: two-dimensional weights of the transformer.
        others: everything else that is trained.
        matrix_learning_rate: step of a matrix as a share of its spectral norm scale; 0.02 as
            published.
        learning_rate: of AdamW.
        momentum: Nesterov momentum; 0.95 as published.
        weight_decay: of both.
        fused: step AdamW's weights in one kernel.
    """

    def __init__(
        self,
        matrices: Iterable[nn.Parameter],
        others: Iterable[nn.Parameter],
        matrix_learning_rate: float = 0.02,
        learning_rate: float = 2e-3,
        momentum: float = 0.95,
        weight_decay: float = WEIGHT_DECAY,
        fused: bool = True,
    ):
        # AdamW first: schedulers and loaded states go by the order of groups.
        groups = [
            {"params": list(others), "lr": learning_rate, "momentum": None},
            {"params": list(matrices), "lr": matrix_learning_rate, "momentum": momentum},
        ]
        super().__init__(groups, learning_rate, betas=BETAS, weight_decay=weight_decay, fused=fused)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of both; returns the closure's loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        all_groups = self.param_groups
        try:
            # AdamW sees its own groups only.
            self.param_groups = [group for group in all_groups if group["momentum"] is None]
            super().step()
        finally:
            self.param_groups = all_groups
        for group in all_groups:
            if group["momentum"] is not None:
                self._step_matrices(group)
        return loss

    def _step_matrices(self, group: dict[str, Any]) -> None:
        # Matrices of one shape are orthogonalised together.
        by_shape: dict[torch.Size, list[nn.Parameter]] = {}
        for parameter in group["params"]:
            if parameter.grad is not None:
                by_shape.setdefault(parameter.shape, []).append(parameter)
        for shape, parameters in by_shape.items():
            directions = []
            for parameter in parameters:
                directions.append(self._nesterov_direction(parameter, group["momentum"]))
            # As in the Muon post: keeps the change of a layer's output alike for tall and wide
            # matrices.
            scale = max(1.0, shape[0] / shape[1]) ** 0.5
            steps = orthogonalise(torch.stack(directions).float()) * scale
            for parameter, step in zip(parameters, steps):
                # Decoupled weight decay, as AdamW's.
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(step.to(parameter.dtype), alpha=-group["lr"])

    def _nesterov_direction(self, parameter: nn.Parameter, momentum: float) -> Tensor:
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
            state["step"] = torch.zeros(())  # AdamW looks for it when a state is loaded
        state["momentum"].mul_(momentum).add_(parameter.grad)
        return parameter.grad + momentum * state["momentum"]


def configure_optimizer(
    module: LightningModule, transformer: nn.Module, tuning: TuningOptions
) -> dict[str, Any]:
    """The value of `configure_optimizers`: optimizer and schedule for all trained parameters.

    Linear warm-up, then a cosine down to a hundredth over the trainer's steps.

    Args:
        module: whose parameters are trained; attached to a trainer.
        transformer: the body without its head; its matrices are Muon's, its embeddings are not.
        tuning: optimizer, learning rates and warm-up.
    """
    # Frozen weights would take optimizer memory, and decay would move them.
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer: torch.optim.Optimizer
    if tuning.optimizer == "adamw":
        optimizer = torch.optim.AdamW(
            trained,
            lr=tuning.learning_rate,
            betas=BETAS,
            weight_decay=WEIGHT_DECAY,
            fused=_may_fuse(module),
        )
    else:
        matrices = _trained_matrices(transformer)
        ids = {id(matrix) for matrix in matrices}
        others = [parameter for parameter in trained if id(parameter) not in ids]
        rates = (tuning.matrix_learning_rate, tuning.learning_rate)
        optimizer = Muon(matrices, others, *rates, fused=_may_fuse(module))
    # Lightning's count of optimizer steps, accumulation and epochs included.
    steps = int(module.trainer.estimated_stepping_batches)
    schedule = warm_cosine(optimizer, tuning.warmup_steps, steps)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def _may_fuse(module: LightningModule) -> bool:
    """Whether the optimizer may step all weights in one kernel."""
    # With 16-mixed it would unscale the gradients itself, after Lightning has clipped them.
    return module.trainer.precision != "16-mixed"


def _trained_matrices(transformer: nn.Module) -> list[nn.Parameter]:
    """Trained two-dimensional weights that are no embeddings."""
    embeddings = set()
    for part in transformer.modules():
        if isinstance(part, nn.Embedding):
            embeddings |= {id(parameter) for parameter in part.parameters()}
    matrices = []
    for parameter in transformer.parameters():
        if parameter.ndim == 2 and parameter.requires_grad and id(parameter) not in embeddings:
            matrices.append(parameter)
    return matrices
