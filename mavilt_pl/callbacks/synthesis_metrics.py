"""Generated radiographs: Fréchet distances, and whether the requested findings are present.

Shape legend: B studies, H W height and width in pixels, F findings of the judge.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning import LightningModule, Trainer
from PIL import Image
from torch import Tensor
from torchmetrics import Metric

from mavilt_pl.callbacks.metric_callback import MetricCallback
from mavilt_pl.callbacks.observation import Observation, judged_images
from mavilt_pl.callbacks.training_features import pooled, training_features
from mavilt_pl.data.pixels import to_uint8
from mavilt_pl.data.records import Side
from mavilt_pl.encoders.huggingface import HuggingFace
from mavilt_pl.encoders.loading import Kind, load_encoder
from mavilt_pl.language.random_views import Views
from mavilt_pl.metrics.feature_sets import FeatureSets, ImageKind
from mavilt_pl.metrics.image import inception_features
from mavilt_pl.metrics.vqa import GroupedAUROC
from mavilt_pl.ranges import NonNegativeInt, Seed
from mavilt_pl.vqgan.loading import load_tokenizer, tokenizer_of

MISSING = "missing_view_"
# Pool3, as all published FIDs.
INCEPTION_WIDTH = 2048
# An uncertain finding was neither requested nor excluded by the text.
LABEL_VALUES = {"present": 1.0, "absent": 0.0}  # others are unknown


class Reader(NamedTuple):
    """An encoder that images are compared under.

    Args:
        width: D.
        protocol: how its features are computed.
        features: pixels [B,1,H,W] in [-1, 1] → [B,D].
    """

    width: int
    protocol: str
    features: Callable[[Tensor], Tensor]


def class_token(encoder: HuggingFace) -> Callable[[Tensor], Tensor]:
    """Pixels → class token of a transformer, moved to where the pixels are."""
    return lambda pixels_BCHW: encoder.to(pixels_BCHW.device).class_token(pixels_BCHW)


class SynthesisMetrics(MetricCallback):
    """Generates a radiograph for every study's text, and scores it.

    If the data bring several views (`data.each_view`), it is the study's first view, from the text
    alone. A test then also generates the second view of each study that has both, from the first
    view and the text (`missing_view_…`). The judge's AUROC on the studies' own images
    (`original_auroc`) is an upper bound for generated ones.

    Args:
        judge: weights of the encoder that reads features and findings; it has never seen a
            generated image. Use another one than the tokenizer was trained against.
        judge_kind: classifier | torchxrayvision | huggingface.
        tokenizer: checkpoint of the VQ-GAN whose codes the model generates (default: the one that
            encoded the token cache).
        inception: a local file of pytorch-fid's Inception weights; without it there is no
            fid_inception.
        rad_dino: a local folder of microsoft/rad-dino; without it there is no fid_rad_dino. Its
            figures are those of CheXGenBench (arXiv 2505.10496).
        training_images: how many training images of each source, at random, the drawings of a test
            are compared with: the floor of the distances, and whether drawings are copies; 0 for
            none.
        save_images: whether a test writes every drawing to test/drawn/.
        validate: number of studies of each source that a validation scores.
        samples: number of studies of each source that are kept as samples.
        seed: of the generation.
    """

    task = "synthesis"

    def __init__(
        self,
        judge: str,
        judge_kind: Kind = "classifier",
        tokenizer: str | None = None,
        inception: str | None = None,
        rad_dino: str | None = None,
        training_images: NonNegativeInt = 10_000,
        save_images: bool = False,
        validate: NonNegativeInt = 0,
        samples: NonNegativeInt = 8,
        seed: Seed = 0,
    ):
        super().__init__(validate, samples)
        self.tokenizer_path, self.judge_path, self.judge_kind = tokenizer, judge, judge_kind
        self.inception_path, self.rad_dino_path, self.seed = inception, rad_dino, seed
        self.training_images, self.save_images = training_images, save_images
        self.tokenizer: Any = None
        self.judge: Any = None
        # What features are read by: name in figures → width, protocol, pixels → features.
        self.readers: dict[str, Reader] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Load tokenizer, judge and Inception, unless nothing will be scored."""
        if stage != "test" and not self.validate:
            return
        self.tokenizer = load_tokenizer(self.tokenizer_path or tokenizer_of(pl_module))
        self.judge = load_encoder(self.judge_path, self.judge_kind)
        judged = f"pooled features of the {self.judge_kind} encoder"
        self.readers = {"cxr": Reader(self.judge.width, judged, pooled(self.judge))}
        if self.inception_path:
            protocol = f"pytorch-fid's Inception, {INCEPTION_WIDTH} pooled features"
            features = inception_features(self.inception_path)
            self.readers["inception"] = Reader(INCEPTION_WIDTH, protocol, features)
        if self.rad_dino_path:
            encoder = HuggingFace(self.rad_dino_path).eval().requires_grad_(False)
            protocol = "RAD-DINO, class token as in CheXGenBench"
            self.readers["rad_dino"] = Reader(encoder.width, protocol, class_token(encoder))

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make new metrics, and read the training images that drawings are compared with."""
        super().on_test_epoch_start(trainer, pl_module)
        for (source, _), metrics in self._metrics.items():
            for name, reader in self.readers.items():
                features, images = training_features(
                    trainer, source, reader.features, self.training_images, pl_module.device
                )
                if images:
                    patients = [image.patient for image in images]
                    metrics[f"features_{name}"].update(
                        features.to(pl_module.device), ImageKind.TRAINING, patients
                    )

    def metrics(self, trainer: Trainer, module: Any) -> dict[str, Metric]:
        """Figures of generated images, and of generated second views if there will be some."""
        metrics = self._metrics_of("", "")
        if self._generates_second_views(trainer):
            metrics |= self._metrics_of(MISSING, "; second view, from the first and the text")
        return metrics

    def _metrics_of(self, prefix: str, how: str) -> dict[str, Metric]:
        encoder = f"{self.judge_kind} encoder"
        metrics: dict[str, Metric] = {}
        for name, what in (("drawn_auroc", "requested finding"), ("original_auroc", "finding")):
            area = GroupedAUROC(self.judge.findings, prefix + name)
            # Figures of another judge are not comparable, so the protocol names it.
            area.protocol = (
                f"{what} present or not; {encoder}, not the tokenizer's; {area.protocol}{how}"
            )
            metrics[prefix + name] = area
        against = f"against the set's own images{how}"
        # One table an encoder: its distances need all images at once.
        for name, reader in self.readers.items():
            metrics[f"{prefix}features_{name}"] = FeatureSets(
                name, reader.width, f"{reader.protocol}, {against}", prefix
            )
        return metrics

    @staticmethod
    def _generates_second_views(trainer: Trainer) -> bool:
        # Not in validation: a second image of each study would double its time.
        return trainer.testing and trainer.datamodule.hparams["each_view"]

    def update_metrics(self, observation: Observation) -> None:
        """Generate and score the images of a batch."""
        requested = observation.with_text()
        if not requested.studies:
            return
        all_views = requested.batch.get("views")  # of each study: name of a view → its codes
        first_views = requested.first_views
        generated_BCHW = self._generate(requested, first_views)
        real_BCHW, judged = self._score(requested, generated_BCHW, first_views, "")
        pictures: list[dict[str, Any]] = []
        for image, reference in zip(to_uint8(generated_BCHW), to_uint8(real_BCHW)):
            pictures.append({"image": image, "reference_image": reference})
        # Second views come after all first ones, as a batch of their own: only some studies have
        # them, and their metrics have other names.
        if all_views is not None and self._generates_second_views(requested.trainer):
            rows = [row for row, views in enumerate(all_views) if len(views) > 1]
            if rows:
                self._second_views(requested, rows, pictures)
        files = self._save(requested, [of_study["image"] for of_study in pictures])
        texts = requested.batch["text"]
        # One record a study, whether its drawing was saved or not.
        for study, text, file, of_judge in zip(requested.studies, texts, files, judged):
            self.record(requested, study, generated="", reference=text, **file, **of_judge)
        for row in self.sampled_rows(requested):
            text = requested.batch["text"][row]
            self.add_sample(requested, requested.studies[row], text=text, **pictures[row])

    def _save(self, requested: Observation, images: Sequence[Any]) -> list[dict[str, str]]:
        """Write the first views of a test, if they are to be saved; the file of each."""
        folder = Path(requested.trainer.default_root_dir) / "test"
        files: list[dict[str, str]] = []
        for study, image in zip(requested.studies, images):
            # A study without a file still has its record.
            if not self.save_images:
                files.append({})
                continue
            # Hidden names: a file's name is seen by whoever sees the folder.
            name = f"drawn/{requested.source_name}-{study['hidden_name']}.png"
            if requested.trainer.testing and not requested.is_filler:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image).save(folder / name)
            files.append({"image": name})
        return files

    def _second_views(
        self, requested: Observation, rows: list[int], pictures: list[dict[str, Any]]
    ) -> None:
        """Generate and score the second views of these rows; add them to their pictures."""
        both = requested.select(rows)
        second_views, given = [], []
        for views in both.batch["views"]:
            # There are two views at most, see `data.records.SIDES`.
            first, second = tuple(views)
            second_views.append(second)
            given.append({first: views[first]})
        generated_BCHW = self._generate(both, second_views, given)
        real_BCHW, _ = self._score(both, generated_BCHW, second_views, MISSING)
        for row, image, reference in zip(rows, to_uint8(generated_BCHW), to_uint8(real_BCHW)):
            pictures[row] |= {"second_image": image, "second_reference_image": reference}

    def _generate(
        self,
        requested: Observation,
        views: Sequence[Side] | None,
        given: Sequence[Views] | None = None,
    ) -> Tensor:
        """An image for each text, float32 [B,1,H,W] in [-1, 1]."""
        module = requested.module
        texts, keys = requested.batch["text"], requested.sample_keys
        # By seed and study, so the images do not depend on the batch size or the number of ranks.
        codes_BN = module.generator.generate_images(
            texts, self.seed, keys, views=views, given=given
        )
        with torch.inference_mode():
            return self.tokenizer.to(module.device).decode(codes_BN)

    def _score(
        self,
        requested: Observation,
        generated_BCHW: Tensor,
        views: Sequence[Side] | None,
        prefix: str,
    ) -> tuple[Tensor, list[dict[str, Any]]]:
        """Update the metrics of a prefix.

        Returns:
            The studies' own images [B,1,H,W], and what the judge made of each study.
        """
        metrics, patients = requested.metrics, requested.patients
        device = requested.module.device
        judged: list[dict[str, Any]] = [{} for _ in requested.studies]
        real_BCHW = requested.original_pixels(views).to(device)
        self.judge.to(device)
        with torch.inference_mode():
            # One pass of the judge for both its findings and its features.
            generated_maps = self.judge.maps(generated_BCHW)
            real_maps = self.judge.maps(real_BCHW)
            if self.judge.findings:
                # The same labels for both: what the text requested, and what the original shows.
                labels_BF = torch.tensor([self._labels(study) for study in requested.studies])
                logits: dict[str, Tensor] = {}
                for side, maps in (("drawn", generated_maps), ("original", real_maps)):
                    logits[side] = self.judge.logits(maps).cpu()
                    area = metrics[f"{prefix}{side}_auroc"]
                    area.update_columns(logits[side], labels_BF, patients)
                judged = judged_images(self.judge.findings, logits, labels_BF)
            images = (
                (ImageKind.REAL, real_BCHW, real_maps),
                (ImageKind.DRAWN, generated_BCHW, generated_maps),
            )
            for kind, pixels_BCHW, maps in images:
                for name, reader in self.readers.items():
                    # The judge has read these images already.
                    is_judge = name == "cxr"
                    features_BD = (
                        self.judge.features(maps) if is_judge else reader.features(pixels_BCHW)
                    )
                    metrics[f"{prefix}features_{name}"].update(features_BD, kind, patients)
        return real_BCHW, judged

    def _labels(self, study: dict[str, Any]) -> list[float]:
        """1, 0 or nan for each of the judge's findings."""
        labels = study["label_names"]
        values = []
        for name in self.judge.findings:
            values.append(LABEL_VALUES.get(labels.get(name), float("nan")))
        return values
