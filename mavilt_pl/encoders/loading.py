"""Load a frozen encoder: what the tokenizer's clinical terms and the Fréchet distance look through.

Every encoder takes pixels [B,1,H,W] in [-1, 1] of any size and converts them to its own range and
size. Encoders are not trained here and nothing is downloaded: weights come from a local file.

Shape legend: B batch, C channels, H W height and width in pixels, h w feature map, F findings.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Protocol

from torch import Tensor

from mavilt_pl.encoders.findings import Classifier
from mavilt_pl.encoders.huggingface import HuggingFace
from mavilt_pl.encoders.torchxrayvision import TorchXRayVision

Kind = Literal["classifier", "torchxrayvision", "huggingface"]


class Encoder(Protocol):
    """What the rest of the package may use of an encoder.

    `findings` are the names of its outputs, empty if it has none for findings; `width` is the
    number of pooled features.
    """

    findings: tuple[str, ...]
    width: int

    def maps(self, pixels_BCHW: Tensor) -> list[Tensor]:
        """Feature maps [B,C,h,w], from fine to coarse."""

    def features(self, maps: list[Tensor]) -> Tensor:
        """Pooled features [B,width] of the last map."""

    def logits(self, maps: list[Tensor]) -> Tensor:
        """Logits of the findings [B,F] from the last map."""


def load_encoder(
    path: str | Path, kind: Kind = "classifier"
) -> Classifier | TorchXRayVision | HuggingFace:
    """A frozen encoder in evaluation mode.

    Gradients flow through it to the pixels, and not into its weights.

    Args:
        path: a local file, or a folder for `huggingface`.
        kind: classifier | torchxrayvision | huggingface.

    Raises:
        UserError: the file is missing, damaged, or of another network.
    """
    # mypy would want the three classes' common base; what counts is the protocol above.
    encoder: Any
    # By its kind and not by its file: two kinds may have files of the same ending.
    if kind == "classifier":
        encoder = Classifier.from_checkpoint(path)
    elif kind == "torchxrayvision":
        encoder = TorchXRayVision(path)
    else:
        encoder = HuggingFace(path)
    # Evaluation mode matters: batch norm in training mode would make a loss depend on the batch.
    return encoder.eval().requires_grad_(False)
