"""Reports: BLEU, ROUGE-L, METEOR, CIDEr, and the F1 of the findings they assert."""

from __future__ import annotations

import warnings
from typing import Any

from lightning import LightningModule, Trainer
from torchmetrics import Metric

from mavilt_pl.callbacks.metric_callback import MetricCallback
from mavilt_pl.callbacks.observation import CONSTANT, REFERENCE, SHUFFLED, Observation
from mavilt_pl.errors import MaviltWarning
from mavilt_pl.metrics.coco import coco_protocol, coco_scores
from mavilt_pl.metrics.findings_f1 import FindingsF1
from mavilt_pl.metrics.text import TextScores
from mavilt_pl.parallel.distributed import gather_lists
from mavilt_pl.ranges import NonNegativeInt


class ReportMetrics(MetricCallback):
    """Generates a report for every image that has a reference, and scores it.

    Controls: reports from another patient's image, and for every image the report that most
    training studies of the source share. A model that scores no more has learned what reports look
    like, and nothing of the images. The references themselves give the ceiling of findings F1: the
    labeller does not read all that the labels say.
    """

    task = "report"
    controls = (None, SHUFFLED, CONSTANT, REFERENCE)

    def __init__(self, validate: NonNegativeInt = 0, samples: NonNegativeInt = 8):
        super().__init__(validate, samples)
        self._constant_texts: dict[int, str] = {}
        # Of a test: source, control, generated and reference text, patient. CIDEr needs all texts.
        self._pairs: list[tuple[str, str, str, str, str]] = []

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
        self._pairs, self._constant_texts = [], {}
        # Of two callbacks of this kind only one tests: the other need not read all texts.
        for source in {number for number, _ in self._metrics}:
            self._constant_texts[source] = trainer.datamodule.most_frequent_text(source)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compute the figures; say of which sources the findings could not be scored."""
        super().on_test_epoch_end(trainer, pl_module)
        self.figures += self._coco_figures()
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
            self._keep_samples(seen.select(rows), [reports[row] for row in rows])

    def _reports(self, seen: Observation) -> list[str] | None:
        """The reports under this control; None if there is no constant report."""
        if seen.control == REFERENCE:
            return list(seen.batch["text"])
        if seen.control != CONSTANT:
            return seen.module.generator.generate_reports(seen.images, keys=seen.sample_keys)
        text = self._constant_texts[seen.source]
        return [text] * len(seen.studies) if text else None

    def _coco_figures(self) -> list[dict[str, Any]]:
        """Figures over all texts of a source and control."""
        by_test: dict[tuple[str, str], list[tuple[str, str, str]]] = {}
        # Sorted, so that sums do not depend on the number of processes.
        for source, control, report, reference, patient in sorted(gather_lists(self._pairs)):
            by_test.setdefault((source, control), []).append((report, reference, patient))
        figures = []
        for (source, control), pairs in by_test.items():
            for name, value in coco_scores(*zip(*pairs)).items():
                protocol = coco_protocol(name)
                figures.append(value.as_figure(self.task, source, name, protocol, control or None))
        return figures

    def _keep_samples(self, seen: Observation, reports: list[str]) -> None:
        findings = seen.findings
        for study, report, image in zip(seen.studies, reports, seen.original_images()):
            labels = {}
            for name, label in study["label_names"].items():
                if name in findings:
                    labels[name] = label
            self.add_sample(
                seen, study, image=image, generated=report, reference=study["text"], labels=labels
            )
