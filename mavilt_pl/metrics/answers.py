"""Figures of answered questions: closed ones by likelihoods, open ones by their text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torchmetrics import Metric

from mavilt_pl.metrics.decisions import YesNoScores, youden_threshold
from mavilt_pl.metrics.vqa import GroupedAUROC, GroupedMean, exact_match, word_f1


class AnsweredQuestion(NamedTuple):
    """A question with its answer.

    Args:
        topic: finding or type of question.
        reference: the right answer.
        candidates: possible answers; none of an open question.
        prediction: the probability of each candidate, or a text without candidates.
        patient: whom it is about.
        threshold: the probability of yes from which on it counts as said, if one was chosen.
    """

    topic: str
    reference: str
    candidates: Sequence[str]
    prediction: Any
    patient: str
    threshold: float | None = None


def answer_metrics(topics: Sequence[str]) -> dict[str, Metric]:
    """New metrics by topic, with one group for other topics.

    Questions of a dataset may be about something else than the findings.
    """
    # Last, so that a topic's number is its place in `topics`.
    groups = [*topics, "other"]
    likeliest = "likeliest candidate, likelihood per token"
    free_text = "free text as sampling.text says; lower case, no punctuation, no articles (SQuAD)"
    return {
        "auroc": GroupedAUROC(groups),
        "yes_no": YesNoScores(groups),
        "accuracy": GroupedMean("accuracy", groups, likeliest),
        "exact": GroupedMean("open_exact_match", protocol=free_text),
        "f1": GroupedMean("open_f1", protocol=f"words, {free_text}"),
    }


def update_answers(
    metrics: Mapping[str, Metric], topics: Sequence[str], answered: Sequence[AnsweredQuestion]
) -> None:
    """Add answered questions.

    Args:
        metrics: of `answer_metrics`.
        topics: of the same call.
        answered: closed and open questions.
    """
    _update_closed(metrics, topics, [one for one in answered if one.candidates])
    # Their likelihood has no alternative to be compared with.
    free_text = [one for one in answered if not one.candidates]
    patients = [one.patient for one in free_text]
    # Open answers have no topic, so all are in group 0.
    for name, score in (("exact", exact_match), ("f1", word_f1)):
        scores = [score(one.prediction, one.reference) for one in free_text]
        metrics[name].update(scores, [0] * len(free_text), patients)


def _update_closed(
    metrics: Mapping[str, Metric], topics: Sequence[str], answered: Sequence[AnsweredQuestion]
) -> None:
    # The group behind the last topic is "other".
    places = {topic: number for number, topic in enumerate(topics)}
    groups = [places.get(one.topic, len(topics)) for one in answered]
    right = []
    for one in answered:
        # The first of equal candidates.
        likeliest = one.prediction.index(max(one.prediction))
        right.append(one.candidates[likeliest] == one.reference)
    metrics["accuracy"].update(right, groups, [one.patient for one in answered])
    scores, truths, decisions, of_group, patients = [], [], [], [], []
    for one, group in zip(answered, groups):
        score = probability_of_yes(one)
        # Only answers between yes and no have areas and thresholds.
        if score is None:
            continue
        scores.append(score)
        truths.append(float(one.reference == "yes"))
        decisions.append(math.nan if one.threshold is None else float(score >= one.threshold))
        of_group.append(group)
        patients.append(one.patient)
    areas = torch.tensor(scores, dtype=torch.float64), torch.tensor(truths)
    metrics["auroc"].update(*areas, of_group, patients)
    metrics["yes_no"].update(scores, truths, decisions, of_group, patients)


def probability_of_yes(one: AnsweredQuestion) -> float | None:
    """The probability of yes; None of a question that has other candidates or none."""
    if set(one.candidates) != {"yes", "no"}:
        return None
    return float(one.prediction[list(one.candidates).index("yes")])


def choose_thresholds(answered: Sequence[AnsweredQuestion]) -> dict[str, float]:
    """A threshold of the probability of yes for each topic, from answers in validation.

    A topic without answers of both kinds has none.
    """
    by_topic: dict[str, list[tuple[float, float]]] = {}
    for one in answered:
        score = probability_of_yes(one)
        if score is not None:
            by_topic.setdefault(one.topic, []).append((score, float(one.reference == "yes")))
    thresholds = {}
    for topic, rows in sorted(by_topic.items()):
        scores, truths = np.array(rows).T
        threshold = youden_threshold(scores, truths)
        if threshold is not None:
            thresholds[topic] = threshold
    return thresholds
