"""Hugging Face vision transformers as frozen encoders.

Shape legend: B batch, C channels, H W height and width in pixels, h w grid, N = h·w patches.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mavilt_pl.errors import UserError

# PIL's numbers of the interpolations that torch has with antialiasing.
INTERPOLATIONS = {2: "bilinear", 3: "bicubic"}


@dataclass(frozen=True)
class Preprocessing:
    """How pixels are prepared for a vision transformer; the defaults are RAD-DINO's.

    Args:
        resized: side after resizing.
        size: side after the centre crop.
        interpolation: of the resizing.
        mean, deviation: of each channel of [0, 1] pixels; one value for all channels.
    """

    resized: int
    size: int
    interpolation: str = "bicubic"
    mean: Sequence[float] = (0.5307,)
    deviation: Sequence[float] = (0.2583,)

    @classmethod
    def read(cls, folder: Path, native_size: int) -> Preprocessing:
        """Read a folder's preprocessor_config.json; the defaults without one.

        Raises:
            UserError: the file is damaged, or describes something that is not supported.
        """
        # Read as JSON: transformers' processors round pixels to 8 bits and pass no gradient.
        path = folder / "preprocessor_config.json"
        if not path.exists():
            return cls(native_size, native_size)
        try:
            config = json.loads(path.read_text())
        except ValueError as error:
            raise UserError(
                f"{path} is not readable ({error}); save it again with the processor's "
                "save_pretrained"
            ) from None
        resized, size = cls._sizes(config, path, native_size)
        resample = config.get("resample", 3)
        if resample not in INTERPOLATIONS:
            raise UserError(
                f"{path}: resample {resample} found; expected 2 (bilinear) or 3 (bicubic)"
            )
        interpolation = INTERPOLATIONS[resample]
        if not config.get("do_normalize", True):
            return cls(resized, size, interpolation, [0.0], [1.0])
        mean, deviation = config.get("image_mean"), config.get("image_std")
        if mean is None or deviation is None:
            raise UserError(
                f"{path} has no image_mean or no image_std; expected both, or do_normalize false"
            )
        return cls(resized, size, interpolation, mean, deviation)

    @staticmethod
    def _sizes(config: Mapping[str, Any], path: Path, native_size: int) -> tuple[int, int]:
        """Sides after resizing and after cropping."""
        # Resizing comes first, cropping after it, as the processors do it.
        crop = None
        # As the processors do: a crop_size means a crop unless it is switched off.
        if config.get("do_center_crop", "crop_size" in config):
            crop = _square_side(config["crop_size"], path.parent)
        if config.get("do_resize", True) and "size" in config:
            resized = _square_side(config["size"], path.parent)
        else:
            resized = crop or native_size
        if crop is not None and crop > resized:
            raise UserError(
                f"{path}: a crop of {crop} from images of {resized} found; expected a crop that is "
                "no larger"
            )
        return resized, crop or resized


class HuggingFace(nn.Module):
    """A vision transformer such as RAD-DINO from a local folder (config, safetensors).

    The folder's preprocessor_config.json says how pixels are prepared. Pixels stay float32, whereas
    the original processor rounds them to 8 bits when it resizes. The feature map contains the
    patches only, neither the class token nor registers. There are no outputs for findings.

    Args:
        path: a local folder.

    Raises:
        UserError: a file is missing or damaged, or the model is no vision transformer.
    """

    findings: tuple[str, ...] = ()
    mean_1C11: Tensor
    deviation_1C11: Tensor

    def __init__(self, path: str | Path):
        super().__init__()
        folder = Path(path)
        _check_folder(folder)
        config, self.net = _load_model(folder)
        self.width = int(config.hidden_size)
        self.patch = _square_side(config.patch_size, folder)
        native_size = _square_side(config.image_size, folder)
        preprocessing = Preprocessing.read(folder, native_size)
        self.resized, self.size = preprocessing.resized, preprocessing.size
        self.interpolation = preprocessing.interpolation
        # A ViT interpolates its positions only if asked to; DINOv2 always does and has no option.
        # In the model's own attention, since some have no such argument.
        self.options: dict[str, Any] = {}
        parameters = inspect.signature(self.net.forward).parameters
        if "interpolate_pos_encoding" in parameters and self.size != native_size:
            self.options = {"interpolate_pos_encoding": True}
        channels = int(getattr(config, "num_channels", 3))
        mean_1C11 = _per_channel(preprocessing.mean, channels)
        deviation_1C11 = _per_channel(preprocessing.deviation, channels)
        # Not persistent: they belong to the preprocessing, not to the weights.
        self.register_buffer("mean_1C11", mean_1C11, persistent=False)
        self.register_buffer("deviation_1C11", deviation_1C11, persistent=False)

    def maps(self, pixels_BCHW: Tensor) -> list[Tensor]:
        """The last feature map [B,width,h,w] of the patches."""
        grid = self.size // self.patch
        # Patches come last, after the class token and the registers.
        patches_BNC = self._states(pixels_BCHW)[:, -grid * grid :]
        return [patches_BNC.transpose(1, 2).unflatten(2, (grid, grid))]

    def class_token(self, pixels_BCHW: Tensor) -> Tensor:
        """The normalised class token [B,width], a DINOv2's `pooler_output`."""
        return self._states(pixels_BCHW)[:, 0]

    def _states(self, pixels_BCHW: Tensor) -> Tensor:
        """Last hidden states [B,T,width] of all tokens."""
        size = (self.resized, self.resized)
        if pixels_BCHW.shape[-2:] != size:
            pixels_BCHW = F.interpolate(
                pixels_BCHW, size=size, mode=self.interpolation, antialias=True
            )
        if self.size != self.resized:
            start = (self.resized - self.size) // 2
            end = start + self.size
            pixels_BCHW = pixels_BCHW[..., start:end, start:end]
        # [-1, 1] → [0, 1] → normalised; grey is broadcast to the C channels.
        normal_BCHW = ((pixels_BCHW + 1) / 2 - self.mean_1C11) / self.deviation_1C11
        return self.net(pixel_values=normal_BCHW, **self.options).last_hidden_state

    def features(self, maps: list[Tensor]) -> Tensor:
        """Mean features [B,width] of the last map."""
        return maps[-1].mean((2, 3))

    def logits(self, maps: list[Tensor]) -> Tensor:
        """No logits, [B,0]."""
        return maps[-1].new_zeros(len(maps[-1]), 0)


