"""Reports: BLEU, ROUGE-L, METEOR, and the F1 of the findings they assert."""

from __future__ import annotations

from typing import Any

from lightning import Trainer
from torchmetrics import Metric

from mavilt_pl.callbacks.metric_callback import SHUFFLED, MetricCallback, Observation
from mavilt_pl.metrics.clinical import FindingsF1
from mavilt_pl.metrics.text import TextScores


class ReportMetrics(MetricCallback):
    """Generates a report for every image that has a reference, and scores it.

    The control generates it from another patient's image.
    """

    task = "report"
    controls = (None, SHUFFLED)

    def metrics(self, trainer: Trainer, module: Any) -> dict[str, Metric]:
        """Scores of the text, and of the findings it asserts."""
        return {"text": TextScores(), "findings": FindingsF1(trainer.datamodule.findings)}

    def update_metrics(self, observation: Observation) -> None:
        """Generate and score the reports of a batch."""
        # Studies that bring questions only have no reference.
        seen = observation.with_text()
        if not seen.studies:
            return
        reports = seen.module.generator.generate_reports(seen.images, keys=seen.sample_keys)
        labels = [study["label_names"] for study in seen.studies]
        seen.metrics["text"].update(reports, seen.batch["text"], seen.patients)
        seen.metrics["findings"].update(reports, labels, seen.patients)
        # Only then are the images read from the corpus.
        if self.wants_sample(seen):
            self._keep_samples(seen, reports)

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
