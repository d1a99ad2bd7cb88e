"""Training of the tokenizer: two optimizers, and every step counted is a step of the generator.

Shape legend: B batch, H W height and width in pixels, N codes of an image, h w feature map.
"""

from __future__ import annotations

from typing import Annotated, Any

import torch
from annotated_types import Ge, Le
from lightning import LightningModule
from torch import Tensor

from mavilt_pl.checkpoint import check_compatible
from mavilt_pl.encoders.loading import Kind
from mavilt_pl.errors import UserError
from mavilt_pl.parallel.distributed import all_reduce_sum, rank_and_size
from mavilt_pl.ranges import (
    ArgumentsOf,
    Decay,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    Size,
)
from mavilt_pl.vqgan.autoencoder import Autoencoder
from mavilt_pl.vqgan.clinical_losses import ClinicalTerms, load_phi
from mavilt_pl.vqgan.discriminator import Discriminator
from mavilt_pl.vqgan.finite_check import check_finite
from mavilt_pl.vqgan.image_gradient import ImageGradient
from mavilt_pl.vqgan.loading import load_published_weights, merge_published_shape
from mavilt_pl.vqgan.losses import gradient_term, hinge_discriminator, reconstruction_term
from mavilt_pl.vqgan.optimizers import build_optimizers
from mavilt_pl.vqgan.quantizer import Quantizer
from mavilt_pl.vqgan.tokenizer import Tokenizer

Scalars = dict[str, Tensor]
Settings = dict[str, Any] | None


