"""Figures of a reader study: errors, preferences, the Turing question, and how far readers agree.

Intervals are of readers and patients together (multi-reader multi-case): a resample draws patients
and readers with replacement, and a judgement counts with the product of both weights.

Shape legend: R readers, C cases.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import kendalltau

from mavilt_pl.metrics.clinical import findings_in
from mavilt_pl.reader_study.agreement import krippendorff_alpha
from mavilt_pl.reader_study.answers import Reader
from mavilt_pl.reader_study.cases import ERRORS

RESAMPLES = 1000
Figure = dict[str, Any]
PROTOCOL = "mean over readers and cases; 95 % interval from resamples of readers and patients"
OTHER = {"first": "second", "second": "first"}


def score_study(key: Mapping[str, Any], readers: Sequence[Reader]) -> list[Figure]:
    """All figures, in the order of the table.

    Args:
        key: of the study.
        readers: at least one.
    """
    figures: list[Figure] = []
    # A study may have only one of the two.
    reports = [case for case in key["cases"] if case["kind"] == "report"]
    drawings = [case for case in key["cases"] if case["kind"] == "drawing"]
    if reports:
        figures += _report_figures(reports, readers)
    if drawings:
        figures += _drawing_figures(drawings, readers)
    return figures


def _report_figures(cases: Sequence[Mapping[str, Any]], readers: Sequence[Reader]) -> list[Figure]:
    patients = _patients(cases)
    figures: list[Figure] = []
    errors = {author: _errors(cases, readers, author) for author in ("model", "reference")}
    for name in ("all", *ERRORS, "significant"):
        model_RC, reference_RC = errors["model"][name], errors["reference"][name]
        figures += [
            _mean(f"errors_{name}_model", model_RC, patients),
            _mean(f"errors_{name}_reference", reference_RC, patients),
            # Of the same image and reader, so what makes an image hard cancels.
            _mean(f"errors_{name}_difference", model_RC - reference_RC, patients),
        ]
    better_RC = _choices(cases, readers, "better")
    figures.append(_mean("prefers_model", better_RC, patients))
    # Readers are compared on every report that they judged, whoever wrote it.
    both = {
        name: np.concatenate([errors["model"][name], errors["reference"][name]], 1)
        for name in ("all", "significant")
    }
    twice = np.concatenate([patients, patients])
    figures += [
        _alpha("alpha_errors", both["all"], "interval", twice),
        _alpha("alpha_significant", both["significant"], "interval", twice),
        _alpha("alpha_preference", better_RC, "nominal", patients),
        _tau(cases, errors["model"]["all"], patients),
    ]
    # For example the alpha of a single reader.
    return [figure for figure in figures if np.isfinite(figure["value"])]


def _drawing_figures(cases: Sequence[Mapping[str, Any]], readers: Sequence[Reader]) -> list[Figure]:
    patients = _patients(cases)
    # 1 where the model's image is taken for the real one.
    fooled_RC, fits_RC = _choices(cases, readers, "real"), _choices(cases, readers, "fits")
    figures = [
        # 0.5 is what guessing gives.
        _mean("real_found", 1 - fooled_RC, patients),
        _mean("drawing_fits_better", fits_RC, patients),
        _alpha("alpha_real", fooled_RC, "nominal", patients),
    ]
    return [figure for figure in figures if np.isfinite(figure["value"])]


def _patients(cases: Sequence[Mapping[str, Any]]) -> np.ndarray:
    # With the source: two datasets may use one number for two people.
    names = [f"{case['source']}:{case['patient']}" for case in cases]
    return np.unique(names, return_inverse=True)[1]


def _errors(
    cases: Sequence[Mapping[str, Any]], readers: Sequence[Reader], author: str
) -> dict[str, np.ndarray]:
    """Counts [R,C] of each kind of error in the reports of an author; nan without an answer."""
    kinds = (*ERRORS, "significant")
    found = {name: np.full((len(readers), len(cases)), np.nan) for name in ("all", *kinds)}
    for r, reader in enumerate(readers):
        for c, case in enumerate(cases):
            if case["id"] in reader.answers:
                side = case["model"] if author == "model" else OTHER[case["model"]]
                counts = reader.answers[case["id"]][side]
                for kind in kinds:
                    found[kind][r, c] = counts[kind]
                # Those that matter are among the others.
                found["all"][r, c] = sum(counts[kind] for kind in ERRORS)
    return found


def _choices(
    cases: Sequence[Mapping[str, Any]], readers: Sequence[Reader], question: str
) -> np.ndarray:
    """1 for the model's, 0 for the other, 0.5 for no difference [R,C]; nan without an answer."""
    found = np.full((len(readers), len(cases)), np.nan)
    for r, reader in enumerate(readers):
        for c, case in enumerate(cases):
            if case["id"] in reader.answers:
                chosen = reader.answers[case["id"]][question]
                found[r, c] = 0.5 if chosen == "equal" else float(chosen == case["model"])
    return found