def _check_folder(folder: Path) -> None:
    if not folder.exists():
        raise UserError(
            f"encoder weights {folder} do not exist; name a local file or folder (nothing is "
            "downloaded)"
        )
    # Checked first: transformers would report a missing pickle instead.
    if not any(folder.glob("*.safetensors")):
        found = "a file"
        if folder.is_dir():
            names = sorted(file.name for file in folder.iterdir())
            found = ", ".join(names[:5]) or "nothing"
        raise UserError(
            f"{folder} holds no *.safetensors (found {found}); expected a folder with config.json "
            "and model.safetensors: save_pretrained(folder) of the model writes it"
        )


def _load_model(folder: Path) -> tuple[Any, Any]:
    """The config and the model of a folder; raises `UserError` unless both are whole."""
    # Imported here, since it takes seconds and other encoders do not need it.
    from transformers import AutoConfig, AutoModel

    try:
        # Local files and safetensors only: nothing is downloaded, and no pickle is opened.
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        net, notes = AutoModel.from_pretrained(
            folder,
            config=config,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    # transformers raises many kinds here, each of which means an unusable folder.
    except Exception as error:
        reason = next(iter(str(error).strip().splitlines()), "")[:200]
        raise UserError(
            f"{folder} cannot be loaded ({type(error).__name__}: {reason}); expected the "
            "config.json of a vision transformer and the weights of the same model"
        ) from None
    # The pooler of a ViT is not used here and often not published.
    keys = [str(key) for key in notes["missing_keys"]]
    missing = sorted(key for key in keys if not key.startswith("pooler."))
    problem = None
    if missing:
        problem = f"{len(missing)} weights are missing, such as {missing[0]}"
    elif not hasattr(config, "patch_size") or not hasattr(config, "hidden_size"):
        problem = "it has no patches"
    if problem is not None:
        raise UserError(
            f"{folder} holds no whole vision transformer of type {config.model_type}: {problem}; "
            "expected the weights and the config.json of the same model"
        )
    return config, net


def _per_channel(values: Sequence[float], channels: int) -> Tensor:
    # `clone`: an expanded view shares one number, and buffers may be moved or saved.
    values_C = torch.tensor(values, dtype=torch.float32).expand(channels)
    return values_C.view(1, -1, 1, 1).clone()


def _square_side(value: Any, folder: Path) -> int:
    """The side of a square, from a number, a pair, or a processor's dictionary.

    >>> _square_side({"height": 56, "width": 56}, Path("model"))
    56
    """
    if isinstance(value, Mapping):
        sides = [*value.values()]
    elif isinstance(value, Sequence):
        sides = [*value]
    else:
        sides = [value]
    # A processor's dictionary may hold `shortest_edge: null` next to the sides.
    different = {side for side in sides if side is not None}
    if len(different) != 1:
        raise UserError(
            f"{folder}: sizes {value} found in its configuration; expected a square's, images here "
            "are square"
        )
    return int(different.pop())
