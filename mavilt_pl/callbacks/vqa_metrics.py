"""Answers: accuracy and AUROC from the likelihood of what may be answered; exact match and F1 of
answers in free text.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from lightning import Trainer
from torchmetrics import Metric

from mavilt_pl.callbacks.metric_callback import SHUFFLED, MetricCallback, originals, shown
from mavilt_pl.data.collate import sample_key
from mavilt_pl.data.pixels import to_uint8
from mavilt_pl.metrics.vqa import GroupedAUROC, GroupedMean, exact_match, word_f1


class VQAMetrics(MetricCallback):
    """Scores the candidates of every closed question by their likelihood, and what is written to
    every open one. The control looks at another patient's image.
    """

    task = "vqa"
    controls = (None, SHUFFLED)

    def metrics(self, trainer: Trainer, module: Any) -> dict[str, Metric]:
        topics = [*trainer.datamodule.findings, "other"]  # type: ignore[attr-defined]
        written = "free text as text_decoding says; lower case, no punctuation, no articles (SQuAD)"
        return {
            "auroc": GroupedAUROC(topics),
            "accuracy": GroupedMean(
                "accuracy", topics, "likeliest candidate, likelihood per token"
            ),
            "exact": GroupedMean("open_exact_match", protocol=written),
            "f1": GroupedMean("open_f1", protocol=f"words, {written}"),
        }

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
        topics = list(trainer.datamodule.findings)  # type: ignore[attr-defined]
        rows = [row for row, study in enumerate(batch["studies"]) if study["questions"]]
        if not rows:
            return
        studies, patients = (
            [batch["studies"][row] for row in rows],
            [batch["patient"][row] for row in rows],
        )
        seen = shown(batch, control)
        seen = seen[rows] if isinstance(seen, torch.Tensor) else [seen[row] for row in rows]
        asked = [[(q.question, q.candidates) for q in study["questions"]] for study in studies]
        answers = module.generator.answer_questions(
            seen, asked, keys=[sample_key(study["study"]) for study in studies]
        )
        cases = [
            (question, said, patient)
            for study, patient, given in zip(studies, patients, answers)
            for question, said in zip(study["questions"], given)
        ]
        self._closed([case for case in cases if case[0].candidates], topics, metrics)
        written = [case for case in cases if not case[0].candidates]
        for name, score in (("exact", exact_match), ("f1", word_f1)):
            scores = [score(said, question.answer) for question, said, _ in written]
            metrics[name].update(scores, [0] * len(written), [patient for *_, patient in written])
        if control is None and self.wants_sample(trainer, source):
            images = to_uint8(originals(trainer, studies, source))
            for study, given, image in zip(studies, answers, images):
                for question, said in zip(study["questions"], given):
                    if self.wants_sample(trainer, source):
                        found = {"probabilities": said} if question.candidates else {"said": said}
                        self.examples.append(
                            self.sample(
                                trainer,
                                study,
                                source,
                                image=image,
                                topic=question.topic,
                                question=question.question,
                                answer=question.answer,
                                candidates=list(question.candidates),
                                **found,
                            )
                        )

    @staticmethod
    def _closed(
        cases: list[tuple[Any, list[float], str]], topics: list[str], metrics: Mapping[str, Metric]
    ) -> None:
        right, scores, truths, groups = [], [], [], []
        for question, likelihood, _ in cases:
            groups.append(topics.index(question.topic) if question.topic in topics else len(topics))
            best = question.candidates[max(range(len(likelihood)), key=likelihood.__getitem__)]
            right.append(best == question.answer)
            yes_no = set(question.candidates) == {"yes", "no"}
            scores.append(likelihood[question.candidates.index("yes")] if yes_no else 0.0)
            truths.append(float(question.answer == "yes") if yes_no else float("nan"))
        patients = [patient for *_, patient in cases]
        metrics["auroc"].update(torch.tensor(scores), torch.tensor(truths), groups, patients)
        metrics["accuracy"].update(right, groups, patients)
