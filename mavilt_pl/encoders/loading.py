"""Frozen encoders behind one interface: what the tokenizer's clinical terms and the Fréchet
distance look through.

Every encoder takes pixels [B,1,H,W] in [-1, 1] of any size and minds its own input range and size.
None is trained here and none is downloaded: weights come from a local file.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mavilt_pl.checkpoint import load_strict, read_weights
from mavilt_pl.encoders.findings import FindingsNet
from mavilt_pl.errors import UserError

Kind = Literal["classifier", "torchxrayvision", "huggingface"]

# torchxrayvision's name of a finding → this package's (CheXpert's), where they differ and mean the
# same.
XRV_NAMES = {"effusion": "pleural effusion", "pleural_thickening": "pleural thickening"}


class Encoder(Protocol):
    """What the rest may ask of an encoder. `findings` is empty where it has no outputs for
    findings.
    """

    findings: tuple[str, ...]
    width: int

    def maps(self, pixels_BCHW: Tensor) -> list[Tensor]:
        """Feature maps [B,C,h,w], from fine to coarse."""

    def features(self, maps: list[Tensor]) -> Tensor:
        """Pooled features [B, width] from the last of its maps."""

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
        checkpoint = load_checkpoint(
            path, "net.head.weight", "CXRClassifier (mavilt fit --config encoder.yaml)"
        )
        h = checkpoint["hyper_parameters"]
        made = cls(h["findings"], int(h["image_size"]), h["widths"])
        made.net.load_state_dict(
            {k[4:]: v for k, v in checkpoint["state_dict"].items() if k.startswith("net.")}
        )
        return made

    @property
    def config(self) -> dict[str, Any]:
        """Arguments that build it again."""
        return {"findings": [*self.findings], "image_size": self.size, "widths": self.widths}

    def _sized(self, pixels_BCHW: Tensor) -> Tensor:
        if pixels_BCHW.shape[-1] == self.size:
            return pixels_BCHW
        return F.interpolate(
            pixels_BCHW, size=(self.size, self.size), mode="bilinear", antialias=True
        )

    def maps(self, pixels_BCHW: Tensor) -> list[Tensor]:
        return self.net.maps(self._sized(pixels_BCHW))

    def features(self, maps: list[Tensor]) -> Tensor:
        return self.net.pool(maps[-1])

    def logits(self, maps: list[Tensor]) -> Tensor:
        return self.net.head(self.features(maps))

    def last_level(self, map_BCHW: Tensor) -> Tensor:
        """The last map from the one before it."""
        return self.net.levels[-1](map_BCHW)


class TorchXRayVision(nn.Module):
    """A DenseNet-121 of torchxrayvision from a local state dict (`torch.save` or safetensors).

    It wants [-1024, 1024] and 224² (torchxrayvision's `utils.normalize` and `fix_resolution`); both
    are seen to here. Its logits are the network's own, before torchxrayvision moves them by
    operating points (`op_threshs`). Findings have this package's names; one that the weights were
    not trained for, of threshold NaN, has the name "".
    """

    def __init__(self, path: str | Path):
        super().__init__()
        import torchxrayvision as xrv

        convert = (
            "Save torchxrayvision's own weights as tensors, where you trust them: python -c "
            '"import torch, '
            "torchxrayvision as xrv; "
            "torch.save(xrv.models.DenseNet(weights='densenet121-res224-all').state_dict(), "
            "'densenet.pt')\""
        )
        state = read_weights(path, convert)
        state = dict(state.get("state_dict", state))
        if (
            "features.denseblock1.denselayer1.conv1.weight" not in state
            or "classifier.bias" not in state
        ):
            found = ", ".join(list(state)[:3]) or "none"
            raise UserError(
                f"{path} is not a DenseNet-121 of torchxrayvision (found weights such as {found}); "
                f"expected "
                f"features.denseblock1.denselayer1.conv1.weight. {convert}"
            )
        thresholds = state.pop("op_threshs", None)
        outputs = len(state["classifier.bias"])
        self.net = xrv.models.DenseNet(num_classes=outputs, in_channels=1)
        load_strict(self.net, state, path)
        names = [
            XRV_NAMES.get(name.lower(), name.lower()) for name in xrv.datasets.default_pathologies
        ]
        if thresholds is not None and len(thresholds) == len(names):
            names = [
                "" if threshold.isnan() else name
                for name, threshold in zip(names, thresholds, strict=True)
            ]
        self.findings = tuple(names) if len(names) == outputs else ()
        self.width = self.net.classifier.in_features

    def maps(self, pixels_BCHW: Tensor) -> list[Tensor]:
        if pixels_BCHW.shape[-2:] != (224, 224):
            pixels_BCHW = F.interpolate(
                pixels_BCHW, size=(224, 224), mode="bilinear", antialias=True
            )
        return [F.relu(self.net.features(pixels_BCHW * 1024))]

    def features(self, maps: list[Tensor]) -> Tensor:
        return maps[-1].mean((2, 3))

    def logits(self, maps: list[Tensor]) -> Tensor:
        return self.net.classifier(self.features(maps))


class HuggingFace(nn.Module):
    """A Hugging Face vision transformer such as RAD-DINO or a ViT, from a local folder (config,
    safetensors).

    How its pixels are made is read from the folder's preprocessor_config.json: size, centre crop,
    interpolation, mean and deviation of each channel. Without that file it is as RAD-DINO's: three
    equal channels, mean 0.5307 and deviation 0.2583 of [0, 1] pixels, bicubic, at the config's own
    size. Pixels stay float32, where the file's processor rounds them to 8 bits when it resizes. Its
    map holds the patches only, neither class token nor registers.
    """

    findings: tuple[str, ...] = ()
    mean_1C11: Tensor
    deviation_1C11: Tensor

    def __init__(self, path: str | Path):
        super().__init__()
        from transformers import AutoConfig, AutoModel

        folder = Path(_existing(path))
        if not any(folder.glob("*.safetensors")):
            found = (
                ", ".join(sorted(file.name for file in folder.iterdir())[:5])
                if folder.is_dir()
                else "a file"
            )
            raise UserError(
                f"{path} holds no *.safetensors (found {found or 'nothing'}); expected a folder "
                f"with config.json and "
                "model.safetensors: save_pretrained(folder) of the model writes it"
            )
        try:
            config = AutoConfig.from_pretrained(folder, local_files_only=True)
            self.net, notes = AutoModel.from_pretrained(
                folder,
                config=config,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
            )
        except Exception as error:
            reason = next(iter(str(error).strip().splitlines()), "")[:200]
            raise UserError(
                f"{path} cannot be loaded ({type(error).__name__}: {reason}); expected the "
                f"config.json of a vision "
                "transformer and the weights of the same model"
            ) from None
        # The pooler of a ViT is not used here and often not published.
        missing = sorted(
            str(key) for key in notes["missing_keys"] if not str(key).startswith("pooler.")
        )
        if missing or not hasattr(config, "patch_size") or not hasattr(config, "hidden_size"):
            raise UserError(
                f"{path} holds no whole vision transformer of type {config.model_type}: "
                + (
                    f"{len(missing)} weights are missing, such as {missing[0]}"
                    if missing
                    else "it has no patches"
                )
                + "; expected the weights and the config.json of the same model"
            )
        self.width, self.patch = int(config.hidden_size), _side(config.patch_size, folder)
        native = _side(config.image_size, folder)
        made = _preprocessor(folder, native)
        self.resized, self.size, self.interpolation = (
            made["resized"],
            made["size"],
            made["interpolation"],
        )
        # A ViT interpolates its positions only when asked to; DINOv2 does by itself and cannot be
        # asked.
        asks = "interpolate_pos_encoding" in inspect.signature(self.net.forward).parameters
        self.options = {"interpolate_pos_encoding": True} if asks and self.size != native else {}
        channels = int(getattr(config, "num_channels", 3))
        for name in ("mean", "deviation"):
            values = torch.tensor(made[name], dtype=torch.float32).expand(channels)
            self.register_buffer(f"{name}_1C11", values.view(1, -1, 1, 1).clone(), persistent=False)

    def maps(self, pixels_BCHW: Tensor) -> list[Tensor]:
        if pixels_BCHW.shape[-2:] != (self.resized, self.resized):
            size = (self.resized, self.resized)
            pixels_BCHW = F.interpolate(
                pixels_BCHW, size=size, mode=self.interpolation, antialias=True
            )
        if self.size != self.resized:
            start = (self.resized - self.size) // 2
            pixels_BCHW = pixels_BCHW[..., start : start + self.size, start : start + self.size]
        normal_BCHW = ((pixels_BCHW + 1) / 2 - self.mean_1C11) / self.deviation_1C11
        grid = self.size // self.patch
        # Patches come last, after the class token and the registers.
        patches_BNC = self.net(pixel_values=normal_BCHW, **self.options).last_hidden_state[
            :, -grid * grid :
        ]
        return [patches_BNC.transpose(1, 2).unflatten(2, (grid, grid))]

    def features(self, maps: list[Tensor]) -> Tensor:
        return maps[-1].mean((2, 3))

    def logits(self, maps: list[Tensor]) -> Tensor:
        return maps[-1].new_zeros(len(maps[-1]), 0)


def _side(value: Any, folder: Path) -> int:
    """The side of a square, from a number, a pair, or a processor's dictionary."""
    sides = (
        [*value.values()]
        if isinstance(value, Mapping)
        else [*value]
        if isinstance(value, Sequence)
        else [value]
    )
    sides = [side for side in sides if side is not None]
    if not sides or len({*sides}) > 1:
        raise UserError(
            f"{folder}: sizes {value} found in its configuration; expected a square's, images here "
            f"are square"
        )
    return int(sides[0])


def _preprocessor(folder: Path, native: int) -> dict[str, Any]:
    """Side after resizing, side after cropping, interpolation, mean and deviation of [0, 1] pixels."""
    path = folder / "preprocessor_config.json"
    if not path.exists():
        return {
            "resized": native,
            "size": native,
            "interpolation": "bicubic",
            "mean": [0.5307],
            "deviation": [0.2583],
        }
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(
            f"{path} is not readable ({error}); save it again with the processor's save_pretrained"
        ) from None
    crops = found.get("do_center_crop", "crop_size" in found)
    size = _side(found["crop_size"], folder) if crops else None
    resized = (
        _side(found["size"], folder)
        if found.get("do_resize", True) and "size" in found
        else size or native
    )
    resample = found.get("resample", 3)
    # PIL's numbers; torch has these two with antialiasing.
    names = {2: "bilinear", 3: "bicubic"}
    if resample not in names:
        raise UserError(f"{path}: resample {resample} found; expected 2 (bilinear) or 3 (bicubic)")
    if size is not None and size > resized:
        raise UserError(
            f"{path}: a crop of {size} from images of {resized} found; expected a crop that is no "
            f"larger"
        )
    normal = found.get("do_normalize", True)
    mean, deviation = (found.get(f"image_{name}") if normal else None for name in ("mean", "std"))
    if normal and (mean is None or deviation is None):
        raise UserError(
            f"{path} has no image_mean or no image_std; expected both, or do_normalize false"
        )
    return {
        "resized": resized,
        "size": size or resized,
        "interpolation": names[resample],
        "mean": mean if normal else [0.0],
        "deviation": deviation if normal else [1.0],
    }


def load_encoder(
    path: str | Path, kind: Kind = "classifier"
) -> Classifier | TorchXRayVision | HuggingFace:
    """A frozen encoder in evaluation mode; gradients flow through it to the pixels and not into it."""
    encoder: Any = {
        "classifier": Classifier.from_checkpoint,
        "torchxrayvision": TorchXRayVision,
        "huggingface": HuggingFace,
    }[kind](path)
    return encoder.eval().requires_grad_(False)


def _existing(path: str | Path) -> str:
    if not Path(path).exists():
        raise UserError(
            f"encoder weights {path} do not exist; name a local file or folder (nothing is "
            f"downloaded)"
        )
    return str(path)


def load_checkpoint(path: str | Path, key: str, what: str) -> dict:
    """A Lightning checkpoint, as tensors only; `key` is a weight that marks it as a checkpoint of
    `what`.
    """
    checkpoint = read_weights(path)
    state = checkpoint.get("state_dict", {})
    if key not in state or "hyper_parameters" not in checkpoint:
        found = next(iter(state), "none")
        raise UserError(
            f"{path} is a checkpoint of another module (found weights such as {found}); expected "
            f"one of {what}"
        )
    return checkpoint
