"""Answers to questions about images.

Closed questions are scored by the likelihood of their candidate answers (accuracy, AUROC), open
ones by comparing texts (exact match, F1 of the words).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from lightning import Trainer
from torchmetrics import Metric

from mavilt_pl.callbacks.metric_callback import SHUFFLED, MetricCallback, Observation
from mavilt_pl.metrics.vqa import GroupedAUROC, GroupedMean, exact_match, word_f1


class _Case(NamedTuple):
    """A question with its answer: probabilities of the candidates, or a text without them."""

    question: Any
    prediction: Any
    patient: str


class VQAMetrics(MetricCallback):
    """Answers every question of a study, and scores the answers.

    The control shows another patient's image.
    """

    task = "vqa"
    controls = (None, SHUFFLED)

    def metrics(self, trainer: Trainer, module: Any) -> dict[str, Metric]:
        """Figures by topic: the findings of the data, and one group for other topics."""
        # Questions of a dataset may be about something else than the findings.
        topics = [*trainer.datamodule.findings, "other"]
        likeliest = "likeliest candidate, likelihood per token"
        free_text = (
            "free text as sampling.text says; lower case, no punctuation, no articles (SQuAD)"
        )
        return {
            "auroc": GroupedAUROC(topics),
            "accuracy": GroupedMean("accuracy", topics, likeliest),
            "exact": GroupedMean("open_exact_match", protocol=free_text),
            "f1": GroupedMean("open_f1", protocol=f"words, {free_text}"),
        }

    def update_metrics(self, observation: Observation) -> None:
        """Answer and score the questions of a batch."""
        rows = [row for row, study in enumerate(observation.studies) if study["questions"]]
        if not rows:
            return
        # Before anything is read: an image without questions would be encoded for nothing.
        asked = observation.select(rows)
        answers = self._answers(asked)
        closed: list[_Case] = []
        free_text: list[_Case] = []
        for study, patient, predictions in zip(asked.studies, asked.patients, answers):
            for question, prediction in zip(study["questions"], predictions):
                case = _Case(question, prediction, patient)
                if question.candidates:
                    closed.append(case)
                else:
                    free_text.append(case)
        self._score_closed(asked, closed)
        self._score_free_text(asked, free_text)
        if self.wants_sample(asked):
            self._keep_samples(asked, answers)

    @staticmethod
    def _answers(asked: Observation) -> list[list[Any]]:
        """A prediction for each question of each study."""
        questions = []
        for study in asked.studies:
            questions.append([(q.question, q.candidates) for q in study["questions"]])
        return asked.module.generator.answer_questions(
            asked.images, questions, keys=asked.sample_keys
        )

    @staticmethod
    def _score_closed(asked: Observation, cases: list[_Case]) -> None:
        topics = asked.findings
        right: list[bool] = []
        scores: list[float] = []
        truths: list[float] = []
        groups: list[int] = []
        for question, probabilities, _ in cases:
            # The group behind the last finding is "other", see `metrics`.
            group = len(topics)
            if question.topic in topics:
                group = topics.index(question.topic)
            groups.append(group)
            # The first of equal candidates.
            likeliest = probabilities.index(max(probabilities))
            right.append(question.candidates[likeliest] == question.answer)
            # Only questions between yes and no have an AUROC; nan keeps the others out of it, so
            # all lists stay of one length.
            score, truth = 0.0, float("nan")
            if set(question.candidates) == {"yes", "no"}:
                score = probabilities[question.candidates.index("yes")]
                truth = float(question.answer == "yes")
            scores.append(score)
            truths.append(truth)
        patients = [case.patient for case in cases]
        auroc, accuracy = asked.metrics["auroc"], asked.metrics["accuracy"]
        auroc.update(torch.tensor(scores), torch.tensor(truths), groups, patients)
        accuracy.update(right, groups, patients)

    @staticmethod
    def _score_free_text(asked: Observation, cases: list[_Case]) -> None:
        patients = [case.patient for case in cases]
        # Open answers have no topic, so all are in group 0.
        for name, score in (("exact", exact_match), ("f1", word_f1)):
            scores = [score(case.prediction, case.question.answer) for case in cases]
            asked.metrics[name].update(scores, [0] * len(cases), patients)

    def _keep_samples(self, asked: Observation, answers: list[list[Any]]) -> None:
        images = asked.original_images()
        for study, predictions, image in zip(asked.studies, answers, images):
            for question, prediction in zip(study["questions"], predictions):
                kind = "probabilities" if question.candidates else "prediction"
                self.add_sample(
                    asked,
                    study,
                    image=image,
                    topic=question.topic,
                    question=question.question,
                    answer=question.answer,
                    candidates=list(question.candidates),
                    **{kind: prediction},
                )
