"""Training the tokenizer: two optimizers, one clock. Every step counted anywhere is a step of the
generator.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from lightning import LightningModule
from torch import Tensor, nn

from mavilt_pl.checkpoint import check_compatible
from mavilt_pl.encoders.loading import Classifier, Kind, load_encoder
from mavilt_pl.errors import UserError
from mavilt_pl.parallel.distributed import all_reduce_sum, rank_and_size
from mavilt_pl.trainer.lr_schedule import warm_cosine
from mavilt_pl.vqgan.autoencoder import Autoencoder
from mavilt_pl.vqgan.clinical_losses import blurred, finding_map
from mavilt_pl.vqgan.discriminator import Discriminator
from mavilt_pl.vqgan.losses import (
    adaptive_weight,
    feature_term,
    gradient_term,
    hinge_discriminator,
    reconstruction_term,
)
from mavilt_pl.vqgan.quantizer import Quantizer


class Tokenizer(nn.Module):
    """Pixels to codes and back: what the rest of the chain uses of a trained VQ-GAN.

    With `clinical` (the shape of a `Classifier`), the encoder's last feature map is added to the
    latents before they are quantised, so that what the clinical encoder sees need not be found
    again by a network trained on pixels.
    """

    def __init__(
        self,
        autoencoder: Mapping[str, Any],
        quantizer: Mapping[str, Any],
        clinical: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        self.autoencoder = Autoencoder(**autoencoder)
        self.quantizer = Quantizer(**{**quantizer, "latent": self.autoencoder.latent})
        self.clinical = (
            Classifier(**clinical).eval().requires_grad_(False) if clinical is not None else None
        )
        if self.clinical is not None:
            self.adapter = nn.Conv2d(self.clinical.widths[-1], self.autoencoder.latent, 1)

    @property
    def grid(self) -> int:
        return self.autoencoder.grid

    @property
    def codes(self) -> int:
        return self.quantizer.codes

    def train(self, mode: bool = True) -> Tokenizer:
        super().train(mode)
        if self.clinical is not None:
            self.clinical.eval()
        return self

    def latents(self, pixels_BCHW: Tensor, maps: list[Tensor] | None = None) -> Tensor:
        """Latents before quantisation [B,D,h,w]; `maps` spares a second pass of the clinical
        encoder.
        """
        latents_BDhw = self.autoencoder.encode(pixels_BCHW)
        if self.clinical is None:
            return latents_BDhw
        if maps is None:
            with torch.no_grad():
                maps = self.clinical.maps(pixels_BCHW)
        return latents_BDhw + self.adapter(F.adaptive_avg_pool2d(maps[-1].detach(), self.grid))

    def encode(self, pixels_BCHW: Tensor) -> Tensor:
        """Pixels [B,1,H,W] in [-1,1] → codes int64 [B,N] in raster order."""
        return self.quantizer(self.latents(pixels_BCHW))[1]

    def decode(self, codes_BN: Tensor) -> Tensor:
        """Codes int64 [B,N] → pixels [B,1,H,W] in [-1,1]."""
        if codes_BN.shape[1] != self.grid**2:
            raise ValueError(
                f"an image of this tokenizer is {self.grid**2} codes, found {codes_BN.shape[1]}"
            )
        quantised = self.quantizer.lookup(codes_BN.view(-1, self.grid, self.grid))
        return self.autoencoder.decode(quantised).clamp(-1, 1)


class VQGAN(LightningModule):
    """The clinical gradient-weighted VQ-GAN.

    L = |x − x̂|₁ + λ_grad ‖∇x − ∇x̂‖² + λ_feat ‖φ(x) − φ(x̂)‖² + β commitment + adaptive
    adversarial  (arXiv 2502.05926)

    A λ of 0 leaves its term uncomputed. `max_steps`, schedules, `gan_start` and every log count
    generator steps: the discriminator's optimizer is stepped without Lightning's counter
    (Lightning-AI/pytorch-lightning#17958). The discriminator learns from the reconstruction that
    the generator's turn has made: the autoencoder runs once a batch. For averaged weights in
    validation and in what is kept, add `lightning.pytorch.callbacks.EMAWeightAveraging`.

    Args:
        autoencoder: arguments of `Autoencoder`.
        quantizer: arguments of `Quantizer` (all but `latent`).
        init_from: a local file of a published VQ-GAN (see `loading`) whose shape and weights training
            starts from. Give autoencoder.image_size where the file does not say it; fine-tuning:
            learning_rate 4.5e-6, betas (0.5, 0.9) (LLM-CXR, arXiv 2305.11490).
        encoder: weights of φ; needed where lambda_feat, lambda_finding, finding_weight or clinical_input is
            set.
        encoder_kind: classifier | torchxrayvision | huggingface.
        lambda_grad: λ_grad, 1.0; no chest-radiograph source exists (swept 0.1 to 10 in the paper's
            family).
        lambda_feat: λ_feat on φ's feature maps; its size depends on φ's: 3 for our classifier
            (EXPERIMENTS.md); 100 on pooled torchxrayvision features in LLM-CXR (arXiv 2305.11490).
        lambda_finding: of the cross-entropy between φ's findings on x and on x̂: the end of φ's
            features that a radiologist would name; 0.3 keeps small findings (EXPERIMENTS.md).
        finding_weight: how much more |x − x̂| counts where φ reads a finding (`clinical.finding_map`); needs
            our classifier.
        clinical_input: let the tokenizer's encoder see φ's last map; needs our classifier.
        feature_blur_sigma: φ compares both images through one Gaussian blur of a random deviation up to so many
            pixels, so that no pattern too fine to be a finding pleases it (EXPERIMENTS.md); about
            the half of the smallest finding's width.
        gan_weight: of the adversarial term, times its adaptive weight (taming: 0.8); 0 builds no
            discriminator.
        gan_start: the generator step at which the discriminator starts.
        discriminator: arguments of `Discriminator`.
        learning_rate, betas, gradient_clip_norm: of both optimizers; from scratch 1e-4, (0.9, 0.95), 1 (LlamaGen,
            arXiv 2406.06525).
        warmup: steps of linear warm-up, then a cosine down to a hundredth.
        accumulate_grad_batches: batches whose gradients make one step. (Lightning's own key is for automatic
            optimisation only.)
        compile: torch.compile for encoder, decoder and discriminator; worth its minutes on a GPU.
        channels_last: memory format of images and convolutions; faster with bf16 on a GPU, slower
            on a CPU.
    """

    automatic_optimization = False

    def __init__(
        self,
        autoencoder: dict[str, Any] | None = None,
        quantizer: dict[str, Any] | None = None,
        encoder: str | None = None,
        encoder_kind: Kind = "classifier",
        lambda_grad: float = 1.0,
        lambda_feat: float = 0.0,
        lambda_finding: float = 0.0,
        finding_weight: float = 0.0,
        clinical_input: bool = False,
        feature_blur_sigma: float = 0.0,
        gan_weight: float = 0.8,
        gan_start: int = 10_000,
        discriminator: dict[str, Any] | None = None,
        learning_rate: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.95),
        gradient_clip_norm: float = 1.0,
        warmup: int = 100,
        accumulate_grad_batches: int = 1,
        compile: bool = False,
        channels_last: bool = False,
        init_from: str | None = None,
    ):
        from mavilt_pl.vqgan.loading import start_from, started_shape  # which builds on this file

        super().__init__()
        self.save_hyperparameters()
        if accumulate_grad_batches < 1:
            raise UserError(
                f"model.accumulate_grad_batches {accumulate_grad_batches}: expected the number of batches of a step, 1 or "
                f"more"
            )
        ours = finding_weight > 0 or clinical_input
        clinical = lambda_feat > 0 or lambda_finding > 0 or ours
        if clinical and encoder is None:
            raise UserError(
                "model.encoder: lambda_feat, lambda_finding, finding_weight and clinical_input need an "
                "encoder; name its weights, or set them to 0"
            )
        if ours and encoder_kind != "classifier":
            raise UserError(
                f"model.encoder_kind {encoder_kind}: finding_weight and clinical_input need `classifier`; "
                f"set finding_weight to 0 and clinical_input to false"
            )
        # φ is kept out of the state dict and of Lightning's sight; the tokenizer owns a copy where
        # it needs one.
        self._phi: list[Any] = (
            [load_encoder(encoder, encoder_kind)] if clinical and encoder is not None else []
        )
        if lambda_finding > 0 and not self._phi[0].findings:
            raise UserError(
                f"model.lambda_finding {lambda_finding}: the encoder {encoder} has no outputs for "
                f"findings; set it to 0"
            )
        shape = self._phi[0].config if clinical_input else None
        autoencoder, quantizer = autoencoder or {}, quantizer or {}
        if init_from is not None:
            autoencoder, quantizer = started_shape(init_from, autoencoder, quantizer)
        self.tokenizer = Tokenizer(autoencoder, quantizer, shape)
        if init_from is not None:
            start_from(self.tokenizer, init_from)
        if clinical_input:
            self.tokenizer.clinical.load_state_dict(self._phi[0].state_dict())  # type: ignore[union-attr]
            self._phi = [self.tokenizer.clinical]
        self.discriminator = Discriminator(**(discriminator or {})) if gan_weight > 0 else None

    @property
    def phi(self) -> Any:
        """The frozen clinical encoder, on this module's device."""
        return self._phi[0].to(self.device) if self._phi else None

    def setup(self, stage: str) -> None:
        if self.trainer.precision == "16-mixed":
            raise UserError(
                "trainer.precision 16-mixed overflows in the adversarial term; use bf16-mixed, or "
                "32-true on cards without bf16"
            )
        # Lightning takes its own key for automatic optimisation only; its loops count steps by it
        # all the same.
        self.trainer.accumulate_grad_batches = self.hparams["accumulate_grad_batches"]
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
        quantised, codes_BN, commitment = self.tokenizer.quantizer(
            self.tokenizer.latents(pixels_BCHW, maps)
        )
        return self.tokenizer.autoencoder.decode(quantised).float(), codes_BN, commitment

    def terms(self, pixels_BCHW: Tensor) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """The weighted terms of the loss by name (adversarial aside), the reconstruction, and the
        codes.
        """
        h, phi = self.hparams, self.phi
        maps: Any = None
        if phi is not None and (
            h["feature_blur_sigma"] == 0 or h["finding_weight"] > 0 or h["clinical_input"]
        ):
            with torch.no_grad():
                maps = phi.maps(pixels_BCHW)
        weight = None
        if h["finding_weight"] > 0:
            weight = 1 + h["finding_weight"] * finding_map(phi, maps, pixels_BCHW.shape[-1])
            weight = weight / weight.mean((1, 2, 3), keepdim=True)
        made_BCHW, codes_BN, commitment = self(pixels_BCHW, maps)
        terms = {
            "l1": reconstruction_term(pixels_BCHW, made_BCHW, weight),
            "commitment": commitment,
        }
        if h["lambda_grad"] > 0:
            terms["gradient"] = h["lambda_grad"] * gradient_term(pixels_BCHW, made_BCHW)
        if h["lambda_feat"] > 0 or h["lambda_finding"] > 0:
            eyed: tuple[Tensor, ...] = (pixels_BCHW, made_BCHW)
            if h["feature_blur_sigma"] > 0:
                eyed = blurred(eyed, h["feature_blur_sigma"], self.global_step)
                with torch.no_grad():
                    maps = phi.maps(eyed[0])
            seen = phi.maps(eyed[1])
            if h["lambda_feat"] > 0:
                terms["feature"] = h["lambda_feat"] * feature_term(maps, seen)
            if h["lambda_finding"] > 0:
                wanted = phi.logits(maps).sigmoid()
                terms["finding"] = h["lambda_finding"] * F.binary_cross_entropy_with_logits(
                    phi.logits(seen), wanted
                )
        return terms, made_BCHW, codes_BN

    def training_step(self, batch: dict, index: int) -> dict[str, Tensor]:
        """One batch through both networks; the optimizers step at every `accumulate_grad_batches`-th. For the
        callbacks: codes and reconstruction.
        """
        generator, critic = [*self._as_list(self.optimizers()), None][:2]
        schedules = self._as_list(self.lr_schedulers())
        stepping = not self.trainer.fit_loop.epoch_loop._should_accumulate()
        adversarial_now = critic is not None and self.global_step >= self.hparams["gan_start"]
        log_now = stepping and (self.global_step + 1) % self.trainer.log_every_n_steps == 0  # type: ignore[attr-defined]
        pixels_BCHW = batch["pixels"]

        with generator.toggle_model(sync_grad=stepping):
            terms, made_BCHW, codes_BN = self.terms(pixels_BCHW)
            # What stands behind the picture, φ and the discriminator, is walked back through once:
            # its pull at the picture takes its place from there on.
            likeness = torch.stack(
                [value for name, value in terms.items() if name != "commitment"]
            ).sum()
            (pull_BCHW,) = torch.autograd.grad(likeness, made_BCHW, retain_graph=log_now)
            pulls = self._pulls(terms, made_BCHW) if log_now else {}
            if adversarial_now:
                adversarial = -self.discriminator(made_BCHW).float().mean()  # type: ignore[misc]
                (away_BCHW,) = torch.autograd.grad(adversarial, made_BCHW)
                likely, away = (made_BCHW * pull_BCHW).sum(), (made_BCHW * away_BCHW).sum()
                last = self.tokenizer.autoencoder.last_layer
                weight = self.hparams["gan_weight"] * adaptive_weight(likely, away, last)
                terms["adversarial"] = weight * adversarial
                pull_BCHW = pull_BCHW + weight * away_BCHW
                pulls["adversarial"] = weight * away_BCHW
            self._refuse_non_finite(terms, batch)
            told = {"loss": torch.stack(list(terms.values())).sum(), **terms}
            if log_now:
                told |= self._shares(pulls, made_BCHW)
            loss = terms["commitment"] + (made_BCHW * pull_BCHW).sum()
            self.manual_backward(loss / self.hparams["accumulate_grad_batches"])
            if stepping:
                told["gradient_norm/generator"] = self._clip(generator, "generator", batch)
                generator.step()
                generator.zero_grad()
                schedules[0].step()
        if adversarial_now:
            with critic.toggle_model(sync_grad=stepping):
                told |= self._critic_turn(critic, pixels_BCHW, made_BCHW.detach(), stepping, batch)
            if stepping:
                schedules[1].step()
        if log_now:
            self._tell(told)
        return {"codes": codes_BN, "reconstruction": made_BCHW.detach()}

    def _critic_turn(
        self, critic: Any, real: Tensor, made: Tensor, stepping: bool, batch: dict
    ) -> dict[str, Tensor]:
        real_logits, made_logits = (
            self.discriminator(real).float(),
            self.discriminator(made).float(),
        )  # type: ignore[misc]
        loss = hinge_discriminator(real_logits, made_logits)
        self.manual_backward(loss / self.hparams["accumulate_grad_batches"])
        right = 0.5 * ((real_logits > 0).float().mean() + (made_logits < 0).float().mean())
        told = {"discriminator": loss, "discriminator_right": right}
        if stepping:
            raw = critic.optimizer  # without Lightning's counter, see the class's text
            told["gradient_norm/discriminator"] = self._clip(raw, "discriminator", batch)
            raw.step()
            raw.zero_grad()
        return told

    def _tell(self, values: dict[str, Tensor]) -> None:
        """Log values, means over the ranks, at the number of generator steps made. (Lightning
        counts batches here.)
        """
        means = (
            all_reduce_sum(torch.stack([value.detach().float() for value in values.values()]))
            / rank_and_size()[1]
        )
        named = {f"train/{name}": mean for name, mean in zip(values, means)}
        self.log_dict(named, logger=False)
        self.log("loss", named["train/loss"], logger=False, prog_bar=True)
        for logger in self.loggers:
            logger.log_metrics(
                {name: float(mean) for name, mean in named.items()}, self.global_step
            )

    def _refuse_non_finite(self, values: dict[str, Tensor], batch: dict) -> None:
        """Stop before a value that is NaN or infinite reaches any weight."""
        if torch.isfinite(torch.stack(list(values.values())).sum()):
            return
        bad = [name for name, value in values.items() if not torch.isfinite(value)]
        studies = [study["study"] for study in batch["studies"]]
        raise UserError(
            f"step {self.global_step}: not finite: {', '.join(bad) or 'the sum of the terms'}; "
            f"studies of the batch: "
            f"{', '.join(studies[:8])}{', …' if len(studies) > 8 else ''}. The last checkpoint is "
            f"good: lower "
            "learning_rate or the term's weight and resume (--ckpt_path last)"
        )

    def _clip(self, optimizer: Any, name: str, batch: dict) -> Tensor:
        """Bring the gradient's norm down to `gradient_clip_norm`; returns it as it was."""
        weights = [p for group in optimizer.param_groups for p in group["params"]]
        norm = torch.nn.utils.clip_grad_norm_(weights, self.hparams["gradient_clip_norm"])
        self._refuse_non_finite({f"gradient of the {name}": norm}, batch)
        return norm

    @staticmethod
    def _pulls(terms: dict[str, Tensor], made_BCHW: Tensor) -> dict[str, Tensor]:
        """Each term's gradient at the picture; commitment has none."""
        return {
            name: torch.autograd.grad(value, made_BCHW, retain_graph=True)[0]
            for name, value in terms.items()
            if name != "commitment"
        }

    def _shares(self, pulls: dict[str, Tensor], made_BCHW: Tensor) -> dict[str, Tensor]:
        """Each term's share of the gradient at the decoder's last layer, in [0, 1]."""
        last = self.tokenizer.autoencoder.last_layer
        norms = {
            name: torch.autograd.grad(made_BCHW, last, pull, retain_graph=True)[0].norm()
            for name, pull in pulls.items()
        }
        total = torch.stack(list(norms.values())).sum().clamp(min=1e-12)
        return {f"share/{name}": norm / total for name, norm in norms.items()}

    @staticmethod
    def _as_list(value: Any) -> list[Any]:
        return value if isinstance(value, list) else [value]

    def validation_step(
        self, batch: dict, index: int, dataloader_idx: int = 0
    ) -> dict[str, Tensor]:
        pixels_BCHW = batch["pixels"]
        made_BCHW, codes_BN, _ = self(pixels_BCHW)
        made_BCHW = made_BCHW.clamp(-1, 1)
        psnr = (
            10
            * torch.log10(
                4 / (made_BCHW - pixels_BCHW).square().mean((1, 2, 3)).clamp(min=1e-10)
            ).mean()
        )
        source = self.trainer.datamodule.names[dataloader_idx]  # type: ignore[attr-defined]
        logged = {
            f"val/{source}/psnr": psnr,
            f"val/{source}/l1": (made_BCHW - pixels_BCHW).abs().mean(),
        }
        self.log_dict(
            logged,
            prog_bar=True,
            sync_dist=True,
            batch_size=len(pixels_BCHW),
            add_dataloader_idx=False,
        )
        return {"reconstruction": made_BCHW, "codes": codes_BN}

    def test_step(self, batch: dict, index: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """For the callbacks: reconstruction and codes."""
        made_BCHW, codes_BN, _ = self(batch["pixels"])
        return {"reconstruction": made_BCHW.clamp(-1, 1), "codes": codes_BN}

    def configure_optimizers(self) -> Any:
        h = self.hparams
        trained = [p for p in self.tokenizer.parameters() if p.requires_grad]
        optimizers = [
            torch.optim.AdamW(trained, h["learning_rate"], betas=h["betas"], weight_decay=1e-4)
        ]
        if self.discriminator is not None:
            optimizers.append(
                torch.optim.AdamW(
                    self.discriminator.parameters(), h["learning_rate"], betas=(0.5, 0.9)
                )
            )
        steps = int(self.trainer.estimated_stepping_batches)
        return optimizers, [
            warm_cosine(optimizer, h["warmup"], steps - start)
            for optimizer, start in zip(optimizers, (0, h["gan_start"]))
        ]

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        check_compatible(checkpoint, self)

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        clinical = self.tokenizer.clinical
        checkpoint["clinical"] = None if clinical is None else clinical.config
        checkpoint["autoencoder"] = self.tokenizer.autoencoder.config
        checkpoint["quantizer"] = self.tokenizer.quantizer.config
