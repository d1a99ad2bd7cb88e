"""Studies that have questions and no text are not scored as reports."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from mavilt_pl.callbacks.observation import SHUFFLED, Observation
from mavilt_pl.callbacks.report_metrics import ReportMetrics


def test_only_studies_with_a_text_are_scored() -> None:
    """Two of three: each against its own text, from its own image, or from its own control's."""
    texts = ["No effusion.", "", "The heart is enlarged."]
    batch: dict[str, Any] = {
        "codes": torch.tensor([[0], [1], [2]]),
        "control_codes": torch.tensor([[2], [0], [0]]),
        "text": texts,
        "patient": ["a", "b", "c"],
        "studies": [
            {"study": patient, "text": text, "label_names": {}}
            for patient, text in zip("abc", texts)
        ],
        "packed": [],
    }

    def generate_reports(codes: torch.Tensor, keys: list[int]) -> list[str]:
        return [texts[int(code)] for code in codes]

    module = SimpleNamespace(generator=SimpleNamespace(generate_reports=generate_reports))
    datamodule = SimpleNamespace(findings=["edema"], names=["corpus"])
    trainer: Any = SimpleNamespace(datamodule=datamodule, testing=False)
    callback = ReportMetrics(samples=0)
    for control, right in ((None, True), (SHUFFLED, False)):
        metrics = callback.metrics(trainer, module)
        callback.update_metrics(
            Observation(trainer, module, batch, None, control, metrics, source=0)
        )
        found = metrics["text"].compute()["rouge_l"]
        assert found.n == 2
        assert (found.value == 1.0) is right
