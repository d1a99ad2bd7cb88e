"""The tokenizer: reconstruction, codebook use, and whether findings survive it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from lightning import LightningModule, Trainer
from torchmetrics import Metric

from mavilt_pl.callbacks.metric_callback import MetricCallback
from mavilt_pl.data.pixels import to_uint8
from mavilt_pl.encoders.loading import Kind, load_encoder
from mavilt_pl.errors import UserError
from mavilt_pl.metrics.image import (
    CodebookUse,
    FrechetDistance,
    ReconstructionScores,
    lpips_distance,
)
from mavilt_pl.metrics.vqa import GroupedAUROC


class ReconstructionMetrics(MetricCallback):
    """psnr, ssim, gradient_psnr, codebook_used; lpips with its weights; and under a judge: the
    AUROC of the findings on the originals (`original_auroc`) and on the reconstructions
    (`reconstructed_auroc`), and their Fréchet distance.

    Args:
        judge: weights of an encoder other than the tokenizer's own; without, there are no figures
            of findings.
        lpips: torchvision's weights of AlexNet or VGG-16 on this disk; without, there is no lpips.
    """

    task = "tokenizer"

    def __init__(
        self,
        judge: str | None = None,
        judge_kind: Kind = "classifier",
        validate: int = 0,
        samples: int = 8,
        lpips: str | None = None,
    ):
        super().__init__(validate, samples)
        self.judge_path, self.judge_kind, self.lpips_path = judge, judge_kind, lpips
        self.judge: Any = None
        self.lpips: Any = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "test" or self.validate:
            self.judge = load_encoder(self.judge_path, self.judge_kind) if self.judge_path else None
            try:
                self.lpips = lpips_distance(self.lpips_path) if self.lpips_path else None
            except ValueError as error:
                raise UserError(str(error)) from None

    def metrics(self, trainer: Trainer, module: Any) -> dict[str, Metric]:
        found: dict[str, Metric] = {
            "scores": ReconstructionScores(self.lpips),
            "codes": CodebookUse(module.tokenizer.codebook_size),
        }
        if self.judge is not None:
            found["fid_cxr"] = FrechetDistance(
                "fid_cxr",
                self.judge.width,
                f"pooled features of the {self.judge_kind} encoder, reconstructions against "
                f"originals",
            )
            for side in ("original", "reconstructed"):
                area = GroupedAUROC(self.judge.findings, f"{side}_auroc")
                area.protocol = f"{self.judge_kind} encoder, not the tokenizer's, on the {side} images; {area.protocol}"
                found[side] = area
        return found

    def update_metrics(
        self,
        trainer: Trainer,
        module: Any,
        batch: dict,
        outputs: Any,
        control: str | None,
        metrics: Mapping[str, Metric],
        source: int,
    ) -> None:
        real, made = batch["pixels"], outputs["reconstruction"]
        metrics["scores"].update(real, made, batch["patient"])
        metrics["codes"].update(outputs["codes"])
        if self.judge is not None:
            self.judge.to(real.device)
            names = trainer.datamodule.findings  # type: ignore[attr-defined]
            columns = [names.index(f) if f in names else -1 for f in self.judge.findings]
            unknown = torch.full((len(real), 1), float("nan"), device=real.device)
            truths = torch.cat([batch["labels"], unknown], 1)[:, columns]
            with torch.inference_mode():
                for side, pixels in (("original", real), ("reconstructed", made)):
                    maps = self.judge.maps(pixels)
                    metrics[side].update_columns(
                        self.judge.logits(maps).cpu(), truths.cpu(), batch["patient"]
                    )
                    metrics["fid_cxr"].update(
                        self.judge.features(maps), side == "original", batch["patient"]
                    )
        for study, original, image in zip(batch["studies"], to_uint8(real), to_uint8(made)):
            if self.wants_sample(trainer, source):
                self.examples.append(
                    self.sample(trainer, study, source, original=original, reconstruction=image)
                )
