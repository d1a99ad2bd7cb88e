"""Memory of one GPU in a training, by what it is for.

The peak is the largest of three moments. At the end of a forward pass there are weights, optimizer
states, θ₀, activations and logits; gradients only if an earlier pass of the step has left them. At
the optimizer's step there are gradients, one scratch copy of them, and no activations. In between,
gradients grow while activations are freed. The third moment is a validation under FSDP2.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Precision = Literal["32-true", "bf16-mixed"]
Strategy = Literal["ddp", "fsdp"]

# Bytes of a weight, a gradient or one of AdamW's two moments. Under bf16-mixed they stay float32:
# only the products run in bfloat16.
FLOAT32 = 4


@dataclass(frozen=True)
class Hardware:
    """What a training runs on.

    Args:
        strategy: `ddp` keeps everything on each GPU; `fsdp` (FSDP2) shards weights, gradients and
            optimizer states over the GPUs.
        gpus: of all nodes together.
        precision: as `trainer.precision`.
        device: logits are computed in smaller chunks on a `cpu`.
    """

    strategy: Strategy = "ddp"
    gpus: int = 1
    precision: Precision = "bf16-mixed"
    device: Literal["cpu", "gpu"] = "gpu"

    @property
    def shards(self) -> int:
        """Number of parts that weights and their states are divided into."""
        # FSDP2 shards over all nodes, not within one.
        return self.gpus if self.strategy == "fsdp" else 1

    @property
    def matmul_bytes(self) -> int:
        """Bytes of a number that a matrix product returns, under autocast or without."""
        # Both half precisions take two bytes.
        return FLOAT32 if self.precision == "32-true" else 2

    def bucket_bytes(self, trained: int) -> int:
        """Bytes of the copies of the gradients that DDP sends to the other GPUs.

        >>> Hardware(gpus=8).bucket_bytes(100), Hardware(gpus=1).bucket_bytes(100)
        (400, 0)
        """
        # DDP reduces gradients in buckets of float32 while the backward pass still runs.
        return FLOAT32 * trained if self.strategy == "ddp" and self.gpus > 1 else 0


@dataclass
class Memory:
    """Bytes of one GPU.

    Args:
        parameters: number of weights, not bytes.
        trained: number of weights that are trained, not bytes.
        weights: bytes of the weights.
        gradients: bytes of the gradients, with DDP's copies.
        optimizer: bytes of the optimizer's states.
        reference: bytes of θ₀, the weights that regularization pulls towards.
        scratch: what the optimizer's step allocates in addition.
        gathered: under FSDP2, the whole weights of the layers that are computed at the moment.
        activations: tensors saved for the backward pass, of the largest pass of a step.
        logits: of the loss, with the gradient of the head.
        whole: under FSDP2, the unsharded weights that a validation holds.
        following: of the second largest pass, what is saved for the backward pass, and the
            gradients that the largest one has left.
        details: lengths and settings that the numbers follow from.
    """

    parameters: int
    trained: int
    weights: int
    gradients: int
    optimizer: int
    reference: int
    scratch: int
    gathered: int
    activations: int
    logits: int
    whole: int = 0
    following: int = 0
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def forward(self) -> int:
        """Bytes at the end of the forward pass that needs most."""
        # Gradients of the step before are freed by then (`zero_grad` sets them to None).
        persistent = self.weights + self.optimizer + self.reference
        held = max(self.activations, self.following)
        return persistent + self.gathered + held + self.logits

    @property
    def step(self) -> int:
        """Bytes at the optimizer's step."""
        # The activations are freed by then, each by the backward pass of its layer.
        return self.weights + self.optimizer + self.reference + self.gradients + self.scratch

    @property
    def validation(self) -> int:
        """Bytes in a validation, without its activations, which are not kept."""
        # Nothing of the training is freed for it.
        return self.weights + self.optimizer + self.reference + self.whole

    @property
    def peak(self) -> int:
        """Bytes at the largest of the three moments."""
        # Which one it is depends on the batch: activations against gradients.
        return max(self.forward, self.step, self.validation)

    def as_dict(self) -> dict[str, Any]:
        """All parts and moments, for JSON."""
        return {
            **asdict(self),
            "forward": self.forward,
            "step": self.step,
            "validation": self.validation,
            "peak": self.peak,
        }
