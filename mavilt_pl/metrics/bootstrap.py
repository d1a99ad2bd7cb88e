"""A figure with its interval: the bootstrap over patients that every metric here uses."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric


class Estimate(NamedTuple):
    """A value, its 95 % bootstrap interval by patient (None where none is made), and the number of
    cases.
    """

    value: float
    low: float | None
    high: float | None
    n: int


def patient_key(patient: str) -> int:
    """A stable 63-bit number for a patient, so that tensors can carry it between processes."""
    return int.from_bytes(hashlib.blake2b(patient.encode(), digest_size=8).digest(), "big") >> 1


def bootstrap(
    statistic: Callable[[np.ndarray], float],
    patients: np.ndarray,
    resamples: int = 300,
    seed: int = 0,
) -> tuple[float | None, float | None]:
    """95 % percentile interval of `statistic(weights)` with patients drawn with replacement.

    `weights` float64 [n] says how often each row counts. Resamples in which the statistic is
    undefined (nan) do not count; below two patients there is no interval.
    """
    unique, index = np.unique(patients, return_inverse=True)
    if len(unique) < 2:
        return None, None
    random = np.random.default_rng(seed)
    drawn = random.multinomial(len(unique), np.full(len(unique), 1 / len(unique)), size=resamples)
    values = np.array([statistic(weights[index].astype(float)) for weights in drawn])
    values = values[np.isfinite(values)]
    if not len(values):
        return None, None
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def estimate(
    statistic: Callable[[np.ndarray], float], patients: np.ndarray, n: int | None = None
) -> Estimate | None:
    """The statistic on all rows with its interval; None where it is undefined."""
    value = statistic(np.ones(len(patients)))
    if not np.isfinite(value):
        return None
    return Estimate(
        float(value), *bootstrap(statistic, patients), len(patients) if n is None else n
    )


class PatientBootstrapMetric(Metric):
    """A metric that keeps one row of numbers a case, with its patient; figures are made of the rows
    at the end.

    Rows are put in a fixed order before anything is computed, so the result does not depend on how
    cases were spread over processes. `protocol` names how it is counted.
    """

    full_state_update = False
    protocol = ""

    def __init__(self, width: int):
        super().__init__()
        self.width = width
        self.add_state("rows", [], dist_reduce_fx="cat")
        self.add_state("patients", [], dist_reduce_fx="cat")

    def add_rows(self, rows: Sequence[Sequence[float]] | Tensor, patients: Sequence[str]) -> None:
        values = torch.as_tensor(rows, dtype=torch.float64).reshape(-1, self.width)
        if len(values) != len(patients):
            raise ValueError(
                f"{len(values)} cases and {len(patients)} patients: one patient a case"
            )
        self.rows.append(values.to(self.device))  # type: ignore[union-attr,operator]
        self.patients.append(
            torch.tensor([patient_key(p) for p in patients], dtype=torch.int64, device=self.device)
        )  # type: ignore[union-attr,operator]

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """A process without a single case still takes part in the gathering, with no rows."""
        if isinstance(self.rows, list) and not self.rows:
            self.rows.append(torch.empty(0, self.width, dtype=torch.float64, device=self.device))
            self.patients.append(torch.empty(0, dtype=torch.int64, device=self.device))  # type: ignore[union-attr,operator]
        super().sync(*args, **kwargs)

    def table(self) -> tuple[np.ndarray, np.ndarray]:
        """All rows float64 [n,width] and patients int64 [n], in a fixed order."""
        if isinstance(self.rows, list):
            if not self.rows:
                return np.empty((0, self.width)), np.empty(0, np.int64)
            rows, patients = torch.cat(self.rows), torch.cat(self.patients)  # type: ignore[arg-type]
        else:
            rows, patients = self.rows, self.patients  # type: ignore[assignment]
        values, keys = rows.cpu().numpy(), patients.cpu().numpy()
        order = np.lexsort((*values.T[::-1], keys))
        return values[order], keys[order]
