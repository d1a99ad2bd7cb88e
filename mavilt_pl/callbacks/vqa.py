"""Answers: accuracy, and AUROC from the likelihood of the answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from lightning import Trainer
from torchmetrics import Metric

from mavilt_pl.callbacks.figures import SHUFFLED, FigureCallback, originals, shown
from mavilt_pl.data.pixels import to_uint8
from mavilt_pl.metrics.vqa import Accuracy, GroupedAUROC


class VQAMetrics(FigureCallback):
    """Scores the candidates of every closed question by their likelihood. The control looks at another patient's image.

    Questions without candidates are left out here (open answers are text)."""

    task = "vqa"
    controls = (None, SHUFFLED)

    def metrics(self, trainer: Trainer, module: Any) -> dict[str, Metric]:
        topics = [*trainer.datamodule.findings, "other"]  # type: ignore[attr-defined]
        return {"auroc": GroupedAUROC(topics), "accuracy": Accuracy(topics)}

    def observe(
        self,
        trainer: Trainer,
        module: Any,
        batch: dict,
        outputs: Any,
        control: str | None,
        metrics: Mapping[str, Metric],
        source: int,
    ) -> None:
        topics = list(trainer.datamodule.findings)  # type: ignore[attr-defined]
        closed = [[q for q in study["questions"] if q.candidates] for study in batch["studies"]]
        rows = [row for row, asked in enumerate(closed) if asked]
        if not rows:
            return
        seen = shown(batch, control)
        seen = seen[rows] if isinstance(seen, torch.Tensor) else [seen[row] for row in rows]
        answers = module.answer(seen, [[(q.question, q.candidates) for q in closed[row]] for row in rows])
        scores, truths, groups, right, patients = [], [], [], [], []
        for row, given in zip(rows, answers):
            for question, likelihood in zip(closed[row], given):
                groups.append(topics.index(question.topic) if question.topic in topics else len(topics))
                best = question.candidates[max(range(len(likelihood)), key=likelihood.__getitem__)]
                right.append(best == question.answer)
                yes_no = set(question.candidates) == {"yes", "no"}
                scores.append(likelihood[question.candidates.index("yes")] if yes_no else 0.0)
                truths.append(float(question.answer == "yes") if yes_no else float("nan"))
                patients.append(batch["patient"][row])
        metrics["auroc"].update(torch.tensor(scores), torch.tensor(truths), groups, patients)
        metrics["accuracy"].update(right, groups, patients)
        if control is None and self.wants_sample(trainer, source):
            images = to_uint8(originals(trainer, [batch["studies"][row] for row in rows], source))
            for row, given, image in zip(rows, answers, images):
                for question, likelihood in zip(closed[row], given):
                    if self.wants_sample(trainer, source):
                        self.examples.append(
                            self.sample(trainer, batch["studies"][row], source, image=image, topic=question.topic, question=question.question,
                                        answer=question.answer, candidates=list(question.candidates), probabilities=likelihood)
                        )  # fmt: skip
