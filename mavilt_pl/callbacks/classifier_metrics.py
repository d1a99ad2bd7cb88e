"""A classifier of findings: the AUROC of each on the test's images.

Shape legend: F findings.
"""

from __future__ import annotations

from typing import Any

from lightning import Trainer
from torchmetrics import Metric

from mavilt_pl.callbacks.metric_callback import MetricCallback
from mavilt_pl.callbacks.observation import Observation, judged_images
from mavilt_pl.metrics.vqa import GroupedAUROC


class ClassifierMetrics(MetricCallback):
    """`classifier_auroc` by finding, and its mean, of a `CXRClassifier`.

    Args:
        validate: number of studies of each source that a validation scores.
        samples: not used; a classifier has no pictures.
    """

    task = "encoder"

    def metrics(self, trainer: Trainer, module: Any) -> dict[str, Metric]:
        """The area of each finding of the classifier."""
        return {"auroc": GroupedAUROC(module.net.findings, "classifier_auroc")}

    def update_metrics(self, observation: Observation) -> None:
        """Score the logits of a batch."""
        findings = observation.module.net.findings
        # Columns of labels are the data's findings, which the command line links to the module's.
        labels_BF = observation.batch["labels"].cpu()
        logits_BF = observation.outputs["logits"].cpu()
        observation.metrics["auroc"].update_columns(logits_BF, labels_BF, observation.patients)
        judged = judged_images(findings, {"classifier": logits_BF}, labels_BF)
        for study, of_judge in zip(observation.studies, judged):
            self.record(observation, study, **of_judge)
