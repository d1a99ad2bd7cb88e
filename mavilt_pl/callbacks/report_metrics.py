"""Reports: BLEU, ROUGE-L, METEOR, CIDEr, and the F1 of the findings they assert."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from lightning import LightningModule, Trainer
from torch import Tensor
from torchmetrics import Metric

from mavilt_pl.callbacks.metric_callback import MetricCallback, Sample
from mavilt_pl.callbacks.observation import (
    CONSTANT,
    REFERENCE,
    RETRIEVED,
    SHUFFLED,
    Observation,
)
from mavilt_pl.callbacks.training_features import NearestReports, pooled
from mavilt_pl.data.training_split import most_frequent_text
from mavilt_pl.encoders.loading import Kind, load_encoder
from mavilt_pl.errors import MaviltWarning
from mavilt_pl.metrics.claims import compare_claims
from mavilt_pl.metrics.findings_f1 import FindingsF1
from mavilt_pl.metrics.report_pairs import pair_scores
from mavilt_pl.metrics.text import TextScores
from mavilt_pl.parallel.distributed import gather_lists
from mavilt_pl.ranges import NonNegativeInt

# Kinds of errors that the page shows an example of, for each finding.
ERRORS = ("missed", "invented", "wrong side", "wrong zone")
Place = tuple[str, str, str]  # source, finding, kind of error


class ReportMetrics(MetricCallback):
    """Generates a report for every image that has a reference, and scores it.

    Controls: reports from another patient's image, and for every image the report that most
    training studies of the source share. A model that scores no more has learned what reports look
    like, and nothing of the images. With a judge there is one more, the report of the training
    study whose image is nearest. The references themselves give the ceiling of findings F1: the
    labeller does not read all that the labels say.

    Args:
        judge: weights of the encoder that finds the nearest training image; without it there is no
            such control.
        judge_kind: classifier | torchxrayvision | huggingface.
        training_images: how many training images of each source, at random, are searched.
        validate: number of studies of each source that a validation scores.
        samples: number of studies of each source that are kept as samples.
    """

    task = "report"
    controls: tuple[str | None, ...] = (None, SHUFFLED, CONSTANT, REFERENCE)

    def __init__(
        self,
        judge: str | None = None,
        judge_kind: Kind = "classifier",
        training_images: NonNegativeInt = 10_000,
        validate: NonNegativeInt = 0,
        samples: NonNegativeInt = 8,
    ):
        super().__init__(validate, samples)
        self.judge_path, self.judge_kind = judge, judge_kind
        self.training_images = training_images
        if judge is not None:
            self.controls = (*self.controls, RETRIEVED)
        self._errors: dict[Place, Sample] = {}  # an example of each, on this rank
        self._features: Callable[[Tensor], Tensor] | None = None  # of the judge
        self._neighbours: dict[int, NearestReports] = {}
        self._constant_texts: dict[int, str] = {}
        # Of a test: source, control, generated and reference text, patient. CIDEr needs all texts.
        self._pairs: list[tuple[str, str, str, str, str]] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Load the judge for a test."""
        if stage == "test" and self.judge_path is not None:
            self._features = pooled(load_encoder(self.judge_path, self.judge_kind))

    def metrics(self, trainer: Trainer, module: Any) -> dict[str, Metric]:
        """Scores of the text, and of the findings it asserts."""
        metrics: dict[str, Metric] = {"text": TextScores()}
        # Data of reports alone name no finding.
        if trainer.datamodule.findings:
            metrics["findings"] = FindingsF1(trainer.datamodule.findings)
        return metrics

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make new metrics."""
        super().on_test_epoch_start(trainer, pl_module)
        self._pairs, self._constant_texts, self._errors = [], {}, {}
        # Of two callbacks of this kind only one tests: the other need not read all texts.
        data = trainer.datamodule
        for source in sorted({number for number, _ in self._metrics}):
            corpus = data.corpora[source]
            self._constant_texts[source] = most_frequent_text(corpus, data.options)
            if self._features is not None:
                self._neighbours[source] = NearestReports(
                    trainer, source, self._features, self.training_images, pl_module.device
                )

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compute the figures; say of which sources the findings could not be scored."""
        super().on_test_epoch_end(trainer, pl_module)
        self.figures += self._pair_figures()
        scored = {one["source"] for one in self.figures if one["metric"] == "bleu_1"}
        with_findings = set()
        for figure in self.figures:
            if figure["metric"].startswith("findings_f1"):
                with_findings.add(figure["source"])
        for source in sorted(scored - with_findings):
            warnings.warn(
                f"{source}: no tested study has a finding of data.findings labelled present, so "
                "findings F1 is left out",
                MaviltWarning,
                stacklevel=2,
            )

    def update_metrics(self, observation: Observation) -> None:
        """Generate and score the reports of a batch."""
        # Studies that bring questions only have no reference.
        seen = observation.with_text()
        if not seen.studies:
            return
        reports = self._reports(seen)
        if reports is None:
            return
        references = seen.batch["text"]
        labels = [study["label_names"] for study in seen.studies]
        if "findings" in seen.metrics:
            seen.metrics["findings"].update(reports, labels, seen.patients)
        # A text equals itself.
        if seen.control == REFERENCE:
            return
        seen.metrics["text"].update(reports, references, seen.patients)
        if seen.trainer.testing and not seen.is_filler:
            name, control = seen.source_name, seen.control or ""
            for report, reference, patient in zip(reports, references, seen.patients):
                self._pairs.append((name, control, report, reference, patient))
        for study, report in zip(seen.studies, reports):
            known = dict(study["label_names"])
            self.record(seen, study, generated=report, reference=study["text"], labels=known)
        rows = self.sampled_rows(seen)
        # Only then are images read from the corpus.
        if rows:
            chosen = seen.select(rows)
            samples = self._samples_of(chosen, [reports[row] for row in rows])
            for study, sample in zip(chosen.studies, samples):
                self.add_sample(seen, study, **sample)
        if seen.trainer.testing and seen.control is None and not seen.is_filler:
            self._keep_errors(seen, reports)

    def _reports(self, seen: Observation) -> list[str] | None:
        """The reports under this control; None if there is no constant report."""
        if seen.control == REFERENCE:
            return list(seen.batch["text"])
        if seen.control == RETRIEVED:
            return self._neighbours[seen.source].of(seen.original_pixels(seen.first_views))
        if seen.control != CONSTANT:
            return seen.module.generator.generate_reports(seen.images, keys=seen.sample_keys)
        text = self._constant_texts[seen.source]
        return [text] * len(seen.studies) if text else None

    def _pair_figures(self) -> list[dict[str, Any]]:
        """Figures over all texts of a source and control."""
        by_test: dict[tuple[str, str], list[tuple[str, str, str]]] = {}
        # Sorted, so that sums do not depend on the number of processes.
        for source, control, report, reference, patient in sorted(gather_lists(self._pairs)):
            by_test.setdefault((source, control), []).append((report, reference, patient))
        figures = []
        for (source, control), pairs in by_test.items():
            for name, value, protocol in pair_scores(*zip(*pairs)):
                figures.append(value.as_figure(self.task, source, name, protocol, control or None))
        return figures

    def _samples_of(self, chosen: Observation, reports: Sequence[str]) -> list[dict[str, Any]]:
        """What the page shows of these studies."""
        samples = []
        for study, report, image in zip(chosen.studies, reports, chosen.original_images()):
            labels = {}
            for name, label in study["label_names"].items():
                if name in chosen.findings:
                    labels[name] = label
            samples.append(
                {"image": image, "generated": report, "reference": study["text"], "labels": labels}
            )
        return samples

    def _keep_errors(self, seen: Observation, reports: Sequence[str]) -> None:
        """Keep, for each finding and kind of error, the study of the smallest key as an example."""
        for row, (study, report) in enumerate(zip(seen.studies, reports)):
            about = {
                "generated": report,
                "labels": study["label_names"],
                "reference": study["text"],
            }
            for finding, verdict in compare_claims(about):
                # The smallest key wins on any number of processes, whatever the order of batches.
                place = (seen.source_name, finding, verdict)
                is_shown = finding in seen.findings and verdict in ERRORS
                if not is_shown or self._errors.get(place, (math.inf,))[0] <= seen.sample_keys[row]:
                    continue
                (sample,) = self._samples_of(seen.select([row]), [report])
                named = {"source": seen.source_name, "study": study["hidden_name"]}
                error = f"{finding}: {verdict}"
                self._errors[place] = (seen.sample_keys[row], {**named, **sample, "error": error})

    def _gather_samples(self) -> list[dict[str, Any]]:
        """The samples, and after them an example of each error of each finding."""
        smallest: dict[Place, Sample] = {}
        for place, sample in gather_lists([*self._errors.items()]):
            if place not in smallest or sample[0] < smallest[place][0]:
                smallest[place] = sample
        return super()._gather_samples() + [smallest[place][1] for place in sorted(smallest)]
