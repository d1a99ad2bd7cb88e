"""DenseNet-121 of torchxrayvision as a frozen encoder.

Shape legend: B batch, C channels, H W height and width in pixels, F findings.
"""

from __future__ import annotations

from pathlib import Path

import torch.nn.functional as F
from torch import Tensor, nn

from mavilt_pl.checkpoint import load_strict, read_weights
from mavilt_pl.errors import UserError

IMAGE_SIZE = 224
INPUT_RANGE = 1024  # its pixels are in [-1024, 1024]
FIRST_WEIGHT = "features.denseblock1.denselayer1.conv1.weight"
CONVERT = (
    "Save torchxrayvision's own weights as tensors, if you trust them: python -c "
    '"import torch, torchxrayvision as xrv; '
    "torch.save(xrv.models.DenseNet(weights='densenet121-res224-all').state_dict(), "
    "'densenet.pt')\""
)
# torchxrayvision's name of a finding → this package's (CheXpert's), if only the name differs.
FINDING_NAMES = {"effusion": "pleural effusion", "pleural_thickening": "pleural thickening"}


class TorchXRayVision(nn.Module):
    """A DenseNet-121 from a local state dict (`torch.save` or safetensors).

    Pixels are scaled and resized to its own [-1024, 1024] and 224² (torchxrayvision's
    `utils.normalize` and `fix_resolution`). Logits are the network's own, before torchxrayvision
    shifts them by operating points (`op_threshs`). Findings have this package's names; a finding
    that the weights were not trained for (threshold NaN) has the name "".

    Args:
        path: a local file.

    Raises:
        UserError: the file is missing, damaged, or of another network.
    """

    def __init__(self, path: str | Path):
        super().__init__()
        # Imported here: it is an optional dependency.
        import torchxrayvision as xrv

        # Its own loader would download weights and unpickle them; a local file is read as tensors.
        state = read_weights(path, CONVERT)
        state = dict(state.get("state_dict", state))
        if FIRST_WEIGHT not in state or "classifier.bias" not in state:
            found = ", ".join(list(state)[:3]) or "none"
            raise UserError(
                f"{path} is not a DenseNet-121 of torchxrayvision (found weights such as {found}); "
                f"expected {FIRST_WEIGHT}. {CONVERT}"
            )
        # Not a parameter of the network that is built here, so strict loading would refuse it.
        thresholds = state.pop("op_threshs", None)
        num_outputs = len(state["classifier.bias"])
        # Without `weights`, so nothing is downloaded.
        self.net = xrv.models.DenseNet(num_classes=num_outputs, in_channels=1)
        load_strict(self.net, state, path)
        names = []
        # The order of the outputs is the order of this list.
        for name in xrv.datasets.default_pathologies:
            names.append(FINDING_NAMES.get(name.lower(), name.lower()))
        if thresholds is not None and len(thresholds) == len(names):
            for index, threshold in enumerate(thresholds):
                # torchxrayvision marks outputs that these weights were not trained for in this way.
                if threshold.isnan():
                    names[index] = ""
        # Weights with another number of outputs are of another list: findings without a reliable
        # name.
        self.findings: tuple[str, ...] = tuple(names) if len(names) == num_outputs else ()
        self.width = self.net.classifier.in_features

    def maps(self, pixels_BCHW: Tensor) -> list[Tensor]:
        """The last feature map [B,1024,7,7]."""
        size = (IMAGE_SIZE, IMAGE_SIZE)
        if pixels_BCHW.shape[-2:] != size:
            pixels_BCHW = F.interpolate(pixels_BCHW, size=size, mode="bilinear", antialias=True)
        # DenseNet's own forward applies this ReLU between its features and its classifier.
        return [F.relu(self.net.features(pixels_BCHW * INPUT_RANGE))]

    def features(self, maps: list[Tensor]) -> Tensor:
        """Mean features [B,1024] of the last map."""
        return maps[-1].mean((2, 3))

    def logits(self, maps: list[Tensor]) -> Tensor:
        """Logits of the findings [B,F] from the last map."""
        return self.net.classifier(self.features(maps))
