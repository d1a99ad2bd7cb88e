"""Krippendorff's alpha: agreement of several readers beyond chance.

Krippendorff, Content Analysis, 4th edition, chapter 12. Any number of readers, any gaps.

Shape legend: R readers, U units that are judged, V different values.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

Level = Literal["nominal", "ordinal", "interval"]


def krippendorff_alpha(values_RU: np.ndarray, level: Level) -> float:
    """α = 1 − observed / expected disagreement: 1 is perfect, 0 is chance.

    nan where nothing can be said: no unit has two values, or all values are the same.

    Args:
        values_RU: float [R,U]; nan where a reader has not judged a unit.
        level: of measurement; it says how far apart two values are.

    >>> krippendorff_alpha(np.array([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]]), "nominal")
    1.0
    """
    known_RU = ~np.isnan(values_RU)
    values_V = np.unique(values_RU[known_RU])
    # How often each unit got each value.
    counts_UV = np.stack([(values_RU == value).sum(0) for value in values_V], -1).astype(float)
    judged_U = counts_UV.sum(1)
    # A single value of a unit can be compared with nothing.
    counts_UV = counts_UV[judged_U > 1]
    judged_U1 = counts_UV.sum(1, keepdims=True)
    # Coincidences: pairs of values within units, each unit with the weight of its judgements.
    pairs_VV = (counts_UV / np.maximum(judged_U1 - 1, 1)).T @ counts_UV
    pairs_VV -= np.diag((counts_UV / np.maximum(judged_U1 - 1, 1)).sum(0))
    total_V = counts_UV.sum(0)
    distance_VV = _squared_distances(values_V, total_V, level)
    expected = (total_V[:, None] * total_V * distance_VV).sum() / max(total_V.sum() - 1, 1)
    if expected == 0:
        return float("nan")
    return float(1 - (pairs_VV * distance_VV).sum() / expected)


def _squared_distances(values_V: np.ndarray, total_V: np.ndarray, level: Level) -> np.ndarray:
    """δ² of each pair of values [V,V]."""
    if level == "nominal":
        return 1.0 - np.eye(len(values_V))
    if level == "interval":
        return (values_V[:, None] - values_V) ** 2
    # Ordinal: the judgements between the two values, half of those of the values themselves.
    middle_V = np.cumsum(total_V) - total_V / 2
    return (middle_V[:, None] - middle_V) ** 2
