"""The tokenizer: reconstruction, use of the codebook, and whether findings are preserved.

Shape legend: B images, H W height and width in pixels, F findings of the judge.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from torch import Tensor
from torchmetrics import Metric

from mavilt_pl.callbacks.metric_callback import MetricCallback
from mavilt_pl.callbacks.observation import Observation, judged_images
from mavilt_pl.data.ood_reference import OODReference, lowest_scores
from mavilt_pl.data.pixels import to_uint8
from mavilt_pl.data.records import Side
from mavilt_pl.data.token_cache import TokenCache
from mavilt_pl.encoders.loading import Kind, load_encoder
from mavilt_pl.errors import UserError
from mavilt_pl.metrics.feature_sets import FeatureSets, ImageKind
from mavilt_pl.metrics.image import (
    CodebookUse,
    ReconstructionScores,
    lpips_distance,
)
from mavilt_pl.metrics.vqa import GroupedAUROC, GroupedMean
from mavilt_pl.ranges import NonNegativeInt
from mavilt_pl.vqgan.out_of_distribution import measure

OOD_PROTOCOL = "share of images whose score against the training images is above 1"


class ReconstructionMetrics(MetricCallback):
    """Figures of reconstructions.

    Always psnr, ssim, gradient_psnr and the use of the codebook; lpips with its weights; with a
    judge, the AUROC of the findings on the originals (`original_auroc`) and on the reconstructions
    (`reconstructed_auroc`), and their Fréchet distance.

    Args:
        judge: weights of an encoder. Never evaluate a tokenizer with the encoder it was trained
            against.
        judge_kind: classifier | torchxrayvision | huggingface.
        validate: number of studies of each source that a validation scores.
        samples: number of studies of each source that are kept as samples.
        lpips: a local file of torchvision's weights of AlexNet or VGG-16.
        reference: token caches of the training data; adds the share of images unlike them
            (`ood_share`).
    """

    task = "tokenizer"

    def __init__(
        self,
        judge: str | None = None,
        judge_kind: Kind = "classifier",
        validate: NonNegativeInt = 0,
        samples: NonNegativeInt = 8,
        lpips: str | None = None,
        reference: list[str] | None = None,
    ):
        super().__init__(validate, samples)
        self.judge_path, self.judge_kind, self.lpips_path = judge, judge_kind, lpips
        self.reference_paths = [Path(path) for path in reference or ()]
        self.judge: Any = None
        self.lpips: Any = None
        self.references: list[OODReference] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Load the judge and LPIPS, unless nothing will be scored."""
        # Judge and LPIPS cost memory during a whole training, so they are loaded only if they are
        # used.
        if stage != "test" and not self.validate:
            return
        if self.judge_path:
            self.judge = load_encoder(self.judge_path, self.judge_kind)
        # What a run tokenized by an earlier version lacks leaves the figure out.
        # Lightning calls `setup` again before a test in the same process.
        self.references = []
        for path in self.reference_paths:
            self.references += TokenCache(path).ood_references()
        if self.lpips_path:
            try:
                self.lpips = lpips_distance(self.lpips_path)
            except ValueError as error:
                raise UserError(str(error)) from None

    def metrics(self, trainer: Trainer, module: Any) -> dict[str, Metric]:
        """Figures of pixels and codes; of findings and features if there is a judge."""
        metrics: dict[str, Metric] = {
            "scores": ReconstructionScores(self.lpips),
            "codes": CodebookUse(module.tokenizer.codebook_size),
        }
        if self.references:
            metrics["ood"] = GroupedMean("ood_share", protocol=OOD_PROTOCOL)
        # The rest looks at findings and features.
        if self.judge is None:
            return metrics
        encoder = f"{self.judge_kind} encoder"
        metrics["features"] = FeatureSets(
            "cxr",
            self.judge.width,
            f"pooled features of the {encoder}, reconstructions against originals",
        )
        # Both sides, since a finding that the judge misses on the original cannot be lost by the
        # codes.
        for side in ("original", "reconstructed"):
            area = GroupedAUROC(self.judge.findings, f"{side}_auroc")
            area.protocol = f"{encoder}, not the tokenizer's, on the {side} images; {area.protocol}"
            metrics[side] = area
        return metrics

    def update_metrics(self, observation: Observation) -> None:
        """Score the reconstructions of a batch."""
        real_BCHW = observation.batch["pixels"]
        recon_BCHW = observation.outputs["reconstruction"]
        scores: Any = observation.metrics["scores"]
        scores.update(real_BCHW, recon_BCHW, observation.patients)
        # What the update has just added, image by image.
        by_image = [dict(zip(scores.names, row)) for row in scores.rows[-1].tolist()]
        observation.metrics["codes"].update(observation.outputs["codes"])
        if self.references:
            measured = measure(observation.module.tokenizer, real_BCHW)
            # Tests without `data.each_view` have one image a study, frontal if there is one.
            sides: list[Side] = ["frontal"] * len(real_BCHW)
            flagged = lowest_scores(self.references, measured, sides) > 1
            observation.metrics["ood"].update(flagged, [0] * len(flagged), observation.patients)
        judged: list[dict[str, Any]] = [{} for _ in by_image]
        if self.judge is not None:
            judged = self._judge(observation, real_BCHW, recon_BCHW)
        # One record an image, so that any breakdown can be computed without the model.
        for study, of_image, of_judge in zip(observation.studies, by_image, judged):
            self.record(observation, study, scores=of_image, **of_judge)
        originals, reconstructions = to_uint8(real_BCHW), to_uint8(recon_BCHW)
        for row in self.sampled_rows(observation):
            # Grey where both agree, brighter where the reconstruction is; twice as strong.
            difference = (recon_BCHW[row] - real_BCHW[row]).clamp(-1, 1)
            images = {
                "original": originals[row],
                "reconstruction": reconstructions[row],
                "difference": to_uint8(difference[None])[0],
            }
            self.add_sample(observation, observation.studies[row], **images)

    def _judge(
        self, observation: Observation, real_BCHW: Tensor, recon_BCHW: Tensor
    ) -> list[dict[str, Any]]:
        """Update the metrics of the judge; what it made of each image, for the predictions."""
        metrics, patients = observation.metrics, observation.patients
        self.judge.to(real_BCHW.device)
        labels_BF = self._labels_of_judge(observation)
        logits: dict[str, Tensor] = {}
        with torch.inference_mode():
            for side, pixels_BCHW in (("original", real_BCHW), ("reconstructed", recon_BCHW)):
                # One pass gives findings and features.
                maps = self.judge.maps(pixels_BCHW)
                logits[side] = self.judge.logits(maps).cpu()
                metrics[side].update_columns(logits[side], labels_BF, patients)
                kind = ImageKind.REAL if side == "original" else ImageKind.DRAWN
                metrics["features"].update(self.judge.features(maps), kind, patients)
        return judged_images(self.judge.findings, logits, labels_BF)

    def _labels_of_judge(self, observation: Observation) -> Tensor:
        """Labels [B,F] of the judge's findings; nan for a finding that the data do not label."""
        labels_BL = observation.batch["labels"].cpu()
        # A last column of nan, which index −1 picks for findings without a label.
        unknown_B1 = torch.full((len(labels_BL), 1), float("nan"))
        names = observation.findings
        columns = []
        for finding in self.judge.findings:
            columns.append(names.index(finding) if finding in names else -1)
        return torch.cat([labels_BL, unknown_B1], 1)[:, columns]
