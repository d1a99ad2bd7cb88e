"""Figures with an interval: the bootstrap over patients that every metric here uses.

Own code: `scipy.stats.bootstrap` resamples rows, not groups of rows of one patient, and recomputes
the statistic on the resampled rows instead of on weights, which is much slower for BLEU and AUROC.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

# The limits of a 95 % interval then stand on 7 values at each end.
RESAMPLES = 300
Statistic = Callable[[np.ndarray], float]  # weights float64 [n] of the rows → a number or nan
Statistics = Callable[[np.ndarray], Mapping[str, float]]  # the same → numbers by name


class Estimate(NamedTuple):
    """A value, its 95 % interval by patient, and the number of cases.

    `low` and `high` are None if no interval was computed. `positives` is the number of positive
    cases of a figure that has such: what it is worth depends on them.
    """

    value: float
    low: float | None
    high: float | None
    n: int
    positives: int | None = None

    def as_figure(
        self, task: str, source: str, metric: str, protocol: str, control: str | None = None
    ) -> dict[str, Any]:
        """The figure as results.json has it.

        Args:
            task: encoder | tokenizer | report | vqa | synthesis | text.
            source: name of the corpus.
            metric: name of the figure.
            protocol: how it is computed.
            control: name of a control; None for the model itself.
        """
        named = {"task": task, "source": source, "metric": metric}
        return {**named, **self._asdict(), "protocol": protocol, "control": control}


def patient_key(patient: str) -> int:
    """A stable 63-bit number for a patient, which a tensor can carry between processes.

    >>> patient_key("p10000032") == patient_key("p10000032") < 2**63
    True
    """
    digest = hashlib.blake2b(patient.encode(), digest_size=8).digest()
    # Shifted to 63 bits: int64 is signed.
    return int.from_bytes(digest, "big") >> 1


def bootstrap(
    statistic: Statistic, patients: np.ndarray, number: int = RESAMPLES, seed: int = 0
) -> tuple[float | None, float | None]:
    """95 % percentile interval of a statistic, with patients resampled with replacement.

    Resamples in which the statistic is nan do not count. Below two patients there is no interval.

    Args:
        statistic: from weights float64 [n], how often each row counts.
        patients: the patient of each row, int64 [n].
        number: of resamples.
        seed: of the resampling.

    >>> scores = np.array([1.0, 2.0, 3.0, 4.0])
    >>> low, high = bootstrap(lambda w: float(w @ scores / w.sum()), np.array([7, 7, 8, 9]))
    >>> 1.5 <= low < 2.5 < high <= 4.0
    True
    """
    resampled = [statistic(weights) for weights in resamples(patients, number, seed)]
    return _percentiles(np.array(resampled))


def resamples(patients: np.ndarray, number: int, seed: int) -> Iterator[np.ndarray]:
    """Weights float64 [n] of the rows in each resample; none below two patients."""
    # Patients, not rows, are resampled: a patient's studies resemble one another, and resampling
    # them one by one would give intervals that are too narrow.
    unique, index = np.unique(patients, return_inverse=True)
    if len(unique) < 2:
        return
    random = np.random.default_rng(seed)
    equal = np.full(len(unique), 1 / len(unique))
    # How often each patient is in a resample: n draws with replacement are one multinomial draw.
    for count in random.multinomial(len(unique), equal, size=number):
        # All rows of a patient get the patient's weight: they are not independent cases.
        yield count[index].astype(float)


def _percentiles(values: np.ndarray) -> tuple[float | None, float | None]:
    """The limits of a 95 % interval; None without a value, or where all resamples agree.

    No resample of answers that are all right holds a wrong one: that is no knowledge of the next.
    """
    values = values[np.isfinite(values)]
    if not len(values):
        return None, None
    low, high = np.percentile(values, [2.5, 97.5])
    if low == high:
        return None, None
    return float(low), float(high)


def bootstrap_ci(statistic: Statistic, patients: np.ndarray) -> Estimate | None:
    """The statistic of all rows with its interval; None if it is nan.

    >>> scores = np.array([0.0, 1.0])
    >>> bootstrap_ci(lambda w: float(w @ scores / w.sum()), np.array([1, 1]))
    Estimate(value=0.5, low=None, high=None, n=2, positives=None)
    """
    value = statistic(np.ones(len(patients)))
    # For example the AUROC of a finding that no study has.
    if not np.isfinite(value):
        return None
    low, high = bootstrap(statistic, patients)
    return Estimate(float(value), low, high, len(patients))


def bootstrap_all(statistics: Statistics, patients: np.ndarray) -> dict[str, Estimate]:
    """Several statistics of all rows, each with its interval, from the same resamples.

    Args:
        statistics: from weights float64 [n] to numbers by name; nan for one that is not defined.
        patients: the patient of each row, int64 [n].

    Returns:
        Those that are defined on all rows.

    >>> scores = np.array([0.0, 1.0])
    >>> bootstrap_all(lambda w: {"a": float(w @ scores), "b": np.nan}, np.array([1, 1]))
    {'a': Estimate(value=1.0, low=None, high=None, n=2, positives=None)}
    """
    values = statistics(np.ones(len(patients)))
    resampled = [statistics(weights) for weights in resamples(patients, RESAMPLES, seed=0)]
    figures = {}
    for name, value in values.items():
        if np.isfinite(value):
            low, high = _percentiles(np.array([one[name] for one in resampled]))
            figures[name] = Estimate(float(value), low, high, len(patients))
    return figures


def bootstrap_difference(
    first: tuple[Statistics, np.ndarray], other: tuple[Statistics, np.ndarray]
) -> dict[str, Estimate]:
    """Differences of two tests of the same patients, each with its paired interval.

    A resample draws the same patients for both, so what makes some of them hard cancels.

    Args:
        first: statistics of rows, and the patient of each row, int64 [n].
        other: of the test that is subtracted.

    Raises:
        ValueError: the patients differ.

    >>> a, b = np.array([1.0, 0.0, 1.0]), np.array([0.0, 0.0, 1.0])
    >>> patients = np.array([1, 2, 3])
    >>> mean = lambda x: lambda w: {"mean": float(w @ x / w.sum())}
    >>> round(bootstrap_difference((mean(a), patients), (mean(b), patients))["mean"].value, 3)
    0.333
    """
    unique = np.unique(first[1])
    if not np.array_equal(unique, np.unique(other[1])):
        raise ValueError("the two tests are of different patients: a difference cannot be paired")

    def difference(weights: np.ndarray) -> dict[str, float]:
        """The differences with patients repeated by their weights."""
        # `unique` is sorted, so a patient's place in it is found by bisection.
        mine, theirs = (
            statistics(weights[np.searchsorted(unique, patients)])
            for statistics, patients in (first, other)
        )
        return {name: mine[name] - theirs[name] for name in mine if name in theirs}

    return bootstrap_all(difference, unique)


def weighted_mean_ci(scores: np.ndarray, patients: np.ndarray) -> Estimate | None:
    """The mean of one score per row with its interval; None if it is nan.

    >>> weighted_mean_ci(np.array([0.0, 1.0]), np.array([1, 1])).value
    0.5
    """

    def weighted_mean(weights: np.ndarray) -> float:
        """The mean with rows repeated by their weights."""
        return float(weights @ scores / weights.sum())

    return bootstrap_ci(weighted_mean, patients)


def drop_undefined(figures: Mapping[str, Estimate | None]) -> dict[str, Estimate]:
    """The figures that are defined.

    >>> [*drop_undefined({"bleu_1": Estimate(0.5, None, None, 2), "meteor": None})]
    ['bleu_1']
    """
    return {name: figure for name, figure in figures.items() if figure is not None}


class PatientBootstrapMetric(Metric):
    """A metric that keeps one row of numbers per case with its patient.

    Figures are computed from all rows at the end. Rows are sorted first, so the result does not
    depend on how cases were spread over processes. `protocol` says how the metric is computed.

    Args:
        width: numbers per row.
    """

    # `forward` would otherwise update twice for each batch.
    full_state_update = False
    protocol = ""
    # A list while cases are added; one tensor after torchmetrics has gathered it.
    rows: Any
    patients: Any

    def __init__(self, width: int):
        super().__init__()
        self.width = width
        self.add_state("rows", [], dist_reduce_fx="cat")
        self.add_state("patients", [], dist_reduce_fx="cat")

    def statistics(self, rows: np.ndarray) -> Statistics:
        """The figures of a whole test as a function of the weights of its rows.

        Args:
            rows: of `table`.
        """
        raise NotImplementedError

    def protocol_of(self, name: str) -> str:
        """How the figure of this name is computed."""
        return self.protocol

    def add_rows(self, rows: Sequence[Sequence[float]] | Tensor, patients: Sequence[str]) -> None:
        """Add cases.

        Args:
            rows: numbers [n,width].
            patients: the patient of each row.

        Raises:
            ValueError: the lengths differ.
        """
        # float64: nats and counts of a whole test set are summed.
        values = torch.as_tensor(rows, dtype=torch.float64).reshape(-1, self.width)
        if len(values) != len(patients):
            raise ValueError(
                f"{len(values)} cases and {len(patients)} patients: expected one patient per case"
            )
        keys = [patient_key(patient) for patient in patients]
        self.rows.append(values.to(self.device))
        self.patients.append(torch.tensor(keys, dtype=torch.int64, device=self.device))

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Gather the rows of all processes; one without a single case takes part with no rows."""
        # A process without a case would not join the collective, and the others would wait for it.
        if isinstance(self.rows, list) and not self.rows:
            no_rows = torch.empty(0, self.width, dtype=torch.float64, device=self.device)
            no_patients = torch.empty(0, dtype=torch.int64, device=self.device)
            self.rows.append(no_rows)
            self.patients.append(no_patients)
        super().sync(*args, **kwargs)

    def table(self) -> tuple[np.ndarray, np.ndarray]:
        """All rows float64 [n,width] and patients int64 [n], in a fixed order."""
        rows, patients = self.rows, self.patients
        # torchmetrics leaves lists in a single process.
        if isinstance(rows, list):
            if not rows:
                return np.empty((0, self.width)), np.empty(0, np.int64)
            rows = torch.cat(rows)
            patients = torch.cat(patients)
        values = rows.cpu().numpy()
        keys = patients.cpu().numpy()
        # By patient, then by each column: sums of floats and the resampling depend on the order,
        # and the order of gathering depends on the number of processes. `lexsort` takes the last
        # key first.
        columns = values.T[::-1]
        order = np.lexsort((*columns, keys))
        return values[order], keys[order]
