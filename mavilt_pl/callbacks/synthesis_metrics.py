"""Drawn radiographs: Fréchet distances, and whether what was asked for is there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning import LightningModule, Trainer
from torch import Tensor
from torchmetrics import Metric

from mavilt_pl.callbacks.metric_callback import MetricCallback, originals
from mavilt_pl.callbacks.report_metrics import with_text
from mavilt_pl.data.collate import sample_key
from mavilt_pl.data.pixels import to_uint8
from mavilt_pl.data.records import Side
from mavilt_pl.encoders.loading import Kind, load_encoder
from mavilt_pl.language.prompt_builder import Views
from mavilt_pl.metrics.image import FrechetDistance, inception_features
from mavilt_pl.metrics.vqa import GroupedAUROC
from mavilt_pl.vqgan.loading import load_tokenizer

MISSING = "missing_view_"


class SynthesisMetrics(MetricCallback):
    """Draws a radiograph for every study's text. Where the data bring several views
    (`data.each_view`) that is its first view, from the text alone; and in the test, of a study that
    has both, the second is drawn too, from the first and the text (`missing_view_…`). What the
    judge reads in the studies' own images (`original_auroc`) is the most that can be asked of drawn
    ones.

    Args:
        tokenizer: checkpoint of the VQ-GAN whose codes the model writes.
        judge: weights of the encoder that features and findings are read with; it has never seen a
            drawn image. Let it be another than the one the tokenizer was trained with.
        judge_kind: classifier | torchxrayvision | huggingface.
        inception: pytorch-fid's Inception weights on this disk; without, there is no fid_inception.
        seed: of the drawings.
    """

    task = "synthesis"

    def __init__(
        self,
        tokenizer: str,
        judge: str,
        judge_kind: Kind = "classifier",
        inception: str | None = None,
        validate: int = 0,
        samples: int = 8,
        seed: int = 0,
    ):
        super().__init__(validate, samples)
        self.tokenizer_path, self.judge_path, self.judge_kind, self.inception_path, self.seed = (
            tokenizer,
            judge,
            judge_kind,
            inception,
            seed,
        )
        self.tokenizer: Any = None
        self.judge: Any = None
        self.inception: Any = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "test" or self.validate:
            self.tokenizer = load_tokenizer(self.tokenizer_path)
            self.judge = load_encoder(self.judge_path, self.judge_kind)
            self.inception = (
                inception_features(self.inception_path) if self.inception_path else None
            )

    def metrics(self, trainer: Trainer, module: Any) -> dict[str, Metric]:
        found: dict[str, Metric] = {}
        for prefix in ("", MISSING) if self._draws_missing(trainer) else ("",):
            how = "; second view, from the first and the text" if prefix else ""
            for name, what in (("drawn_auroc", "requested finding"), ("original_auroc", "finding")):
                area = GroupedAUROC(self.judge.findings, prefix + name)
                area.protocol = f"{what} present or not; {self.judge_kind} encoder, not the tokenizer's; {area.protocol}{how}"
                found[prefix + name] = area
            against = f"against the set's own images{how}"
            kinds = {
                "fid_cxr": (
                    self.judge.width,
                    f"pooled features of the {self.judge_kind} encoder, {against}",
                )
            }
            if self.inception is not None:
                kinds["fid_inception"] = (
                    2048,
                    f"pytorch-fid's Inception, 2048 pooled features, {against}",
                )
            for name, (width, protocol) in kinds.items():
                found[prefix + name] = FrechetDistance(prefix + name, width, protocol)
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
        batch = with_text(batch)
        if not batch["text"]:
            return
        views = [next(iter(shown)) for shown in batch["views"]] if "views" in batch else None
        drawn, real = self._scored(trainer, module, batch, metrics, source, "", views)
        pictures: list[dict[str, Any]] = [
            {"image": image, "reference_image": own}
            for image, own in zip(to_uint8(drawn), to_uint8(real))
        ]
        rows = [row for row, shown in enumerate(batch.get("views", [])) if len(shown) > 1]
        if rows and self._draws_missing(trainer):
            both = {
                key: [batch[key][row] for row in rows]
                for key in ("studies", "text", "patient", "views")
            }
            first, second = zip(*(tuple(shown) for shown in both["views"]))
            given = [{name: shown[name]} for name, shown in zip(first, both["views"])]
            drawn, real = self._scored(
                trainer, module, both, metrics, source, MISSING, second, given
            )
            for row, image, own in zip(rows, to_uint8(drawn), to_uint8(real)):
                pictures[row] |= {"second_image": image, "second_reference_image": own}
        for study, text, found in zip(batch["studies"], batch["text"], pictures):
            if control is None and self.wants_sample(trainer, source):
                self.examples.append(self.sample(trainer, study, source, text=text, **found))

    @staticmethod
    def _draws_missing(trainer: Trainer) -> bool:
        return trainer.testing and trainer.datamodule.hparams["each_view"]  # type: ignore[attr-defined]

    def _scored(
        self,
        trainer: Trainer,
        module: Any,
        batch: Mapping[str, Any],
        metrics: Mapping[str, Metric],
        source: int,
        prefix: str,
        views: Sequence[Side] | None,
        given: Sequence[Views] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Draws a view of each study, and updates the metrics of that prefix with it. Gives what
        was drawn and the originals.
        """
        device, studies, patients = module.device, batch["studies"], batch["patient"]
        real = originals(trainer, studies, source, views).to(device)
        keys = [sample_key(study["study"]) for study in studies]
        codes = module.generator.generate_images(
            batch["text"], self.seed, keys, views=views, given=given
        )
        self.tokenizer.to(device), self.judge.to(device)
        with torch.inference_mode():
            drawn = self.tokenizer.decode(codes)
            drawn_maps, real_maps = self.judge.maps(drawn), self.judge.maps(real)
            asked = torch.tensor(
                [
                    [_value(study["label_names"].get(f)) for f in self.judge.findings]
                    for study in studies
                ]
            )
            if self.judge.findings:
                for name, maps in (("drawn_auroc", drawn_maps), ("original_auroc", real_maps)):
                    metrics[prefix + name].update_columns(
                        self.judge.logits(maps).cpu(), asked, patients
                    )
            for is_real, pixels, maps in ((True, real, real_maps), (False, drawn, drawn_maps)):
                metrics[f"{prefix}fid_cxr"].update(self.judge.features(maps), is_real, patients)
                if self.inception is not None:
                    metrics[f"{prefix}fid_inception"].update(
                        self.inception(pixels), is_real, patients
                    )
        return drawn, real


def _value(label: str | None) -> float:
    return {"present": 1.0, "absent": 0.0}.get(label or "", float("nan"))
