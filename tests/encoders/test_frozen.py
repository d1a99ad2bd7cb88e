"""Frozen encoders against the packages they come from, each on an 8-bit image that its own package
prepares.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mavilt_pl.encoders.loading import load_encoder
from mavilt_pl.errors import UserError

xrv = pytest.importorskip("torchxrayvision")


def image(side: int) -> np.ndarray:
    """8-bit [H,W] with the whole range in it, smooth enough to survive a change of size."""
    coarse = (
        np.random.default_rng(0).integers(0, 256, (side // 8 + 1, side // 8 + 1)).astype(np.uint8)
    )
    made = coarse.repeat(8, 0).repeat(8, 1)[:side, :side].copy()
    made[0, :2] = 0, 255
    return made


def pixels(image_HW: np.ndarray) -> Tensor:
    """As the corpus gives them."""
    return torch.from_numpy(image_HW).float().div(127.5).sub(1)[None, None]


def random_weights(net: nn.Module) -> nn.Module:
    """Weights, biases and running statistics that are all their own."""
    generator = torch.Generator().manual_seed(0)
    for name, value in net.state_dict().items():
        if value.is_floating_point():
            noise = 0.1 * torch.randn(value.shape, generator=generator)
            value.copy_(value + (noise.abs() if "var" in name else noise))
    return net.eval()


@pytest.fixture(scope="module")
def densenet() -> nn.Module:
    torch.manual_seed(0)
    net = xrv.models.DenseNet(weights=None)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)  # type: ignore[union-attr,operator]
                module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr,operator]
        net.features.norm0.running_var.mul_(1e5)  # of pixels in the hundreds
        net.classifier.bias.normal_()
    return net.eval()


@pytest.mark.parametrize("side", [224, 320])
def test_torchxrayvision_sees_what_its_own_package_sees(
    side: int, densenet: nn.Module, tmp_path: Path
) -> None:
    torch.save(densenet.state_dict(), path := tmp_path / "densenet.pt")
    encoder = load_encoder(path, "torchxrayvision")
    image_HW = image(side)
    theirs = torch.from_numpy(xrv.datasets.normalize(image_HW, 255, reshape=True))[None]
    assert theirs.min() == -1024
    assert theirs.max() == 1024
    theirs = xrv.utils.fix_resolution(theirs, 224, densenet)
    with torch.no_grad():
        wanted_features, expected = densenet.features2(theirs), densenet(theirs)  # type: ignore[operator]
        maps = encoder.maps(pixels(image_HW))
    assert expected.std() > 0.1
    torch.testing.assert_close(
        encoder.features(encoder.maps(pixels(image_HW))), wanted_features, atol=1e-4, rtol=1e-4
    )
    torch.testing.assert_close(encoder.logits(maps), expected, atol=1e-4, rtol=1e-4)
    assert encoder.width == 1024
    assert encoder.findings[7] == "pleural effusion"
    assert len(encoder.findings) == 18


def test_torchxrayvisions_published_form(densenet: nn.Module, tmp_path: Path) -> None:
    """A whole pickled model is refused with the line that converts it; its state dict has operating
    points, NaN where an output was not trained.
    """
    torch.save(densenet, path := tmp_path / "pickled.pt")
    with pytest.raises(
        UserError, match=r"pickled.pt holds pickled objects .*xrv.models.DenseNet\(weights="
    ):
        load_encoder(path, "torchxrayvision")
    thresholds = torch.full((18,), 0.1)
    thresholds[2] = torch.nan
    torch.save(
        {**densenet.state_dict(), "op_threshs": thresholds}, path := tmp_path / "densenet.pt"
    )
    encoder = load_encoder(path, "torchxrayvision")
    assert encoder.findings[1:4] == ("consolidation", "", "pneumothorax")
    names = xrv.models.model_urls["densenet121-res224-mimic_ch"]
    untrained = [label == "" for label in names["labels"]]
    assert untrained == [bool(np.isnan(t)) for t in names["op_threshs"]]


def test_torchxrayvision_refuses(densenet: nn.Module, tmp_path: Path) -> None:
    def message(weights: Any) -> str:
        torch.save(weights, path := tmp_path / "other.pt")
        with pytest.raises(UserError) as caught:
            load_encoder(path, "torchxrayvision")
        return str(caught.value)

    state = densenet.state_dict()
    assert "found weights such as weight, bias" in message(nn.Linear(2, 2).state_dict())
    lacking = {k: v for k, v in state.items() if k != "features.norm5.weight"}
    assert "features.norm5.weight is missing in the file and (1024,) here" in message(lacking)
    wide = {**state, "features.conv0.weight": torch.zeros(64, 3, 7, 7)}
    assert "(64, 3, 7, 7) in the file and (64, 1, 7, 7) here" in message(wide)
    (tmp_path / "cut.pt").write_bytes((tmp_path / "other.pt").read_bytes()[:100_000])
    with pytest.raises(UserError, match=r"cut.pt is not a readable checkpoint .* 100,000 bytes"):
        load_encoder(tmp_path / "cut.pt", "torchxrayvision")
    with pytest.raises(UserError, match="do not exist"):
        load_encoder(tmp_path / "none.pt", "torchxrayvision")


SHAPE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 56,
    "patch_size": 14,
}
# Of RAD-DINO; of a DINOv2, which crops, with channels that differ; of a ViT, whose size is both
# sides.
RAD_DINO = {
    "size": {"shortest_edge": 56},
    "crop_size": {"height": 56, "width": 56},
    "image_mean": [0.5307] * 3,
    "image_std": [0.2583] * 3,
    "resample": 3,
}
CROPPED = {
    "size": {"shortest_edge": 64},
    "crop_size": {"height": 42, "width": 42},
    "resample": 3,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}
SQUARE = {
    "size": {"height": 70, "width": 70},
    "image_mean": [0.5] * 3,
    "image_std": [0.5] * 3,
    "resample": 2,
}


def saved(kind: str, processor: dict[str, Any] | None, folder: Path) -> tuple[nn.Module, Any]:
    """A tiny random model and its processor, in a folder as the hub has it."""
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**SHAPE)
    net = random_weights(getattr(transformers, f"{kind}Model")(config))
    net.save_pretrained(folder, safe_serialization=True)
    own = transformers.ViTImageProcessor if kind == "ViT" else transformers.BitImageProcessor
    made = own(**processor) if processor is not None else None
    if made is not None:
        made.save_pretrained(folder)
        assert (folder / "preprocessor_config.json").exists()
    return net, made


@pytest.mark.parametrize("kind", ["Dinov2", "Dinov2WithRegisters", "ViT"])
@pytest.mark.parametrize(
    "processor", [RAD_DINO, CROPPED, SQUARE], ids=["raddino", "cropped", "square"]
)
@pytest.mark.parametrize("side", [48, 96])
def test_a_vision_transformer_sees_what_its_own_processor_gives_it(
    kind: str, processor: dict[str, Any], side: int, tmp_path: Path
) -> None:
    if kind == "ViT":  # its processor does not crop
        processor = {k: v for k, v in processor.items() if k != "crop_size"}
        edge = processor["size"].get("shortest_edge", 70)
        processor = {**processor, "size": {"height": edge, "width": edge}}
    elif "crop_size" not in processor:
        processor = {**processor, "do_center_crop": False}
    net, own = saved(kind, processor, tmp_path)
    encoder = load_encoder(tmp_path, "huggingface")
    image_HW = image(side)
    # In float: of 8-bit pixels their processor makes 8-bit ones again when it resizes.
    colour = np.repeat(image_HW[None].astype(np.float32), 3, 0)
    given = own(colour, return_tensors="pt", input_data_format="channels_first")["pixel_values"]
    options = {"interpolate_pos_encoding": True} if kind == "ViT" else {}
    with torch.no_grad():
        wanted_BTC = net(pixel_values=given, **options).last_hidden_state
    extra = {"Dinov2": 1, "Dinov2WithRegisters": 5, "ViT": 1}[kind]
    grid = given.shape[-1] // 14
    assert wanted_BTC.shape[1] == grid**2 + extra
    wanted_BNC = wanted_BTC[:, extra:]
    (found_BChw,) = encoder.maps(pixels(image_HW))
    assert wanted_BNC.std() > 0.1
    assert found_BChw.shape == (1, 32, grid, grid)
    torch.testing.assert_close(found_BChw.flatten(2).transpose(1, 2), wanted_BNC, atol=1e-4, rtol=0)
    torch.testing.assert_close(
        encoder.features(encoder.maps(pixels(image_HW))), wanted_BNC.mean(1), atol=1e-4, rtol=0
    )


def test_an_8_bit_image_of_the_native_size_is_the_same_to_both(tmp_path: Path) -> None:
    from PIL import Image

    net, own = saved("Dinov2", RAD_DINO, tmp_path)
    image_HW = image(56)
    given = own(Image.fromarray(image_HW), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        wanted_BNC = net(pixel_values=given).last_hidden_state[:, 1:]
    (found_BChw,) = load_encoder(tmp_path, "huggingface").maps(pixels(image_HW))
    torch.testing.assert_close(found_BChw.flatten(2).transpose(1, 2), wanted_BNC, atol=1e-4, rtol=0)


def test_without_a_preprocessor_it_is_raddinos(tmp_path: Path) -> None:
    saved("Dinov2", RAD_DINO, tmp_path)
    with_file = load_encoder(tmp_path, "huggingface").maps(pixels(image(96)))[0]
    (tmp_path / "preprocessor_config.json").unlink()
    torch.testing.assert_close(
        load_encoder(tmp_path, "huggingface").maps(pixels(image(96)))[0], with_file
    )


@pytest.mark.parametrize("kind", ["torchxrayvision", "huggingface"])
def test_gradients_reach_the_pixels_and_not_the_weights(
    kind: Any, densenet: nn.Module, tmp_path: Path
) -> None:
    if kind == "torchxrayvision":
        torch.save(densenet.state_dict(), path := tmp_path / "densenet.pt")
    else:
        saved("Dinov2", RAD_DINO, path := tmp_path)
    encoder = load_encoder(path, kind)
    assert not encoder.training
    assert not any(p.requires_grad for p in encoder.parameters())
    pixels_BCHW = pixels(image(48)).requires_grad_(True)
    encoder.features(encoder.maps(pixels_BCHW)).square().sum().backward()
    assert pixels_BCHW.grad is not None
    assert pixels_BCHW.grad.isfinite().all()
    assert pixels_BCHW.grad.abs().max() > 0
    assert all(p.grad is None for p in encoder.parameters())


def test_hugging_face_refuses(tmp_path: Path) -> None:
    def message(folder: Path) -> str:
        with pytest.raises(UserError) as caught:
            load_encoder(folder, "huggingface")
        return str(caught.value)

    assert "do not exist" in message(tmp_path / "none")
    (empty := tmp_path / "empty").mkdir()
    assert "holds no *.safetensors (found nothing)" in message(empty)
    (empty / "pytorch_model.bin").write_bytes(b"")
    assert "found pytorch_model.bin" in message(empty)

    saved("Dinov2", None, folder := tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    weights = (folder / "model.safetensors").read_bytes()

    def write(**changes: Any) -> None:
        (folder / "config.json").write_text(json.dumps({**config, **changes}))

    write(num_hidden_layers=3)
    assert "weights are missing, such as encoder.layer.2" in message(folder)
    write(hidden_size=64)
    assert "cannot be loaded" in message(folder)
    write(model_type="no such model")
    assert "cannot be loaded" in message(folder)
    write()
    from safetensors.torch import save_file

    save_file({"layer.weight": torch.zeros(2, 2)}, folder / "model.safetensors")
    assert "weights are missing" in message(folder)
    (folder / "model.safetensors").write_bytes(weights[:1000])
    assert "cannot be loaded" in message(folder)
    (folder / "model.safetensors").write_bytes(weights)

    for changes, text in [
        ({"resample": 1}, "resample 1 found"),
        ({"size": {"height": 56, "width": 42}}, "a square's"),
        ({"size": {"shortest_edge": 42}}, "a crop of 56 from images of 42"),
        ({"image_std": None}, "no image_mean or no image_std"),
    ]:
        (folder / "preprocessor_config.json").write_text(json.dumps({**RAD_DINO, **changes}))
        assert text in message(folder)
    (folder / "preprocessor_config.json").write_text("{")
    assert "preprocessor_config.json is not readable" in message(folder)
