"""Reports: BLEU, ROUGE-L, METEOR, and the F1 of the findings they assert."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning import Trainer
from torch import Tensor
from torchmetrics import Metric

from mavilt_pl.callbacks.metric_callback import SHUFFLED, MetricCallback, originals, shown
from mavilt_pl.data.collate import sample_key
from mavilt_pl.data.pixels import to_uint8
from mavilt_pl.metrics.clinical import FindingsF1
from mavilt_pl.metrics.text import TextScores


def with_text(batch: Mapping[str, Any]) -> dict[str, Any]:
    """The studies of a batch that have a text, each key's part of them; of others there are
    questions only.
    """
    rows = [row for row, text in enumerate(batch["text"]) if text.strip()]
    return {
        key: value[rows] if isinstance(value, Tensor) else [value[row] for row in rows]
        for key, value in batch.items()
        if key != "packed"
    }


class ReportMetrics(MetricCallback):
    """Writes a report for every image that has one and scores it. The control writes it from
    another patient's image.
    """

    task = "report"
    controls = (None, SHUFFLED)

    def metrics(self, trainer: Trainer, module: Any) -> dict[str, Metric]:
        return {"text": TextScores(), "findings": FindingsF1(trainer.datamodule.findings)}  # type: ignore[attr-defined]

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
        keys = [sample_key(study["study"]) for study in batch["studies"]]
        written = module.generator.generate_reports(shown(batch, control), keys=keys)
        metrics["text"].update(written, batch["text"], batch["patient"])
        metrics["findings"].update(
            written, [study["label_names"] for study in batch["studies"]], batch["patient"]
        )
        if control is None and self.wants_sample(trainer, source):
            images = to_uint8(originals(trainer, batch["studies"], source))
            for study, text, image in zip(batch["studies"], written, images):
                if self.wants_sample(trainer, source):
                    known = {
                        name: label
                        for name, label in study["label_names"].items()
                        if name in trainer.datamodule.findings
                    }  # type: ignore[attr-defined]
                    self.examples.append(
                        self.sample(
                            trainer,
                            study,
                            source,
                            image=image,
                            generated=text,
                            reference=study["text"],
                            labels=known,
                        )
                    )
