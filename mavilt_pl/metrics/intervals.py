"""95 % intervals in closed form: of single findings, which few studies have, and over runs.

With fewer than some 40 positive studies the percentiles of a bootstrap miss the true value far more
often than 1 time in 20: of an AUROC of .96 with 5 positives, 1 time in 3 (benchmarks/coverage.py).
These intervals keep their promise there, and never shrink to a point.

Several studies of one patient are no independent cases: a patient counts as one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import optimize, stats

Z = float(stats.norm.ppf(0.975))
# From this number of patients of either class on, the bootstrap keeps its promise for an AUROC, and
# the closed form is wider than it need be.
FEW_PATIENTS = 100
EDGE = 1e-12  # at 0 and 1 themselves an AUROC has no variance


def wilson_interval(share: float, num_cases: int) -> tuple[float | None, float | None]:
    """Interval of a proportion (E. B. Wilson, JASA 22, 1927); none below two cases.

    >>> low, high = wilson_interval(0.5, 10)
    >>> round(low, 3), round(high, 3)
    (0.237, 0.763)
    """
    # One patient says nothing of how patients differ.
    if num_cases < 2:
        return None, None
    z2 = Z**2 / num_cases
    centre = (share + z2 / 2) / (1 + z2)
    half = Z * np.sqrt(share * (1 - share) / num_cases + z2 / (4 * num_cases)) / (1 + z2)
    # At 0 and 1 the limits are these themselves, which rounding misses by a hair.
    low = 0.0 if share == 0 else max(centre - half, 0.0)
    high = 1.0 if share == 1 else min(centre + half, 1.0)
    return float(low), float(high)


def f1_interval(f1: float, num_cases: int) -> tuple[float | None, float | None]:
    """Interval of an F1 by Wilson's of the Jaccard index J = F1 / (2 − F1).

    J is the share of right cases among those that are labelled or claimed, so it is a proportion.

    Args:
        f1: in [0, 1].
        num_cases: patients with a case that is labelled or claimed.

    >>> low, high = f1_interval(1.0, 4)
    >>> round(low, 3), round(high, 3)
    (0.676, 1.0)
    """
    # A monotone function of F1, so its limits are those of F1.
    low, high = wilson_interval(f1 / (2 - f1), num_cases)
    if low is None or high is None:
        return None, None
    return 2 * low / (1 + low), 2 * high / (1 + high)


def auroc_interval(
    auroc: float, num_positive: int, num_negative: int
) -> tuple[float | None, float | None]:
    """Interval of an AUROC by method 5 of R. G. Newcombe (Statistics in Medicine 25, 2006).

    The two values from which the found one is just 1.96 standard errors away, with the variance of
    exponential scores at that value.

    Args:
        auroc: in [0, 1].
        num_positive: patients with a positive case.
        num_negative: patients with a negative case.

    >>> low, high = auroc_interval(1.0, 5, 100)
    >>> 0.7 < low < 0.9, high
    (True, 1.0)
    """
    if min(num_positive, num_negative) < 2:
        return None, None
    # Newcombe's choice, symmetric in the two classes.
    middle = (num_positive + num_negative) / 2 - 1

    def excess(true: float, sign: int) -> float:
        """How far the found value lies beyond 1.96 standard errors of a true one."""
        spread = 1 + middle * ((1 - true) / (2 - true) + true / (1 + true))
        variance = true * (1 - true) * spread / (num_positive * num_negative)
        return sign * (auroc - true) - Z * float(np.sqrt(variance))

    # At the found value the excess is not positive; at the end of the range it is, unless the value
    # lies there itself.
    inner = min(max(auroc, EDGE), 1 - EDGE)
    low, high = 0.0, 1.0
    if excess(EDGE, 1) > 0:
        low = float(optimize.brentq(excess, EDGE, inner, args=(1,)))
    if excess(1 - EDGE, -1) > 0:
        high = float(optimize.brentq(excess, inner, 1 - EDGE, args=(-1,)))
    return low, high


def t_interval(values: Sequence[float]) -> tuple[float | None, float | None]:
    """The 95 % t interval of the mean; none below two values.

    >>> low, high = t_interval([1.0, 2.0, 3.0])
    >>> round(low, 3), round(high, 3)
    (-0.484, 4.484)
    """
    if len(values) < 2:
        return None, None
    mean, error = float(np.mean(values)), float(stats.sem(values))
    if error == 0:  # scipy's interval of equal values is nan
        return mean, mean
    # t, not normal: three runs are usual, and their standard error is itself uncertain.
    low, high = stats.t.interval(0.95, len(values) - 1, loc=mean, scale=error)
    return float(low), float(high)


def num_patients(patients: np.ndarray, chosen: np.ndarray) -> int:
    """Number of different patients among the chosen rows.

    >>> num_patients(np.array([7, 7, 8]), np.array([True, True, False]))
    1
    """
    return len(np.unique(patients[chosen]))
