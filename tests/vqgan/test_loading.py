"""Published VQ-GANs through the front door, against torchxrayvision's classes; and every file that
is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from torch import Tensor, nn
from words import QUIET

from mavilt_pl.checkpoint import check_compatible
from mavilt_pl.cli import main
from mavilt_pl.errors import UserError
from mavilt_pl.vqgan import load_tokenizer, published_shape, published_weights
from mavilt_pl.vqgan.autoencoder import Autoencoder
from mavilt_pl.vqgan.module import VQGAN
from mavilt_pl.vqgan.quantizer import Quantizer
from mavilt_pl.vqgan.tokenizer import Tokenizer

vqgan = pytest.importorskip("torchxrayvision.baseline_models.ieee8023.vqgan")
ieee8023 = pytest.importorskip("torchxrayvision.baseline_models.ieee8023")

SMALL = {
    "image_size": 16,
    "channels": 8,
    "channel_multipliers": [1, 2],
    "num_res_blocks": 1,
    "attention_resolutions": [8],
    "latent_dim": 8,
}
CASES = {
    "grey": {"in_channels": 1, "out_ch": 1},
    "colour": {},
    "attention at two levels": {"attn_resolutions": [32, 8], "ch_mult": [1, 1, 2]},
    "attention in the middle only": {"attn_resolutions": []},
    "codes as wide as latents": {"embed_dim": 24, "num_res_blocks": 2},
}


def published(**changes: Any) -> tuple[nn.Module, dict[str, Any]]:
    """A VQ-GAN of torchxrayvision's code with random weights: norms and biases too, codes where
    latents lie.
    """
    torch.manual_seed(1)
    shape = {
        "ch": 32,
        "ch_mult": [1, 2],
        "num_res_blocks": 1,
        "attn_resolutions": [16],
        "in_channels": 3,
        "out_ch": 3,
        "resolution": 32,
        "z_channels": 24,
        "double_z": False,
    }
    embed_dim = changes.pop("embed_dim", 12)
    config = {"ddconfig": {**shape, **changes}, "n_embed": 64, "embed_dim": embed_dim}
    net = vqgan.VQModel(**config).eval().requires_grad_(False)
    for parameter in net.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    first = config["ddconfig"]["in_channels"]
    latents_BDhw = net.quant_conv(net.encoder(images(8).repeat(1, first, 1, 1)))
    rows_ND = latents_BDhw.permute(0, 2, 3, 1).flatten(0, 2)
    net.quantize.embedding.weight.copy_(
        rows_ND[torch.randperm(len(rows_ND))[:64]] + 0.01 * torch.randn(64, embed_dim)
    )
    return net, config


def images(count: int = 3, size: int = 32) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.rand(count, 1, size, size, generator=generator) * 2 - 1


def assert_same(
    tokenizer: Tokenizer, net: nn.Module, pixels: Tensor, first_channel: bool = False
) -> None:
    channels = net.encoder.in_channels  # type: ignore[union-attr]
    quantised, _, (_, _, codes) = net.encode(pixels.repeat(1, channels, 1, 1))  # type: ignore[operator]
    decoded = net.decode(quantised)  # type: ignore[operator]
    decoded = (decoded[:, :1] if first_channel else decoded.mean(1, keepdim=True)).clamp(-1, 1)
    mine = tokenizer.encode(pixels)
    assert mine.unique().numel() > 16
    assert torch.equal(mine.flatten(), codes)
    assert decoded.abs().lt(1).float().mean() > 0.3  # the comparison is not one of clamped pixels
    torch.testing.assert_close(tokenizer.decode(mine), decoded, atol=1e-4, rtol=0)


@pytest.mark.parametrize("case", CASES)
def test_a_taming_file_tokenizes_as_its_own_network(case: str, tmp_path: Path) -> None:
    net, _ = published(**CASES[case])
    state = {
        **net.state_dict(),
        "loss.perceptual_loss.lin0.model.1.weight": torch.zeros(1, 64, 1, 1),
    }
    torch.save({"state_dict": state, "epoch": 3, "global_step": 9}, path := tmp_path / "last.ckpt")
    tokenizer = load_tokenizer(path, image_size=32)
    assert tokenizer.codebook_size == 64
    assert not any(p.requires_grad for p in tokenizer.parameters())
    assert_same(tokenizer, net, images())


def test_torchxrayvision_tokenizes_as_its_own_class(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its wrapper class, from a checkpoint and a yaml as it publishes them, on its own range
    [-1024, 1024].
    """
    net, config = published()
    torch.save({"state_dict": net.state_dict()}, tmp_path / "theirs.ckpt")
    lines = [
        "model:",
        "  params:",
        f"    n_embed: {config['n_embed']}",
        f"    embed_dim: {config['embed_dim']}",
    ]
    lines.append("    ddconfig:")
    for key, value in config["ddconfig"].items():
        lines += (
            [f"      {key}:", *(f"      - {v}" for v in value)]
            if isinstance(value, list)
            else [f"      {key}: {value}"]
        )
    (tmp_path / "theirs.yaml").write_text("\n".join(lines) + "\n")
    theirs = ieee8023.VQGAN(
        ckpt_path=str(tmp_path / "theirs.ckpt"), yaml_path=str(tmp_path / "theirs.yaml")
    )
    torch.save(theirs.state_dict(), path := tmp_path / "vqgan.pt")

    tokenizer = load_tokenizer(path, image_size=32)
    pixels = images()
    assert_same(tokenizer, theirs.model, pixels, first_channel=True)
    with torch.no_grad():
        decoded = theirs.decode(theirs.encode(pixels * 1024)) / 1024
    ours = tokenizer.decode(tokenizer.encode(pixels))
    torch.testing.assert_close(ours, decoded, atol=1e-4, rtol=0)
    assert published_shape(path)[0]["image_size"] == 768
    assert load_tokenizer(path, default_image_size=32).grid == 384


