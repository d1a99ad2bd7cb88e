"""Scores of single reports by the package RadEval: RadGraph, RaTEScore, RadCliQ, GREEN and others.

It is the extra `mavilt[radeval]`. Its models come from a hub, or from the hub's cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import numpy as np

from mavilt_pl.errors import UserError
from mavilt_pl.metrics.bootstrap import Estimate, drop_undefined, patient_key, weighted_mean_ci


def radeval_scores(
    metrics: Sequence[str],
    reports: Sequence[str],
    references: Sequence[str],
    patients: Sequence[str],
) -> dict[str, Estimate]:
    """The mean of each of RadEval's scores with its interval by patient, as `radeval_<score>`.

    Args:
        metrics: RadEval's names, such as radgraph, ratescore, radcliq, green.
        reports: generated texts.
        references: as many.
        patients: of each pair.

    Raises:
        UserError: the package is missing, or a metric or its model cannot be had.
    """
    # An extra with many dependencies, imported only where it is asked for.
    try:
        from radeval import RadEval
    except ImportError as error:
        raise UserError(
            f"RadEval cannot be imported ({error}); install it with: pip install 'mavilt[radeval]'"
        ) from None
    try:
        evaluator: Any = RadEval(metrics=list(metrics), per_sample=True, show_progress=False)
        scores = evaluator(refs=list(references), hyps=list(reports))
    # Each metric raises its own kinds: unknown names, models that the hub's cache lacks.
    except Exception as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)[:300]
        raise UserError(
            f"RadEval {version('RadEval')} could not compute {', '.join(metrics)}: {reason}. "
            "Without a network its models have to be in the hub's cache (HF_HOME)"
        ) from None
    # Our intervals: the package's own are by report, not by patient.
    keys = np.array([patient_key(patient) for patient in patients])
    figures = {}
    for name, values in sorted(scores.items()):
        # A metric may give other facts beside its scores.
        numbers = isinstance(values, Sequence) and all(isinstance(v, (int, float)) for v in values)
        if numbers and len(values) == len(reports):
            scored = np.array(values, dtype=float)
            figures[f"radeval_{name}"] = weighted_mean_ci(scored, keys)
    return drop_undefined(figures)


def radeval_protocol() -> str:
    """How the figures are computed."""
    return f"RadEval {version('RadEval')}, mean of its scores of single reports"
