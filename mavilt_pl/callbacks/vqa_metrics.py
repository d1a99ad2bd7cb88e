"""Answers to questions about images.

Closed questions are scored by the likelihood of their candidate answers (accuracy, AUROC), open
ones by comparing texts (exact match, F1 of the words).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torchmetrics import Metric

from mavilt_pl.callbacks.metric_callback import MetricCallback
from mavilt_pl.callbacks.observation import MAJORITY, SHUFFLED, Observation
from mavilt_pl.data.records import Question
from mavilt_pl.data.training_split import majority_answers
from mavilt_pl.errors import MaviltWarning, UserError
from mavilt_pl.metrics.answers import (
    AnsweredQuestion,
    answer_metrics,
    choose_thresholds,
    update_answers,
)
from mavilt_pl.parallel.distributed import gather_lists
from mavilt_pl.ranges import NonNegativeInt


def _record(question: Question, one: AnsweredQuestion) -> dict[str, Any]:
    """A question with what was answered: probabilities of its candidates, or a text."""
    # The two names say without a look at the question which kind it is.
    kind = "probabilities" if question.candidates else "generated"
    record = {
        "question": question.question,
        "topic": question.topic,
        "reference": question.answer,
        "candidates": list(question.candidates),
        kind: one.prediction,
    }
    if one.threshold is not None:
        record["threshold"] = one.threshold
    return record


def _most_frequent(
    questions: Sequence[Question], majority: Mapping[tuple[str, frozenset[str]], str]
) -> list[Any]:
    """The most frequent answers: certainty of a candidate; "" to an open question.

    A question that was never asked in training has equal probabilities.
    """
    predictions: list[Any] = []
    for question in questions:
        candidates = question.candidates
        answer = majority.get((question.topic, frozenset(candidates)))
        if not candidates:
            predictions.append("")
        elif answer is None:
            predictions.append([1 / len(candidates)] * len(candidates))
        else:
            predictions.append([float(candidate == answer) for candidate in candidates])
    return predictions


class VQAMetrics(MetricCallback):
    """Answers every question of a study, and scores the answers.

    Controls: another patient's image, and the answer that most training questions on the same topic
    have; a dataset without training studies takes those of the first that has some. Sensitivity and
    specificity are at thresholds chosen on validation studies, and so are those of a dataset that
    has none: of the first that has some.

    Args:
        threshold_studies: how many validation studies of each source choose the thresholds; 0 for
            no thresholds.
        validate: number of studies of each source that a validation scores.
        samples: number of studies of each source that are kept as samples.
    """

    task = "vqa"
    controls = (None, SHUFFLED, MAJORITY)

    def __init__(
        self,
        threshold_studies: NonNegativeInt = 100,
        validate: NonNegativeInt = 0,
        samples: NonNegativeInt = 8,
    ):
        super().__init__(validate, samples)
        self.threshold_studies = threshold_studies
        self._thresholds: dict[int, dict[str, float]] = {}  # of each source
        self._majority: dict[int, dict[Any, str]] = {}

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make new metrics, choose thresholds and find the most frequent answers."""
        super().on_test_epoch_start(trainer, pl_module)
        self._thresholds, self._majority = {}, {}
        # Of two callbacks of this kind only one tests.
        if not self._metrics:
            return
        data = trainer.datamodule
        for source, corpus in enumerate(data.corpora):
            self._majority[source] = majority_answers(corpus, data.options)
        # A dataset without training studies is answered as the first one that was trained on.
        trained = [answers for answers in self._majority.values() if answers]
        for source, answers in self._majority.items():
            if not answers and trained:
                self._majority[source] = trained[0]
        for source, loader in self._validation_loaders(trainer).items():
            answered = self._validation_answers(trainer, pl_module, source, loader)
            self._thresholds[source] = choose_thresholds(gather_lists(answered))
        # A dataset without validation studies is read at the thresholds that were chosen at home.
        home = next(iter(self._thresholds.values()), {})
        for source in range(len(data.corpora)):
            self._thresholds.setdefault(source, home)

    def _validation_loaders(self, trainer: Trainer) -> dict[int, Any]:
        """The loader of each source with validation studies; none where they are too few."""
        if not self.threshold_studies:
            return {}
        data: Any = trainer.datamodule
        sources = [number for number, corpus in enumerate(data.corpora) if len(corpus.rows("val"))]
        try:
            loaders = dict(zip(sources, data.evaluation_loaders("val", sources)))
        # Of other views or sections than the studies have; they are tested all the same.
        except UserError as error:
            rank_zero_warn(
                f"no thresholds, so no sensitivity and specificity: {error}", category=MaviltWarning
            )
            return {}
        if not loaders:
            rank_zero_warn(
                "no thresholds, so no sensitivity and specificity: no corpus has validation "
                "studies; prepare some with --split val, or as the dataset splits them",
                category=MaviltWarning,
            )
        return loaders

    def _validation_answers(
        self, trainer: Trainer, module: LightningModule, source: int, loader: Any
    ) -> list[AnsweredQuestion]:
        """This process's answers about some validation studies of a source."""
        # The first ones of the split: which ones it is does not depend on the test.
        remaining, answered = self.threshold_studies, []
        for batch in loader:
            if remaining <= 0:
                break
            # Counted for all processes together, so that all stop at the same batch.
            remaining -= len(batch["studies"]) * trainer.world_size
            on_device = trainer.strategy.batch_to_device(batch, module.device)
            seen = Observation(trainer, module, on_device, None, None, {}, source)
            rows = [row for row, study in enumerate(seen.studies) if study["questions"]]
            # Answered even where it does not count: generation may need every process.
            found = self._answered_questions(seen.select(rows)) if rows else []
            if not loader.sampler.is_filler:
                answered += found
        return answered

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
        answered = self._answered_questions(asked)
        remaining = iter(answered)
        # Of each study as many as it has questions, in their order.
        by_study = [[next(remaining) for _ in study["questions"]] for study in asked.studies]
        for study, of_study in zip(asked.studies, by_study):
            for question, one in zip(study["questions"], of_study):
                self.record(asked, study, **_record(question, one))
        if asked.control == MAJORITY:
            # An open question has no most frequent answer that would be worth a comparison.
            answered = [one for one in answered if one.candidates]
        update_answers(asked.metrics, asked.findings, answered)
        sampled = self.sampled_rows(asked)
        if sampled:
            self._keep_samples(asked.select(sampled), [by_study[row] for row in sampled])

    def _answered_questions(self, asked: Observation) -> list[AnsweredQuestion]:
        """The questions of all studies with their answers, study by study."""
        if asked.control == MAJORITY:
            majority = self._majority[asked.source]
            answers = [_most_frequent(study["questions"], majority) for study in asked.studies]
        else:
            answers = self._answers(asked)
        thresholds = self._thresholds.get(asked.source, {})
        answered = []
        for study, patient, predictions in zip(asked.studies, asked.patients, answers):
            for question, prediction in zip(study["questions"], predictions):
                answered.append(
                    AnsweredQuestion(
                        question.topic,
                        question.answer,
                        question.candidates,
                        prediction,
                        patient,
                        thresholds.get(question.topic),
                    )
                )
        return answered

    @staticmethod
    def _answers(asked: Observation) -> list[list[Any]]:
        """The model's prediction for each question of each study."""
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
            for question, one in zip(study["questions"], predictions):
                questions.append(_record(question, one))
            self.add_sample(asked, study, image=image, questions=questions)
