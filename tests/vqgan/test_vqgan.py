"""The tokenizer's parts by hand on tiny tensors, and its training through the command line."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from torch.utils.data import DataLoader

from mavilt_pl.cli import main
from mavilt_pl.data.corpus import Corpus
from mavilt_pl.data.token_cache import TokenCache
from mavilt_pl.errors import UserError
from mavilt_pl.vqgan import losses
from mavilt_pl.vqgan.autoencoder import Autoencoder
from mavilt_pl.vqgan.clinical_losses import blurred
from mavilt_pl.vqgan.loading import load_tokenizer
from mavilt_pl.vqgan.module import VQGAN
from mavilt_pl.vqgan.tokenizer import Tokenizer

SMALL = {
    "image_size": 16,
    "channels": 8,
    "channel_multipliers": [1, 2],
    "num_res_blocks": 1,
    "attention_resolutions": [8],
    "latent_dim": 8,
}


def test_loss_terms_by_hand() -> None:
    real = torch.tensor([[[[0.0, 1.0], [0.0, 0.0]]]])
    recon = torch.tensor([[[[0.0, 0.0], [0.0, 0.5]]]])
    assert losses.reconstruction_term(real, recon) == pytest.approx(1.5 / 4)
    weight = torch.tensor([[[[0.0, 2.0], [1.0, 1.0]]]])
    assert losses.reconstruction_term(real, recon, weight) == pytest.approx(2.5 / 4)
    # Across: 1 against 0, 0 against 0.5. Down: 0 against 0, -1 against 0.5.
    assert losses.gradient_term(real, recon) == pytest.approx((1 + 0.25) / 2 + (0 + 2.25) / 2)
    assert losses.feature_term([real, real[..., :1]], [recon, recon[..., :1]]) == pytest.approx(
        1.25 / 4 / 2
    )
    logits = torch.tensor([2.0, 0.5]), torch.tensor([-3.0, 0.0])
    assert losses.hinge_discriminator(*logits) == pytest.approx(0.5 * (0.25 + 0.5))


def test_adaptive_weight_by_hand() -> None:
    layer = torch.nn.Parameter(torch.tensor([3.0]))
    weight = losses.adaptive_weight(4 * layer.sum(), 0.5 * layer.sum(), layer)
    assert weight.item() == pytest.approx(4 / (0.5 + 1e-4))
    assert not weight.requires_grad


@pytest.mark.parametrize("patch", [1, 2])
def test_shapes_and_refusals(patch: int) -> None:
    net = Autoencoder(**{**SMALL, "patch": patch})
    latents = net.encode(torch.zeros(2, 1, 16, 16))
    assert latents.shape == (2, 8, 8 // patch, 8 // patch)
    assert net.decode(latents).shape == (
        2,
        1,
        16,
        16,
    )
    with pytest.raises(ValueError, match="--size 16"):
        net.encode(torch.zeros(2, 1, 32, 32))
    with pytest.raises(ValueError, match="not a multiple of 4"):
        Autoencoder(**{**SMALL, "image_size": 18, "patch": 2})


def test_the_default_is_the_published_shape() -> None:
    """256² pixels, factor 16, 256 channels of latent."""
    with torch.device("meta"):
        net = Autoencoder()
        latents = net.encode(torch.zeros(1, 1, 256, 256))
        assert latents.shape == (1, 256, 16, 16)
        assert net.decode(latents).shape == (1, 1, 256, 256)


def test_clinical_terms_need_an_encoder() -> None:
    with pytest.raises(UserError, match="need an encoder"):
        VQGAN(SMALL, {"codebook_size": 16}, lambda_feat=1.0)


@pytest.mark.slow
def test_every_count_is_of_generator_steps(chain: Path) -> None:
    """Six steps with the discriminator from step 2 on: global_step, the file names and both
    schedules say six.
    """
    checkpoint = torch.load(chain / "vqgan/checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 6
    assert (chain / "vqgan/checkpoints/step=6.ckpt").exists()
    generator, discriminator = checkpoint["lr_schedulers"]
    assert generator["last_epoch"] == 6
    assert discriminator["last_epoch"] == 4
    steps = [state["state"][0]["step"].item() for state in checkpoint["optimizer_states"]]
    assert steps == [6, 4]


@pytest.mark.slow
def test_the_saved_tokenizer_is_the_trained_one(chain: Path) -> None:
    tokenizer = load_tokenizer(chain / "vqgan/checkpoints/last.ckpt")
    assert isinstance(tokenizer, Tokenizer)
    assert tokenizer.clinical is not None
    pixels = torch.rand(3, 1, 32, 32) * 2 - 1
    codes = tokenizer.encode(pixels)
    assert codes.shape == (3, 16)
    assert codes.max() < 32
    assert torch.equal(codes[1:2], tokenizer.encode(pixels[1:2]))
    assert tokenizer.decode(codes).abs().max() <= 1
    with pytest.raises(ValueError, match="16 codes, found 9"):
        tokenizer.decode(codes[:, :9])


def test_an_encoder_without_findings_has_no_term_of_findings(tmp_path: Path) -> None:
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=8,
        image_size=32,
    )
    ViTModel(config).save_pretrained(tmp_path)
    with pytest.raises(
        UserError, match=r"lambda_finding 0.1: the encoder .* has no outputs for findings"
    ):
        VQGAN(
            SMALL,
            {"codebook_size": 16},
            encoder=str(tmp_path),
            encoder_kind="huggingface",
            lambda_finding=0.1,
        )


def test_blur_against_scipy() -> None:
    from scipy.ndimage import gaussian_filter

    deviation = 1.6 * float(torch.rand((), generator=torch.Generator().manual_seed(7))) + 1e-3
    pixels = torch.linspace(-1, 1, 2 * 9 * 11).sin().view(2, 1, 9, 11)
    (recon,) = blurred((pixels,), 1.6, 7)
    for image, other in zip(pixels, recon):
        expected = gaussian_filter(image[0].numpy(), deviation, mode="nearest", radius=5)
        torch.testing.assert_close(other[0], torch.from_numpy(expected), atol=1e-5, rtol=0)


def test_the_gradient_is_that_of_the_loss_as_written(chain: Path) -> None:
    """What `training_step` leaves at the weights against autograd of the sum of all terms, with the
    discriminator on.
    """
    shape = {
        "image_size": 64,
        "channels": 8,
        "channel_multipliers": [1, 2],
        "num_res_blocks": 1,
        "attention_resolutions": [],
        "latent_dim": 8,
    }
    phi = str(chain / "encoder/checkpoints/last.ckpt")
    shared = {
        "encoder": phi,
        "lambda_feat": 1.0,
        "lambda_finding": 0.5,
        "gan_start": 0,
        "gradient_clip_norm": 1e9,
    }

    def built() -> VQGAN:
        return VQGAN(
            shape,
            {"codebook_size": 16, "kmeans": False},
            discriminator={"channels": 8, "layers": 1},
            **shared,
        )  # type: ignore[arg-type]

    class Spy(lightning.Callback):
        def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
            found.update(
                {
                    name: p.grad.clone()
                    for name, p in module.tokenizer.named_parameters()
                    if p.grad is not None
                }
            )

    found: dict[str, torch.Tensor] = {}
    torch.manual_seed(0)
    module, plain = built(), built()
    plain.load_state_dict(module.state_dict())
    pixels = torch.rand(2, 1, 64, 64) * 2 - 1
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_steps=1,
        logger=False,
        callbacks=[Spy()],
        log_every_n_steps=1,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader([{"pixels": pixels, "studies": []}], batch_size=None))

    plain.train()
    terms, recon, _ = plain.terms(pixels)
    adversarial = -plain.discriminator(recon).mean()  # type: ignore[misc]
    recon_loss = torch.stack([value for name, value in terms.items() if name != "commitment"]).sum()
    last = plain.tokenizer.autoencoder.last_layer
    weight = losses.adaptive_weight(recon_loss, adversarial, last)
    (
        recon_loss + terms["commitment"] + plain.hparams["gan_weight"] * weight * adversarial
    ).backward()
    assert len(terms) == 5
    assert weight > 0
    assert len(found) > 20
    for name, parameter in plain.tokenizer.named_parameters():
        if name in found:
            torch.testing.assert_close(found[name], parameter.grad, atol=1e-6, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_codes_are_the_same(chain: Path, corpus_path: Path, tmp_path: Path) -> None:
    words = f"tokenize --corpus {corpus_path} --tokenizer {chain}/vqgan --out {tmp_path}/t".split()
    assert main([*words, "--compile", "--device", "cpu"]) == 0
    compiled, eager = TokenCache(tmp_path / "t"), TokenCache(chain / "tokens")
    rows = range(Corpus(corpus_path).n_images)
    assert all((compiled[row] == eager[row]).all() for row in rows)
