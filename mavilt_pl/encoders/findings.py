"""A small convolutional classifier of findings, which can be trained on any machine.

It has three uses: features for the tokenizer's clinical terms, features for the Fréchet distance,
and a judge of whether a finding is present in a reconstruction or in a generated image.

Shape legend: B batch, C channels, H W height and width in pixels, F findings.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mavilt_pl.checkpoint import check_format_version, read_weights
from mavilt_pl.errors import UserError

# The key is the module's own, so another network's checkpoint is recognised by its absence.
MARK = "net.head.weight"  # a weight by which a checkpoint of `CXRClassifier` is recognised


def _conv_block(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        # No bias: the norm after it has one.
        nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


class FindingsNet(nn.Module):
    """Pixels [B,1,H,W] in [-1, 1] → feature maps → logits [B,F], one per finding.

    Mean and maximum of the last map are concatenated: a large heart shows in the mean, a nodule in
    the maximum.

    Args:
        findings: names of the outputs.
        widths: channels of each level; the resolution halves between levels.

    >>> net = FindingsNet(["edema", "pneumothorax"], widths=(4, 8)).eval()
    >>> net(torch.zeros(3, 1, 16, 16)).shape
    torch.Size([3, 2])
    """

    def __init__(self, findings: Sequence[str], widths: Sequence[int] = (16, 32, 48, 64)):
        super().__init__()
        self.findings = tuple(findings)
        # A list, not a Sequential: the tokenizer's clinical terms need the map of every level.
        self.levels = nn.ModuleList()
        in_channels = 1
        for level, width in enumerate(widths):
            # The first level keeps the full resolution: a nodule is a few pixels wide.
            if level == 0:
                self.levels.append(_conv_block(in_channels, width, 1))
            else:
                first, second = _conv_block(in_channels, width, 2), _conv_block(width, width, 1)
                self.levels.append(nn.Sequential(first, second))
            in_channels = width
        self.width = 2 * in_channels
        self.head = nn.Linear(self.width, len(self.findings))

    def maps(self, pixels_BCHW: Tensor) -> list[Tensor]:
        """Feature maps of all levels, [B,C_l,H/2^l,W/2^l]."""
        maps = []
        features_BCHW = pixels_BCHW
        for level in self.levels:
            features_BCHW = level(features_BCHW)
            maps.append(features_BCHW)
        return maps

    def pool(self, map_BChw: Tensor) -> Tensor:
        """Mean and maximum of each channel, [B,2C]."""
        return torch.cat([map_BChw.mean((2, 3)), map_BChw.amax((2, 3))], 1)

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        """Pixels [B,1,H,W] → logits [B,F]."""
        return self.head(self.pool(self.maps(pixels_BCHW)[-1]))


class Classifier(nn.Module):
    """A `FindingsNet` behind the interface `Encoder`, with the image size it was trained on.

    Args:
        findings: names of the outputs.
        image_size: side in pixels; images of another size are resized.
        widths: channels of each level.
    """

    def __init__(self, findings: Sequence[str], image_size: int, widths: Sequence[int]):
        super().__init__()
        self.net = FindingsNet(findings, widths)
        self.size = image_size
        self.findings = self.net.findings
        self.width = self.net.width
        self.widths = [*widths]

    @classmethod
    def from_checkpoint(cls, path: str | Path) -> Classifier:
        """Load the weights of a checkpoint of `CXRClassifier`.

        Raises:
            UserError: the file is missing, damaged, or of another module.
        """
        checkpoint = read_weights(path)
        state = checkpoint.get("state_dict", {})
        if MARK not in state or "hyper_parameters" not in checkpoint:
            found = next(iter(state), "none")
            raise UserError(
                f"{path} is a checkpoint of another module (found weights such as {found}); "
                "expected one of CXRClassifier (mavilt fit --config encoder.yaml)"
            )
        check_format_version(checkpoint, f"the checkpoint {path}")
        # Shape and names come from the checkpoint, so a user names one file.
        h = checkpoint["hyper_parameters"]
        # Optimizer state and the loss's settings in the checkpoint are of no use here.
        encoder = cls(h["findings"], int(h["image_size"]), h["widths"])
        prefix = "net."
        weights = {}
        for key, value in state.items():
            if key.startswith(prefix):
                weights[key.removeprefix(prefix)] = value
        encoder.net.load_state_dict(weights)
        return encoder

    @property
    def config(self) -> dict[str, Any]:
        """Arguments that build the encoder again."""
        return {"findings": [*self.findings], "image_size": self.size, "widths": self.widths}

    def maps(self, pixels_BCHW: Tensor) -> list[Tensor]:
        """Feature maps [B,C,h,w], from fine to coarse."""
        # Antialiased, or fine lines such as catheters would depend on the resizing grid.
        if pixels_BCHW.shape[-1] != self.size:
            size = (self.size, self.size)
            pixels_BCHW = F.interpolate(pixels_BCHW, size=size, mode="bilinear", antialias=True)
        return self.net.maps(pixels_BCHW)

    def features(self, maps: list[Tensor]) -> Tensor:
        """Pooled features [B,width] of the last map."""
        return self.net.pool(maps[-1])

    def logits(self, maps: list[Tensor]) -> Tensor:
        """Logits of the findings [B,F] from the last map."""
        return self.net.head(self.features(maps))

    def last_level(self, map_BChw: Tensor) -> Tensor:
        """The last map from the one before it."""
        return self.net.levels[-1](map_BChw)
