"""The figures of a file of predictions, without a model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from mavilt_pl.errors import UserError
from mavilt_pl.evaluation.predictions import Record
from mavilt_pl.evaluation.results import Figure
from mavilt_pl.metrics.answers import AnsweredQuestion, answer_metrics, update_answers
from mavilt_pl.metrics.bootstrap import PatientBootstrapMetric, Statistics, patient_key
from mavilt_pl.metrics.coco import coco_statistics
from mavilt_pl.metrics.finding_phrases import TERM
from mavilt_pl.metrics.findings_f1 import FindingsF1
from mavilt_pl.metrics.labellers import RULES, Labeller
from mavilt_pl.metrics.meteor_coco import PROTOCOL as METEOR_PROTOCOL
from mavilt_pl.metrics.meteor_coco import meteor_coco
from mavilt_pl.metrics.radeval import radeval_protocol, radeval_scores
from mavilt_pl.metrics.report_pairs import pair_scores
from mavilt_pl.metrics.text import TextScores
from mavilt_pl.metrics.vqa import GroupedAUROC, GroupedMean

IMAGE_TASKS = ("encoder", "tokenizer", "synthesis")
AS_TESTED = "as the test's own figure of this name"
Table = tuple[Statistics, np.ndarray]  # statistics of rows, and the patient of each row


class Extras(NamedTuple):
    """What `score` computes beyond the figures of a test.

    Args:
        labeller: a second program that reads the findings of both texts.
        radeval: names of RadEval's metrics.
        meteor: METEOR 1.5, where Java is.
    """

    labeller: Labeller | None = None
    radeval: Sequence[str] = ()
    meteor: bool = False


def score(
    records: Sequence[Record], findings: Sequence[str] | None = None, extras: Extras | None = None
) -> list[Figure]:
    """All figures of a file's records, by source, as a test computes them.

    Findings F1 of reports with labels is against these. `texts_f1_…` is between the findings that
    the labeller reads in the reference and in the generated text, so it needs no labels.

    Args:
        records: of `read_predictions`.
        findings: that F1 is computed of (default: all that are labelled and the labeller names).
        extras: more figures of reports.

    Raises:
        UserError: nothing can be scored.
    """
    extras = extras or Extras()
    figures: list[Figure] = []
    # Sources are never averaged: they are different populations.
    for source in dict.fromkeys(str(record["source"]) for record in records):
        # In the order of the file, which pairs texts with patients.
        of_source = [record for record in records if str(record["source"]) == source]
        reports = [record for record in of_source if record["task"] == "report"]
        answers = [record for record in of_source if record["task"] == "vqa"]
        images = [record for record in of_source if record["task"] in IMAGE_TASKS]
        if reports:
            figures += _score_reports(source, reports, findings, extras)
        if answers:
            figures += _score_answers(source, answers, findings)
        for task in dict.fromkeys(str(record["task"]) for record in images):
            of_task = [record for record in images if record["task"] == task]
            for metric in _image_metrics(of_task, None):
                figures += _figures(task, source, metric)
    if not figures:
        raise UserError("no record is of a report or a question: there is nothing to score")
    return figures


def _score_reports(
    source: str, reports: Sequence[Record], findings: Sequence[str] | None, extras: Extras
) -> list[Figure]:
    figures: list[Figure] = []
    for metric in _report_metrics(reports, findings):
        figures += _figures("report", source, metric)
    columns = generated, references, patients = _columns(reports)
    for name, value, protocol in pair_scores(generated, references, patients):
        figures.append(value.as_figure("report", source, name, protocol))
    # Both texts under one reader, beside the labels of the corpus.
    figures += _between_texts(source, "texts_f1", RULES, *columns)
    if extras.labeller is not None:
        name = f"{extras.labeller.name.lower()}_f1"
        figures += _between_texts(source, name, extras.labeller, *columns)
    if extras.radeval:
        protocol = radeval_protocol()
        scores = radeval_scores(extras.radeval, generated, references, patients)
        for name, value in scores.items():
            figures.append(value.as_figure("report", source, name, protocol))
    if extras.meteor:
        for name, value in meteor_coco(generated, references).items():
            figures.append(value.as_figure("report", source, name, METEOR_PROTOCOL))
    return figures


def _between_texts(
    source: str,
    prefix: str,
    labeller: Labeller,
    generated: Sequence[str],
    references: Sequence[str],
    patients: Sequence[str],
) -> list[Figure]:
    """F1 between the findings that one labeller reads in both texts."""
    # Once a text, in a fixed order: a network reads in batches.
    different = sorted(set(references))
    # "none" keeps a reference without any finding among the studies whose labels are known.
    read = {
        text: {"none": "absent", **found}
        for text, found in zip(different, labeller.read(different))
    }
    # All findings: no label table limits what two texts can be compared in.
    both = FindingsF1(sorted(labeller.findings), labeller, "itself on the reference")
    both.update(generated, [read[text] for text in references], patients)
    figures = []
    for name, value in sorted(both.compute().items()):
        # Another name, since the two are not comparable.
        name = name.replace("findings_f1", prefix)
        figures.append(value.as_figure("report", source, name, both.protocol))
    return figures


def _columns(reports: Sequence[Record]) -> tuple[list[str], list[str], list[str]]:
    """Generated texts, references and patients."""
    generated = [record["generated"] for record in reports]
    references = [record["reference"] for record in reports]
    return generated, references, [str(record["patient"]) for record in reports]


def _report_metrics(
    reports: Sequence[Record], findings: Sequence[str] | None
) -> list[PatientBootstrapMetric]:
    """Metrics of the texts, and of their findings if there are labels."""
    generated, references, patients = _columns(reports)
    text = TextScores()
    text.update(generated, references, patients)
    metrics: list[PatientBootstrapMetric] = [text]
    labels = [_labels(record) for record in reports]
    # Without any label there is no F1 against labels, only that between the texts.
    named = {name for known in labels for name in known} & TERM.keys()
    if named and (findings is None or findings):
        against_labels = FindingsF1(sorted(named) if findings is None else findings)
        against_labels.update(generated, labels, patients)
        metrics.append(against_labels)
    return metrics


def _threshold(record: Record) -> float | None:
    found = record.get("threshold")
    # As labels: another program's may be anything.
    return float(found) if isinstance(found, (int, float)) else None


def _labels(record: Record) -> Mapping[str, str]:
    found = record.get("labels")
    # A column of another program may be anything.
    return found if isinstance(found, dict) else {}


def _score_answers(
    source: str, answers: Sequence[Record], findings: Sequence[str] | None
) -> list[Figure]:
    figures = []
    for metric in _answer_metrics(answers, findings):
        figures += _figures("vqa", source, metric)
    return figures


def _answer_metrics(answers: Sequence[Record], findings: Sequence[str] | None) -> list[Any]:
    """Metrics of closed and of open questions."""
    # Each topic that occurs, unless the file says which ones the test scored.
    topics = sorted({str(record.get("topic", "other")) for record in answers} - {"other"})
    if findings is not None:
        topics = list(findings)
    answered = []
    for record in answers:
        probabilities, candidates = record.get("probabilities"), record.get("candidates") or ()
        # Of another program's closed questions there may be a text only.
        is_closed = isinstance(probabilities, list) and len(probabilities) == len(candidates)
        prediction = probabilities if is_closed else record.get("generated", "")
        candidates = tuple(candidates) if is_closed else ()
        topic, patient = str(record.get("topic", "other")), str(record["patient"])
        answered.append(
            AnsweredQuestion(
                topic, record["reference"], candidates, prediction, patient, _threshold(record)
            )
        )
    metrics = answer_metrics(topics)
    update_answers(metrics, topics, answered)
    return [*metrics.values()]


def _image_metrics(
    images: Sequence[Record], findings: Sequence[str] | None
) -> list[PatientBootstrapMetric]:
    """Metrics of reconstructions or drawings: the mean of each score, the area of each finding."""
    patients = [str(record["patient"]) for record in images]
    metrics: list[PatientBootstrapMetric] = []
    # All records of a test have the same scores and the same findings.
    for name in images[0].get("scores", {}):
        mean = GroupedMean(name, protocol=AS_TESTED)
        mean.update([record["scores"][name] for record in images], [0] * len(images), patients)
        metrics.append(mean)
    for name, logits in images[0].get("logits", {}).items():
        # A judge may know findings that the test does not score.
        chosen = [finding for finding in logits if findings is None or finding in findings]
        area = GroupedAUROC(chosen, f"{name}_auroc")
        area.protocol = AS_TESTED
        for number, finding in enumerate(chosen):
            scores = torch.tensor([record["logits"][name][finding] for record in images])
            truths = [record["truths"].get(finding, math.nan) for record in images]
            area.update(scores, torch.tensor(truths), [number] * len(images), patients)
        metrics.append(area)
    return metrics


def topics_of(task: str, records: Sequence[Record], findings: Sequence[str] | None) -> set[str]:
    """The findings or topics that records have enough cases of for a figure.

    A report's finding must be present in a reference. That of a question or an image must be
    present in one and absent in another. Questions that are not answered by yes or no need one.
    """
    cases: dict[str, set[str]] = {}
    for record in records:
        if task == "vqa":
            answer = str(record["reference"])
            closed = set(record.get("candidates") or ()) == {"yes", "no"}
            # Enough by itself.
            values = {answer} if closed else {"yes", "no"}
            cases.setdefault(str(record.get("topic", "other")), set()).update(values)
            continue
        # Both are mappings of findings, of words for reports and of numbers for images.
        known = _labels(record) if task == "report" else record.get("truths", {})
        for finding, value in known.items():
            cases.setdefault(finding, set()).add(str(value))
    needed = {"vqa": {"yes", "no"}, "report": {"present"}}.get(task, {"1.0", "0.0"})
    enough = {finding for finding, values in cases.items() if needed <= values}
    # A judge scores all of its own findings, whatever the data ask about.
    return enough & set(findings) if task == "report" and findings is not None else enough


def tables(task: str, records: Sequence[Record], findings: Sequence[str] | None) -> list[Table]:
    """Each metric of a task as statistics of its rows, with the patient of each row.

    Args:
        task: report, vqa, encoder, tokenizer or synthesis.
        records: of that task and one source.
        findings: as for `score`.
    """
    if task == "vqa":
        return [_table(metric) for metric in _answer_metrics(records, findings)]
    if task in IMAGE_TASKS:
        return [_table(metric) for metric in _image_metrics(records, findings)]
    generated, references, patients = _columns(records)
    keys = np.array([patient_key(patient) for patient in patients])
    # CIDEr depends on all texts, so its rows stay in the order of the file.
    coco = coco_statistics(generated, references), keys
    return [*map(_table, _report_metrics(records, findings)), coco]


def _table(metric: PatientBootstrapMetric) -> Table:
    rows, patients = metric.table()
    return metric.statistics(rows), patients


def _figures(task: str, source: str, metric: PatientBootstrapMetric) -> list[Figure]:
    figures = []
    for name, value in sorted(metric.compute().items()):
        figures.append(value.as_figure(task, source, name, metric.protocol_of(name)))
    return figures
