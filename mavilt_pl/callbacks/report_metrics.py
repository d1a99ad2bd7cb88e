"""Reports: BLEU, ROUGE-L, METEOR, and the F1 of the findings they assert."""

from __future__ import annotations

import warnings
from typing import Any

from lightning import LightningModule, Trainer
from torchmetrics import Metric

from mavilt_pl.callbacks.metric_callback import SHUFFLED, MetricCallback, Observation
from mavilt_pl.errors import MaviltWarning
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
        metrics: dict[str, Metric] = {"text": TextScores()}
        # Data of reports alone name no finding.
        if trainer.datamodule.findings:
            metrics["findings"] = FindingsF1(trainer.datamodule.findings)
        return metrics

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compute the figures; say of which sources the findings could not be scored."""
        super().on_test_epoch_end(trainer, pl_module)
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
        reports = seen.module.generator.generate_reports(seen.images, keys=seen.sample_keys)
        labels = [study["label_names"] for study in seen.studies]
        seen.metrics["text"].update(reports, seen.batch["text"], seen.patients)
        if "findings" in seen.metrics:
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
