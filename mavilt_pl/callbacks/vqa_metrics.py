"""Answers to questions about images.

Closed questions are scored by the likelihood of their candidate answers (accuracy, AUROC), open
ones by comparing texts (exact match, F1 of the words).
"""

from __future__ import annotations

from typing import Any

from lightning import Trainer
from torchmetrics import Metric

from mavilt_pl.callbacks.metric_callback import MetricCallback
from mavilt_pl.callbacks.observation import SHUFFLED, Observation
from mavilt_pl.metrics.answers import AnsweredQuestion, answer_metrics, update_answers


def _answered(question: Any, prediction: Any) -> dict[str, Any]:
    """A question with what was answered: probabilities of its candidates, or a text."""
    # The two names say without a look at the question which kind it is.
    kind = "probabilities" if question.candidates else "generated"
    return {
        "question": question.question,
        "topic": question.topic,
        "reference": question.answer,
        "candidates": list(question.candidates),
        kind: prediction,
    }


class VQAMetrics(MetricCallback):
    """Answers every question of a study, and scores the answers.

    The control shows another patient's image.
    """

    task = "vqa"
    controls = (None, SHUFFLED)

    def metrics(self, trainer: Trainer, module: Any) -> dict[str, Metric]:
        """Figures by topic: the findings of the data, and one group for other topics."""
        return answer_metrics(trainer.datamodule.findings)

    def update_metrics(self, observation: Observation) -> None:
        """Answer and score the questions of a batch."""
        # A corpus may have questions about some of its studies only.
        rows = [row for row, study in enumerate(observation.studies) if study["questions"]]
        if not rows:
            return
        # Before anything is read: an image without questions would be encoded for nothing.
        asked = observation.select(rows)
        answers = self._answers(asked)
        answered: list[AnsweredQuestion] = []
        for study, patient, predictions in zip(asked.studies, asked.patients, answers):
            for question, prediction in zip(study["questions"], predictions):
                self.record(asked, study, **_answered(question, prediction))
                topic, reference = question.topic, question.answer
                answered.append(
                    AnsweredQuestion(topic, reference, question.candidates, prediction, patient)
                )
        update_answers(asked.metrics, asked.findings, answered)
        sampled = self.sampled_rows(asked)
        if sampled:
            self._keep_samples(asked.select(sampled), [answers[row] for row in sampled])

    @staticmethod
    def _answers(asked: Observation) -> list[list[Any]]:
        """A prediction for each question of each study."""
        questions = []
        for study in asked.studies:
            # Without candidates the generator answers in free text.
            questions.append([(q.question, q.candidates) for q in study["questions"]])
        return asked.module.generator.answer_questions(
            asked.images, questions, keys=asked.sample_keys
        )

    def _keep_samples(self, asked: Observation, answers: list[list[Any]]) -> None:
        # One sample a study, so that its image is shown once.
        for study, predictions, image in zip(asked.studies, answers, asked.original_images()):
            questions = []
            for question, prediction in zip(study["questions"], predictions):
                questions.append(_answered(question, prediction))
            self.add_sample(asked, study, image=image, questions=questions)
