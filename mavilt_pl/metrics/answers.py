"""Figures of answered questions: closed ones by likelihoods, open ones by their text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torchmetrics import Metric

from mavilt_pl.metrics.vqa import GroupedAUROC, GroupedMean, exact_match, word_f1


class AnsweredQuestion(NamedTuple):
    """A question with its answer.

    Args:
        topic: finding or type of question.
        reference: the right answer.
        candidates: possible answers; none of an open question.
        prediction: the probability of each candidate, or a text without candidates.
        patient: whom it is about.
    """

    topic: str
    reference: str
    candidates: Sequence[str]
    prediction: Any
    patient: str


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
    right: list[bool] = []
    scores: list[float] = []
    truths: list[float] = []
    groups: list[int] = []
    for one in answered:
        # The group behind the last topic is "other".
        groups.append(topics.index(one.topic) if one.topic in topics else len(topics))
        # The first of equal candidates.
        likeliest = one.prediction.index(max(one.prediction))
        right.append(one.candidates[likeliest] == one.reference)
        # Only questions between yes and no have an AUROC; nan keeps the others out of it, so all
        # lists stay of one length.
        score, truth = 0.0, float("nan")
        if set(one.candidates) == {"yes", "no"}:
            score = one.prediction[one.candidates.index("yes")]
            truth = float(one.reference == "yes")
        scores.append(score)
        truths.append(truth)
    patients = [one.patient for one in answered]
    metrics["auroc"].update(torch.tensor(scores), torch.tensor(truths), groups, patients)
    metrics["accuracy"].update(right, groups, patients)
