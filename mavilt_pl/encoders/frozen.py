"""Frozen encoders behind one interface: what the tokenizer's clinical terms and the Fréchet distance look through.

Every encoder takes pixels [B,1,H,W] in [-1, 1] of any size and minds its own input range and size. None is trained
here and none is downloaded: weights come from a local file.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mavilt_pl.data.study import DataError
from mavilt_pl.encoders.classifier import FindingsNet

Kind = Literal["classifier", "torchxrayvision", "huggingface"]


class Encoder(Protocol):
    """What the rest may ask of an encoder. `findings` is empty where it has no outputs for findings."""

    findings: tuple[str, ...]
    width: int

    def maps(self, pixels_BCHW: Tensor) -> list[Tensor]:
        """Feature maps [B,C,h,w], from fine to coarse."""

    def features(self, pixels_BCHW: Tensor) -> Tensor:
        """Pooled features [B, width]."""

    def logits(self, maps: list[Tensor]) -> Tensor:
        """Logits of the findings [B,F] from the last of its maps."""


class Classifier(nn.Module):
    """Our own classifier, with the size of the pixels that it was trained on."""

    def __init__(self, findings: Sequence[str], image_size: int, widths: Sequence[int]):
        super().__init__()
        self.net = FindingsNet(findings, widths)
        self.size = image_size
        self.findings, self.width, self.widths = self.net.findings, self.net.width, [*widths]

    @classmethod
    def from_checkpoint(cls, path: str | Path) -> Classifier:
        """From a checkpoint of `CXRClassifier`."""
        checkpoint = load_checkpoint(path, "net.head.weight", "CXRClassifier (mavilt fit --config encoder.yaml)")
        h = checkpoint["hyper_parameters"]
        made = cls(h["findings"], int(h["image_size"]), h["widths"])
        made.net.load_state_dict({k[4:]: v for k, v in checkpoint["state_dict"].items() if k.startswith("net.")})
        return made

    @property
    def shape(self) -> dict[str, Any]:
        """Arguments that build it again."""
        return {"findings": [*self.findings], "image_size": self.size, "widths": self.widths}

    def _sized(self, pixels_BCHW: Tensor) -> Tensor:
        if pixels_BCHW.shape[-1] == self.size:
            return pixels_BCHW
        return F.interpolate(pixels_BCHW, size=(self.size, self.size), mode="bilinear", antialias=True)

    def maps(self, pixels_BCHW: Tensor) -> list[Tensor]:
        return self.net.maps(self._sized(pixels_BCHW))

    def features(self, pixels_BCHW: Tensor) -> Tensor:
        return self.net.features(self._sized(pixels_BCHW))

    def logits(self, maps: list[Tensor]) -> Tensor:
        return self.net.head(self.net.pool(maps[-1]))

    def last_level(self, map_BCHW: Tensor) -> Tensor:
        """The last map from the one before it."""
        return self.net.levels[-1](map_BCHW)


class TorchXRayVision(nn.Module):
    """A DenseNet-121 of torchxrayvision from a local state dict. It wants [-1024, 1024] and 224² (torchxrayvision's
    `utils.normalize`); both are seen to here."""

    def __init__(self, path: str | Path):
        super().__init__()
        import torchxrayvision as xrv

        state = torch.load(_existing(path), map_location="cpu", weights_only=True)
        self.net = xrv.models.DenseNet(num_classes=len(state["classifier.bias"]), in_channels=1)
        self.net.load_state_dict(state, strict=False)
        names = xrv.datasets.default_pathologies
        self.findings = tuple(name.lower() for name in names) if len(names) == len(state["classifier.bias"]) else ()
        self.width = self.net.classifier.in_features

    def maps(self, pixels_BCHW: Tensor) -> list[Tensor]:
        sized = F.interpolate(pixels_BCHW, size=(224, 224), mode="bilinear", antialias=True)
        return [F.relu(self.net.features(sized * 1024))]

    def features(self, pixels_BCHW: Tensor) -> Tensor:
        return self.maps(pixels_BCHW)[-1].mean((2, 3))

    def logits(self, maps: list[Tensor]) -> Tensor:
        return self.net.classifier(maps[-1].mean((2, 3)))


class HuggingFace(nn.Module):
    """A Hugging Face vision transformer such as RAD-DINO, from a local folder (config, safetensors)."""

    findings: tuple[str, ...] = ()

    def __init__(self, path: str | Path):
        super().__init__()
        from transformers import AutoModel

        self.net = AutoModel.from_pretrained(_existing(path), use_safetensors=True, local_files_only=True)
        config = self.net.config
        self.width, self.size, self.patch = config.hidden_size, int(config.image_size), int(config.patch_size)
        # RAD-DINO's preprocessor: three equal channels, mean 0.5307 and deviation 0.2583 of [0, 1] pixels.
        self.mean, self.deviation = 0.5307, 0.2583

    def maps(self, pixels_BCHW: Tensor) -> list[Tensor]:
        sized = F.interpolate(pixels_BCHW, size=(self.size, self.size), mode="bilinear", antialias=True)
        sized = (((sized + 1) / 2 - self.mean) / self.deviation).expand(-1, 3, -1, -1)
        grid = self.size // self.patch
        patches_BNC = self.net(pixel_values=sized).last_hidden_state[:, -grid * grid :]
        return [patches_BNC.transpose(1, 2).unflatten(2, (grid, grid))]

    def features(self, pixels_BCHW: Tensor) -> Tensor:
        return self.maps(pixels_BCHW)[-1].mean((2, 3))

    def logits(self, maps: list[Tensor]) -> Tensor:
        return maps[-1].new_zeros(len(maps[-1]), 0)


def load_encoder(path: str | Path, kind: Kind = "classifier") -> Classifier | TorchXRayVision | HuggingFace:
    """A frozen encoder in evaluation mode; gradients flow through it to the pixels and not into it."""
    encoder: Any = {
        "classifier": Classifier.from_checkpoint,
        "torchxrayvision": TorchXRayVision,
        "huggingface": HuggingFace,
    }[kind](path)
    return encoder.eval().requires_grad_(False)


def _existing(path: str | Path) -> str:
    if not Path(path).exists():
        raise DataError(f"encoder weights {path} do not exist; name a local file or folder (nothing is downloaded)")
    return str(path)


def load_checkpoint(path: str | Path, key: str, what: str) -> dict:
    """A Lightning checkpoint, as tensors only; `key` is a weight that marks it as a checkpoint of `what`."""
    try:
        checkpoint = torch.load(_existing(path), map_location="cpu", weights_only=True)
    except DataError:
        raise
    except Exception as error:
        raise DataError(
            f"{path} is not a readable checkpoint ({type(error).__name__}: {str(error).splitlines()[0]})"
        ) from None
    if key not in checkpoint.get("state_dict", {}):
        found = next(iter(checkpoint.get("state_dict", {})), "none")
        raise DataError(
            f"{path} is a checkpoint of another module (found weights such as {found}); expected one of {what}"
        )
    return checkpoint