class VQGAN(LightningModule):
    """The clinical gradient-weighted VQ-GAN.

    L = |x − x̂|₁ + λ_grad ‖∇x − ∇x̂‖² + λ_feat ‖φ(x) − φ(x̂)‖² + β commitment + adaptive
    adversarial  (arXiv 2502.05926)

    A term whose λ is 0 is not computed. `max_steps`, schedules, `gan_start` and every log count
    generator steps: the discriminator's optimizer is stepped without Lightning's counter
    (Lightning-AI/pytorch-lightning#17958). The discriminator learns from the generator's
    reconstruction, so the autoencoder runs once per batch. For averaged weights in validation and
    in checkpoints, add `lightning.pytorch.callbacks.EMAWeightAveraging`.

    Args:
        autoencoder: arguments of `Autoencoder`.
        quantizer: arguments of `Quantizer` (all but `latent_dim`).
        encoder: weights of φ; required by the clinical terms (the keys below but lambda_grad).
        encoder_kind: classifier | torchxrayvision | huggingface.
        lambda_grad: λ_grad; no chest-radiograph source exists (sweep 0.1 to 10).
        lambda_feat: λ_feat on φ's feature maps; its scale depends on φ's: 3 for our classifier
            (EXPERIMENTS.md), 100 on pooled torchxrayvision features in LLM-CXR (arXiv 2305.11490).
        lambda_finding: weight of the cross-entropy between φ's findings on x and on x̂, the part of
            φ's features that a radiologist would name; 0.3 keeps small findings (EXPERIMENTS.md).
        finding_weight: how much more |x − x̂| counts where φ reads a finding
            (`clinical_losses.finding_map`); needs our classifier.
        clinical_input: let the tokenizer's encoder see φ's last map; needs our classifier.
        feature_blur_sigma: φ compares both images through one Gaussian blur of a random standard
            deviation up to this many pixels, so that patterns too fine to be a finding gain nothing
            (EXPERIMENTS.md); about half the width of the smallest finding.
        gan_weight: of the adversarial term, times its adaptive weight (taming: 0.8); 0 builds no
            discriminator.
        gan_start: the generator step at which the discriminator starts.
        discriminator: arguments of `Discriminator`.
        learning_rate: of both optimizers; the default is for training from scratch (LlamaGen, arXiv
            2406.06525), as those of the next two keys.
        betas: of AdamW for the tokenizer; the discriminator's are (0.5, 0.9).
        gradient_clip_norm: of each optimizer's gradients.
        warmup: steps of linear warm-up, then a cosine down to a hundredth.
        accumulate_grad_batches: batches whose gradients make one step. (Lightning's own key is for
            automatic optimisation only.)
        compile: torch.compile for encoder, decoder and discriminator; worth its minutes on a GPU.
        channels_last: memory format of images and convolutions; faster with bf16 on a GPU, slower
            on a CPU.
        init_from: a local file of a published VQ-GAN (see `taming`) to continue training. Set
            autoencoder.image_size if the file does not say it; for fine-tuning, learning_rate
            4.5e-6 and betas (0.5, 0.9) (LLM-CXR, arXiv 2305.11490).

    Raises:
        UserError: settings contradict each other, or a file of weights cannot be used.
    """

    automatic_optimization = False

    def __init__(
        self,
        autoencoder: Annotated[Settings, ArgumentsOf(Autoencoder)] = None,
        quantizer: Annotated[Settings, ArgumentsOf(Quantizer, without=("latent_dim",))] = None,
        encoder: str | None = None,
        encoder_kind: Kind = "classifier",
        lambda_grad: NonNegativeFloat = 1.0,
        lambda_feat: NonNegativeFloat = 0.0,
        lambda_finding: NonNegativeFloat = 0.0,
        finding_weight: NonNegativeFloat = 0.0,
        clinical_input: bool = False,
        feature_blur_sigma: Annotated[float, Ge(0), Le(64)] = 0.0,
        gan_weight: NonNegativeFloat = 0.8,
        gan_start: NonNegativeInt = 10_000,
        discriminator: Annotated[Settings, ArgumentsOf(Discriminator)] = None,
        learning_rate: PositiveFloat = 1e-4,
        betas: tuple[Decay, Decay] = (0.9, 0.95),
        gradient_clip_norm: PositiveFloat = 1.0,
        warmup: NonNegativeInt = 100,
        accumulate_grad_batches: Size = 1,
        compile: bool = False,
        channels_last: bool = False,
        init_from: str | None = None,
    ):
        super().__init__()
        self.save_hyperparameters()
        # In a list, φ is neither part of the state dict nor seen by Lightning.
        self._phi = load_phi(self.hparams)
        shape, codes = autoencoder or {}, quantizer or {}
        if init_from is not None:
            shape, codes = merge_published_shape(init_from, shape, codes)
        clinical = self._phi[0].config if clinical_input else None
        self.tokenizer = Tokenizer(shape, codes, clinical)
        if init_from is not None:
            load_published_weights(self.tokenizer, init_from)
        if self.tokenizer.clinical is not None:
            # The tokenizer owns the encoder then: it is saved, and needed to encode.
            self.tokenizer.clinical.load_state_dict(self._phi[0].state_dict())
            self._phi = [self.tokenizer.clinical]
        self.discriminator: Any = None
        if gan_weight > 0:
            self.discriminator = Discriminator(**(discriminator or {}))

    @property
    def phi(self) -> Any:
        """The frozen clinical encoder on this module's device; None if no term needs it."""
        return self._phi[0].to(self.device) if self._phi else None

    def setup(self, stage: str) -> None:
        """Check the precision; compile and set the memory format if asked for."""
        if self.trainer.precision == "16-mixed":
            raise UserError(
                "trainer.precision 16-mixed overflows in the adversarial term; use bf16-mixed, or "
                "32-true on cards without bf16"
            )
        # Lightning accepts its own key for automatic optimisation only, but its loops count steps
        # by it all the same.
        self.trainer.accumulate_grad_batches = self.hparams["accumulate_grad_batches"]
        # The quantizer stays uncompiled: it waits for the device and draws random numbers.
        networks = [self.tokenizer.autoencoder.encoder, self.tokenizer.autoencoder.decoder]
        if self.discriminator is not None:
            networks.append(self.discriminator.net)
        if self.hparams["channels_last"]:
            self.to(memory_format=torch.channels_last)
        if self.hparams["compile"] and stage == "fit":
            for network in networks:
                network.compile()

    def forward(
        self, pixels_BCHW: Tensor, maps: list[Tensor] | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Reconstruction float32 [B,1,H,W], codes int64 [B,N], commitment term."""
        latents_BDhw = self.tokenizer.latents(pixels_BCHW, maps)
        quantised_BDhw, codes_BN, commitment = self.tokenizer.quantizer(latents_BDhw)
        # Losses in float32, whatever the networks' precision.
        return self.tokenizer.autoencoder.decode(quantised_BDhw).float(), codes_BN, commitment

    # The terms of the loss.

    def terms(self, pixels_BCHW: Tensor) -> tuple[Scalars, Tensor, Tensor]:
        """Weighted terms of the loss by name, the reconstruction [B,1,H,W] and the codes [B,N].

        The adversarial term is not among them: its weight depends on the others.
        """
        h = self.hparams
        clinical = ClinicalTerms(self.phi, h, self.global_step) if self._phi else None
        # Shared by the encoder's clinical input, the pixel weights and the comparison.
        maps = clinical.maps_of_originals(pixels_BCHW) if clinical else None
        recon_BCHW, codes_BN, commitment = self(pixels_BCHW, maps)
        weight_B1HW = clinical.pixel_weight(maps, pixels_BCHW.shape[-1]) if clinical else None
        terms = {
            "l1": reconstruction_term(pixels_BCHW, recon_BCHW, weight_B1HW),
            "commitment": commitment,
        }
        if h["lambda_grad"] > 0:
            terms["gradient"] = h["lambda_grad"] * gradient_term(pixels_BCHW, recon_BCHW)
        if clinical:
            terms |= clinical.comparisons(pixels_BCHW, recon_BCHW, maps)
        return terms, recon_BCHW, codes_BN

    # Training.

    def training_step(self, batch: dict, index: int) -> dict[str, Tensor]:
        """One batch through both networks; returns codes and reconstruction to the callbacks.

        The optimizers step at every `accumulate_grad_batches`-th batch.
        """
        optimizers = self._as_list(self.optimizers())
        schedules = self._as_list(self.lr_schedulers())
        # Lightning 2.6 has no public name for "this batch makes a step".
        stepping = not self.trainer.fit_loop.epoch_loop._should_accumulate()
        has_discriminator = self.discriminator is not None
        # Before `gan_start` it would learn nothing but the reconstruction's blur (taming).
        adversarial = has_discriminator and self.global_step >= self.hparams["gan_start"]
        # + 1: `global_step` counts finished steps, and this one ends below.
        logs_now = stepping and (self.global_step + 1) % self.trainer.log_every_n_steps == 0
        pixels_BCHW = batch["pixels"]

        # `sync_grad` makes DDP reduce gradients only at batches that make a step.
        with optimizers[0].toggle_model(sync_grad=stepping):
            terms, recon_BCHW, codes_BN = self.terms(pixels_BCHW)
            # g at the image replaces a second pass through φ and D, see `image_gradient`.
            gradient = ImageGradient(terms, recon_BCHW, self.tokenizer.autoencoder.last_layer)
            gradient.add_reconstruction(per_term=logs_now)
            if adversarial:
                gradient.add_adversarial(self.discriminator, self.hparams["gan_weight"])
            logged = {"loss": torch.stack(list(terms.values())).sum(), **terms}
            if logs_now:
                logged |= gradient.shares()
            surrogate = gradient.surrogate()
            self.manual_backward(surrogate / self.hparams["accumulate_grad_batches"])
        checked = dict(terms)
        if adversarial:
            with optimizers[1].toggle_model(sync_grad=stepping):
                # The reconstruction from before the generator's step: no second pass.
                images = (pixels_BCHW, recon_BCHW.detach())
                logged |= self._discriminator_loss(images)
            checked["discriminator"] = logged["discriminator"]
        # The second optimizer without Lightning's counter, see the class's text.
        stepped = {"generator": optimizers[0]}
        if adversarial:
            stepped["discriminator"] = optimizers[1].optimizer
        # Clipped before the check, since the norm is what is checked.
        norms: Scalars = {}
        if stepping:
            for name, optimizer in stepped.items():
                norms[f"gradient of the {name}"] = self._clip(optimizer)
                logged[f"gradient_norm/{name}"] = norms[f"gradient of the {name}"]
        # Once for all, and before any weight is touched: the host waits for the device here.
        check_finite(checked, norms, batch, self.global_step)
        if stepping:
            for optimizer, schedule in zip(stepped.values(), schedules):
                optimizer.step()
                optimizer.zero_grad()
                schedule.step()
        if logs_now:
            self._log_means(logged)
        return {"codes": codes_BN, "reconstruction": recon_BCHW.detach()}

    def _discriminator_loss(self, images: tuple[Tensor, Tensor]) -> Scalars:
        """Loss of the discriminator on originals and reconstructions, [B,1,H,W] each; backward."""
        # Not one batch of both halves: two ranks then differed from one by 3e-4 after ten steps.
        real_logits = self.discriminator(images[0]).float()
        recon_logits = self.discriminator(images[1]).float()
        loss = hinge_discriminator(real_logits, recon_logits)
        self.manual_backward(loss / self.hparams["accumulate_grad_batches"])
        # The share of patches that it judges right: near 1 the generator has lost, near 0.5 the
        # discriminator is guessing.
        on_real, on_recon = (real_logits > 0).float(), (recon_logits < 0).float()
        right = 0.5 * (on_real.mean() + on_recon.mean())
        return {"discriminator": loss, "discriminator_right": right}

    def _log_means(self, values: Scalars) -> None:
        """Log means over the ranks at the number of generator steps; Lightning counts batches."""
        stacked = torch.stack([value.detach().float() for value in values.values()])
        means = all_reduce_sum(stacked) / rank_and_size()[1]
        named: Scalars = {}
        for name, mean in zip(values, means):
            named[f"train/{name}"] = mean
        # For callbacks and the progress bar; the loggers get the generator's step number below.
        self.log_dict(named, logger=False)
        self.log("loss", named["train/loss"], logger=False, prog_bar=True)
        numbers = {name: float(mean) for name, mean in named.items()}
        for logger in self.loggers:
            logger.log_metrics(numbers, self.global_step)

    def _clip(self, optimizer: Any) -> Tensor:
        """Clip the gradient's norm to `gradient_clip_norm`; return the norm before clipping."""
        # By optimizer groups: the module's own list has the frozen φ.
        weights = []
        for group in optimizer.param_groups:
            weights += group["params"]
        return torch.nn.utils.clip_grad_norm_(weights, self.hparams["gradient_clip_norm"])

    @staticmethod
    def _as_list(value: Any) -> list[Any]:
        return value if isinstance(value, list) else [value]

    # Evaluation, optimizers and checkpoints.

    def validation_step(
        self, batch: dict, index: int, dataloader_idx: int = 0
    ) -> dict[str, Tensor]:
        """Log PSNR in dB and L1; return reconstruction and codes to the callbacks."""
        pixels_BCHW = batch["pixels"]
        recon_BCHW, codes_BN, _ = self(pixels_BCHW)
        # Pixels outside the range cannot be shown, so they do not count as error.
        recon_BCHW = recon_BCHW.clamp(-1, 1)
        # Not `metrics.image.psnr`, which scales before the mean: logged curves must not change in
        # their last digit between versions.
        error_BCHW = recon_BCHW - pixels_BCHW
        error_B = error_BCHW.square().mean((1, 2, 3)).clamp(min=1e-10)
        source = self.trainer.datamodule.names[dataloader_idx]
        logged = {
            f"val/{source}/psnr": 10 * torch.log10(4 / error_B).mean(),
            f"val/{source}/l1": error_BCHW.abs().mean(),
        }
        self.log_dict(
            logged,
            prog_bar=True,
            sync_dist=True,
            batch_size=len(pixels_BCHW),
            add_dataloader_idx=False,
        )
        return {"reconstruction": recon_BCHW, "codes": codes_BN}

    def test_step(self, batch: dict, index: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Return reconstruction and codes to the callbacks."""
        recon_BCHW, codes_BN, _ = self(batch["pixels"])
        return {"reconstruction": recon_BCHW.clamp(-1, 1), "codes": codes_BN}

    def configure_optimizers(self) -> Any:
        """AdamW for both networks, each with warm-up and cosine."""
        steps = int(self.trainer.estimated_stepping_batches)
        return build_optimizers(self.tokenizer, self.discriminator, self.hparams, steps)

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        """Refuse weights of another network."""
        check_compatible(checkpoint, self)

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        """Save the arguments in use, also those that came from a published file."""
        # Shape and frozen encoder are saved as arguments, so that `load_tokenizer` needs no config.
        clinical = self.tokenizer.clinical
        checkpoint["clinical"] = None if clinical is None else clinical.config
        checkpoint["autoencoder"] = self.tokenizer.autoencoder.config
        checkpoint["quantizer"] = self.tokenizer.quantizer.config