def _mean(metric: str, values_RC: np.ndarray, patients: np.ndarray) -> Figure:
    """The mean of all judgements with its interval."""
    known_RC = ~np.isnan(values_RC)
    # nan times 0 would be nan.
    filled_RC = np.where(known_RC, values_RC, 0.0)

    def statistic(readers_R: np.ndarray, cases_C: np.ndarray) -> float:
        weights_RC = readers_R[:, None] * cases_C * known_RC
        total = weights_RC.sum()
        return float((weights_RC * filled_RC).sum() / total) if total else np.nan

    return _figure(metric, statistic, values_RC, patients, PROTOCOL)


def _alpha(metric: str, values_RC: np.ndarray, level: Any, patients: np.ndarray) -> Figure:
    """Krippendorff's alpha; its interval is of patients, since readers are what it compares."""

    def statistic(readers_R: np.ndarray, cases_C: np.ndarray) -> float:
        # A patient drawn twice is two patients.
        repeated_RC = np.repeat(values_RC, cases_C.astype(int), axis=1)
        return krippendorff_alpha(repeated_RC, level) if repeated_RC.size else np.nan

    protocol = f"Krippendorff's alpha, {level}; 95 % interval from resamples of patients"
    return _figure(metric, statistic, values_RC, patients, protocol)


def _tau(cases: Sequence[Mapping[str, Any]], errors_RC: np.ndarray, patients: np.ndarray) -> Figure:
    """Do the readers' errors follow the labeller's? Kendall's τ-b over the model's reports."""
    automatic_C = np.array([_labelled_errors(case) for case in cases], float)

    def statistic(readers_R: np.ndarray, cases_C: np.ndarray) -> float:
        known_RC = ~np.isnan(errors_RC) * readers_R[:, None]
        judged_C = known_RC.sum(0) * cases_C > 0
        totals_C = (np.nan_to_num(errors_RC) * known_RC).sum(0)
        means_C = totals_C[judged_C] / known_RC.sum(0)[judged_C]
        times = cases_C[judged_C].astype(int)
        pairs = np.repeat(means_C, times), np.repeat(automatic_C[judged_C], times)
        # Of constant values there is no order.
        if any(len(np.unique(values)) < 2 for values in pairs):
            return np.nan
        return float(kendalltau(*pairs).statistic)

    protocol = (
        "Kendall's tau-b between the readers' mean errors and the findings that the labeller reads "
        "in one of the two reports only; interval of readers and patients"
    )
    return _figure("tau_labeller", statistic, errors_RC, patients, protocol)


def _labelled_errors(case: Mapping[str, Any]) -> int:
    """Findings that the labeller reads in the model's report or the reference, and not in both."""
    sets = []
    for text in (case["generated"], case["reference"]):
        sets.append({name for name, label in findings_in(text).items() if label == "present"})
    return len(sets[0] ^ sets[1])


def _figure(
    metric: str, statistic: Any, values_RC: np.ndarray, patients: np.ndarray, protocol: str
) -> Figure:
    """A statistic of weights of readers [R] and cases [C], with its interval."""
    num_readers, num_cases = values_RC.shape
    unique = np.unique(patients)
    value = statistic(np.ones(num_readers), np.ones(num_cases))
    # A seed of its own for each figure, so that none depends on the others.
    random = np.random.default_rng(0)
    resampled = []
    # Of a single patient nothing is known about the next.
    for _ in range(RESAMPLES if len(unique) > 1 else 0):
        readers_R = random.multinomial(num_readers, np.full(num_readers, 1 / num_readers))
        drawn = random.multinomial(len(unique), np.full(len(unique), 1 / len(unique)))
        resampled.append(statistic(readers_R.astype(float), drawn[patients].astype(float)))
    known = np.array([one for one in resampled if np.isfinite(one)])
    low, high = np.percentile(known, [2.5, 97.5]) if len(known) else (None, None)
    # As for every figure: where all resamples agree there is no interval.
    if low is None or low == high:
        low = high = None
    return {
        "metric": metric,
        "value": value,
        "low": None if low is None else float(low),
        "high": None if high is None else float(high),
        "n": int((~np.isnan(values_RC)).sum()),
        "protocol": protocol,
    }