def test_safetensors_and_a_stored_image_size(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    net, _ = published()
    save_file(net.state_dict(), path := tmp_path / "vqgan.safetensors")
    with pytest.raises(
        UserError, match=r"vqgan.safetensors .*does not say its image size.*--image-size"
    ):
        load_tokenizer(path)
    assert_same(load_tokenizer(path, default_image_size=32), net, images())
    torch.save({"state_dict": net.state_dict(), "image_size": 32}, path := tmp_path / "vqgan.pt")
    assert_same(load_tokenizer(path, default_image_size=64), net, images())
    assert load_tokenizer(path, image_size=64).grid == 32
    with pytest.raises(UserError, match="multiples of 2, not 33"):
        load_tokenizer(path, image_size=33)


def test_a_corpus_is_tokenized_by_a_published_net(
    corpus_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    net, _ = published()
    torch.save(net.state_dict(), path := tmp_path / "vqgan.pt")
    out = tmp_path / "tokens"
    arguments = f"tokenize --corpus {corpus_path} --tokenizer {path} --out {out}".split()
    assert main([*arguments, "--image-size", "64"]) == 1
    assert "holds 32² images" in (message := capsys.readouterr().err)
    assert "takes 64²" in message
    assert main([*arguments, "--device", "cpu"]) == 0
    assert "as 256 codes each" in capsys.readouterr().out


def test_attention_stays_at_its_level_at_another_size(tmp_path: Path) -> None:
    net, _ = published()
    torch.save(net.state_dict(), path := tmp_path / "vqgan.pt")
    assert published_shape(path, 64)[0]["attention_resolutions"] == [32]
    assert_same(load_tokenizer(path, image_size=64), net, images(size=64))


def test_training_continues_from_a_published_net(tmp_path: Path) -> None:
    """Shape and weights fit a VQGAN; a step moves its codes a little and revives none of them."""
    net, _ = published()
    torch.save(net.state_dict(), path := tmp_path / "vqgan.pt")
    autoencoder, quantizer = published_shape(path, 32)
    module = VQGAN(autoencoder, {**quantizer, "decay": 0.9}, gan_weight=0)
    module.tokenizer.load_state_dict(published_weights(path))
    before = module.tokenizer.quantizer.codebook.clone()
    torch.testing.assert_close(before, net.quantize.embedding.weight, atol=0, rtol=0)
    decoded, _, commitment = module(images())
    (decoded.square().mean() + commitment).backward()
    assert all(
        p.grad is not None and p.grad.isfinite().all() for p in module.tokenizer.parameters()
    )
    moved = (module.tokenizer.quantizer.codebook - before).norm(dim=1) / before.norm(dim=1)
    assert 0 < moved.max() < 0.3


def test_the_defaults_are_what_they_were() -> None:
    """Names and shapes of the weights that checkpoints of before these arguments hold."""
    net = Autoencoder(**SMALL)
    kinds = [type(block).__name__ for block in net.encoder]
    assert kinds == [
        "PixelUnshuffle",
        "Conv2d",
        "ResidualBlock",
        "Conv2d",
        "ResidualBlock",
        "AttentionBlock",
        "ResidualBlock",
        "AttentionBlock",
        "ResidualBlock",
        "GroupNorm",
        "SiLU",
        "Conv2d",
    ]
    assert net.encoder[3].padding == (1, 1)
    assert net.encoder[2].norm1.num_groups == 2
    assert net.state_dict().keys() == Autoencoder(**net.config).state_dict().keys()
    narrow, same = Quantizer(16, 8, 4), Quantizer(16, 8, 8)
    assert isinstance(narrow.project_in, nn.Module)
    assert isinstance(same.project_out, nn.Identity)
    with pytest.raises(ValueError, match=r"codes of width 4 .* latents of width 8"):
        Quantizer(16, 8, 4, project=False)


@pytest.fixture
def ours(tmp_path: Path) -> Iterator[tuple[Path, VQGAN]]:
    module = VQGAN(SMALL, {"codebook_size": 16, "code_dim": 4, "kmeans": False}, gan_weight=0)
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    trainer.strategy.connect(module)
    trainer.save_checkpoint(tmp_path / "ours.ckpt")
    yield tmp_path / "ours.ckpt", module


def test_a_checkpoint_of_ours_has_its_own_size(ours: tuple[Path, VQGAN]) -> None:
    path, module = ours
    pixels = images(size=16)
    tokenizer = load_tokenizer(path, default_image_size=32)
    assert torch.equal(tokenizer.encode(pixels), module.eval().tokenizer.encode(pixels))
    with pytest.raises(UserError, match=r"trained on images of 16².*asked for 32²"):
        load_tokenizer(path, image_size=32)
    with pytest.raises(UserError, match="checkpoint of our own VQGAN"):
        published_shape(path)
    with pytest.raises(ValueError, match=r"1 channel.* given 3"):
        tokenizer.encode(pixels.repeat(1, 3, 1, 1))
    with pytest.raises(ValueError, match=r"1 × 16 × 16 .* given 1 × 32 × 32"):
        tokenizer.encode(images())


def test_an_error_about_other_settings_describes_them(ours: tuple[Path, VQGAN]) -> None:
    checkpoint = torch.load(ours[0], weights_only=True)

    def message(autoencoder: dict, quantizer: dict) -> str:
        with pytest.raises(UserError) as caught:
            quantizer = {"codebook_size": 16, "code_dim": 4, "kmeans": False, **quantizer}
            check_compatible(checkpoint, VQGAN({**SMALL, **autoencoder}, quantizer, gan_weight=0))
        return str(caught.value)

    text = message({}, {"codebook_size": 2048})
    assert "codebook of 16 codes in the checkpoint, codebook of 2,048 codes in the config" in text
    assert "(model.init_args.quantizer.codebook_size)" in text
    # Neither of these two changes the shape of a weight.
    assert (
        "image size of 16 pixels in the checkpoint, image size of 32 pixels in the config"
        in message({"image_size": 32, "attention_resolutions": [16]}, {})
    )
    assert "group norm of None groups in the checkpoint, group norm of 1 groups" in message(
        {"groups": 1}, {}
    )
    text = message({"channels": 16}, {"code_dim": 8})
    assert "8 channels at the first level in the checkpoint, 16 channels" in text
    assert "codes of width 4" in text
    assert "weights differ" in message({"attention_resolutions": []}, {})
    check_compatible(checkpoint, ours[1])


def refused(path: Path, *, match: str) -> None:
    with pytest.raises(UserError, match=match) as caught:
        load_tokenizer(path, image_size=32)
    assert path.name in str(caught.value)


def test_files_that_are_no_tokenizer(tmp_path: Path) -> None:
    path = tmp_path / "file.pt"
    refused(path, match="do not exist")
    torch.save({"state_dict": {"layer.weight": torch.zeros(2), "layer.bias": torch.zeros(2)}}, path)
    refused(
        path,
        match=r"found weights such as layer.weight, layer.bias\); expected one of VQGAN "
        r".*taming.*torchxrayvision",
    )
    torch.save(torch.zeros(3), path)
    refused(path, match="holds a Tensor; expected a state dict")
    path.write_bytes(b"no weights at all")
    refused(path, match="not a readable checkpoint .* 17 bytes")
    path.write_bytes(b"")
    refused(path, match="not a readable checkpoint .* 0 bytes")
    refused(tmp_path, match="is a folder")


def test_pickled_objects_are_not_opened(tmp_path: Path) -> None:
    """The published checkpoints hold Lightning's callbacks; the message says how to make a file
    without.
    """
    torch.save({"state_dict": {}, "callbacks": {"x": Trap()}}, path := tmp_path / "last.ckpt")
    refused(
        path,
        match=r"pickled objects \(\S*Trap\).*"
        r"torchxrayvision as xrv; torch.save\(xrv.baseline_models",
    )
    assert not Trap.opened


class Trap:
    opened = False

    def __setstate__(self, state: Any) -> None:
        Trap.opened = True

    def __getstate__(self) -> dict[str, int]:
        return {"a": 1}


@pytest.mark.parametrize("prefix", ["", "model."])
def test_damaged_and_foreign_networks(prefix: str, tmp_path: Path) -> None:
    net, _ = published()
    state = {prefix + key: value for key, value in net.state_dict().items()}
    path = tmp_path / "file.pt"

    def without(*keys: str, **more: Tensor) -> dict[str, Tensor]:
        kept = (
            {
                k: v
                for k, v in state.items()
                if not k.startswith(tuple(prefix + key for key in keys))
            }
            if keys
            else state
        )
        return {**kept, **{prefix + k.replace("__", "."): v for k, v in more.items()}}

    torch.save(state, path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    refused(path, match="not a readable checkpoint")
    for keys, match in [
        (["quantize.embedding"], "lacks quantize.embedding.weight.*codebook"),
        (
            ["encoder.down.0.block.0.norm2.bias"],
            "lacks encoder.down.0.block.0.norm2.bias; the file is incomplete",
        ),
        (["encoder.down"], "lacks encoder.down.0.block.0.conv1.weight"),
        (["encoder.down.0.downsample"], "lacks encoder.down.0.downsample.conv.weight"),
        (["decoder.up.1.attn"], "lacks decoder.up.1.attn.0.norm.weight"),
        (["post_quant_conv"], "lacks post_quant_conv.weight"),
    ]:
        torch.save(without(*keys), path)
        refused(path, match=match)
    torch.save(without(encoder__extra__weight=torch.zeros(2)), path)
    refused(path, match="1 weights that .* such as encoder.extra.weight")
    torch.save(without(encoder__conv_in__weight=torch.zeros(32, 4, 3, 3)), path)
    refused(path, match="takes 4 channels and gives 3")
    torch.save(without(encoder__conv_out__weight=torch.zeros(48, 64, 3, 3)), path)
    refused(path, match="ends in 48 channels, quant_conv takes 24")
    torch.save(without(encoder__mid__block_1__conv1__weight=torch.zeros(64, 32, 3, 3)), path)
    refused(path, match=r"\(64, 32, 3, 3\) in the file and \(64, 64, 3, 3\) here")


@pytest.mark.slow
def test_training_starts_from_a_published_net(
    corpus_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One step at no learning rate: the checkpoint is the published net, and loads without the file
    it started from.
    """
    net, config = published()
    torch.save(net.state_dict(), start := tmp_path / "vqgan.pt")
    settings = {
        "init_from": start,
        "autoencoder": "{image_size: 32}",
        "learning_rate": 1e-30,
        "gan_weight": 0,
    }
    words = [
        "fit",
        "--config=vqgan.yaml",
        *QUIET,
        f"--data.corpora=[{corpus_path}]",
        "--data.augment=false",
        "--data.num_workers=0",
        "--trainer.max_steps=1",
        "--trainer.limit_val_batches=0",
        f"--trainer.default_root_dir={tmp_path}",
        *(f"--model.init_args.{key}={value}" for key, value in settings.items()),
    ]
    held = "--model.init_args.quantizer={decay: 1.0, dead_code_threshold: 0}"
    assert main([*words, held]) == 0
    start.unlink()
    assert_same(load_tokenizer(tmp_path / "checkpoints" / "last.ckpt"), net, images())

    torch.save(net.state_dict(), start)
    wrong = "--model.init_args.quantizer={codebook_size: 7}"
    assert main([*words, wrong, f"--trainer.default_root_dir={tmp_path}/other"]) == 1
    message = " ".join(capsys.readouterr().err.split())
    assert f"quantizer.codebook_size is 7 and {config['n_embed']} in" in message
