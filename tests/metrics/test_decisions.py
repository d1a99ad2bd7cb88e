"""Answers of yes or no, against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, balanced_accuracy_score, roc_curve

from mavilt_pl.metrics.answers import (
    AnsweredQuestion,
    answer_metrics,
    choose_thresholds,
    update_answers,
)
from mavilt_pl.metrics.decisions import average_precision, calibration_error, youden_threshold


@pytest.fixture(params=[0, 1, 2])
def answers(request: pytest.FixtureRequest) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of yes, many of them equal, and truths."""
    random = np.random.default_rng(request.param)
    truth = (random.random(400) < 0.2).astype(float)
    return np.round(np.clip(random.normal(0.3 + 0.2 * truth, 0.2), 0, 1), 2), truth


def test_average_precision(answers: tuple[np.ndarray, np.ndarray]) -> None:
    score, truth = answers
    assert average_precision(score, truth) == pytest.approx(average_precision_score(truth, score))
    weights = np.random.default_rng(9).integers(0, 3, len(score)).astype(float)
    expected = average_precision_score(truth, score, sample_weight=weights)
    assert average_precision(score, truth, weights) == pytest.approx(expected)
    assert np.isnan(average_precision(score, np.zeros(len(score))))


def test_the_threshold_is_the_best_one(answers: tuple[np.ndarray, np.ndarray]) -> None:
    score, truth = answers
    false_positives, true_positives, _ = roc_curve(truth, score)
    threshold = youden_threshold(score, truth)
    assert threshold is not None
    gain = balanced_accuracy_score(truth, score >= threshold) * 2 - 1
    assert gain == pytest.approx((true_positives - false_positives).max())
    assert youden_threshold(score, np.ones(len(score))) is None
    # Scores that say nothing.
    assert youden_threshold(np.full(4, 0.2), np.array([0.0, 1, 0, 1])) == 0.5


def test_calibration_error_of_known_bins() -> None:
    score = np.array([0.95] * 10 + [0.05] * 10)
    truth = np.array([1.0] * 5 + [0.0] * 5 + [0.0] * 10)
    # Half of the answers are off by .45, half by .05.
    assert calibration_error(score, truth) == pytest.approx(0.25)
    assert calibration_error(np.array([1.0, 0.0]), np.array([1.0, 0.0])) == 0


def answered(
    scores: np.ndarray, truths: np.ndarray, threshold: float | None = None
) -> list[AnsweredQuestion]:
    """Questions about edema, each of another patient."""
    rows = []
    for number, (score, truth) in enumerate(zip(scores, truths)):
        prediction = [float(score), 1 - float(score)]
        answer = "yes" if truth else "no"
        rows.append(
            AnsweredQuestion("edema", answer, ("yes", "no"), prediction, f"p{number}", threshold)
        )
    return rows


def figures(rows: list[AnsweredQuestion]) -> dict[str, float]:
    metrics = answer_metrics(["edema"])
    update_answers(metrics, ["edema"], rows)
    found = {}
    for metric in metrics.values():
        found |= {name: value.value for name, value in metric.compute().items()}
    return found


def test_figures_at_a_threshold_from_validation(answers: tuple[np.ndarray, np.ndarray]) -> None:
    score, truth = answers
    validation, test = slice(0, 200), slice(200, 400)
    threshold = choose_thresholds(answered(score[validation], truth[validation]))["edema"]
    found = figures(answered(score[test], truth[test], threshold))
    called = score[test] >= threshold
    expected = balanced_accuracy_score(truth[test], called)
    assert found["balanced_accuracy/edema"] == pytest.approx(expected)
    assert found["balanced_accuracy_macro"] == pytest.approx(expected)
    assert found["sensitivity/edema"] == pytest.approx(called[truth[test] == 1].mean())
    assert found["specificity/edema"] == pytest.approx((~called)[truth[test] == 0].mean())
    assert found["auprc/edema"] == pytest.approx(average_precision_score(truth[test], score[test]))


def test_without_a_threshold_there_are_no_decisions(
    answers: tuple[np.ndarray, np.ndarray],
) -> None:
    found = figures(answered(*answers))
    assert "auprc_macro" in found
    assert "ece" in found
    assert not any("balanced" in name or "sensitivity" in name for name in found)


@pytest.mark.parametrize(("positives", "has_interval"), [(30, True), (8, False)])
def test_a_mean_of_rare_findings_has_no_interval(positives: int, has_interval: bool) -> None:
    truth = np.array([1.0] * positives + [0.0] * 200)
    scores = np.random.default_rng(0).random(len(truth)) * 0.5 + truth * 0.3
    metrics = answer_metrics(["edema"])
    update_answers(metrics, ["edema"], answered(scores, truth, 0.5))
    found = metrics["yes_no"].compute()["balanced_accuracy_macro"]
    assert (found.low is not None) == has_interval
    assert found.positives == positives


def test_one_kind_of_answer_alone() -> None:
    found = figures(answered(np.array([0.2, 0.4]), np.array([0.0, 0.0])))
    assert found["accuracy"] == 1
    assert not any(name.startswith(("auroc", "auprc")) for name in found)
