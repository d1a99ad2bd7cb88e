"""Sets of images compared by their features: Fréchet and kernel distance, precision, neighbours.

Shape legend: n m images, D features.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from enum import IntEnum

import numpy as np
import torch
from torch import Tensor

from mavilt_pl.errors import MaviltWarning
from mavilt_pl.metrics.bootstrap import Estimate, PatientBootstrapMetric
from mavilt_pl.metrics.intervals import wilson_interval

NEIGHBOURS = 5  # k of arXiv 2002.09797, and of CheXGenBench
# Share of the held-out images that count as near to a training image.
NEAR_SHARE = 0.05
ROWS_AT_ONCE = 1024  # of a table of distances, so that memory grows with n alone


def frechet_distance(real_nD: np.ndarray, other_nD: np.ndarray) -> float:
    """Fréchet distance of Gaussians fitted to features (arXiv 1706.08500, eq. 6), in float64.

    The trace of √(S₁S₂) is the sum of the roots of the eigenvalues of √S₁ S₂ √S₁, which is
    symmetric: exact, real and faster than the matrix root that pytorch-fid takes.

    >>> features = np.array([[0.0], [1.0], [2.0]])
    >>> round(frechet_distance(features, features + 3), 6)
    9.0
    """
    mean1, mean2 = real_nD.mean(0), other_nD.mean(0)
    cov1 = np.atleast_2d(np.cov(real_nD, rowvar=False))
    cov2 = np.atleast_2d(np.cov(other_nD, rowvar=False))
    # √S₁ from its eigenvectors; `atleast_2d` above is for a single feature.
    values, vectors = np.linalg.eigh(cov1)
    # Rounding leaves eigenvalues just below 0.
    root1 = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    middle = np.linalg.eigvalsh(root1 @ cov2 @ root1)
    trace_of_root = np.sqrt(middle.clip(0)).sum()
    shift = ((mean1 - mean2) ** 2).sum()
    distance = shift + np.trace(cov1) + np.trace(cov2) - 2 * trace_of_root
    return float(distance)


def kernel_distance(real_nD: np.ndarray, other_mD: np.ndarray) -> float:
    """KID: the unbiased squared maximum mean discrepancy (arXiv 1801.01401, eq. 4).

    The kernel is (x·y/D + 1)³. All images count at once, so nothing is random; of equal
    distributions it is 0 on average, and may be negative.

    >>> rng = np.random.default_rng(0)
    >>> bool(abs(kernel_distance(rng.normal(size=(400, 4)), rng.normal(size=(400, 4)))) < 0.1)
    True
    """
    # Without an image's kernel with itself the estimate is unbiased.
    n, m = len(real_nD), len(other_mD)
    within_real = _kernel_sum(real_nD, real_nD) - _own_kernels(real_nD)
    within_other = _kernel_sum(other_mD, other_mD) - _own_kernels(other_mD)
    across = _kernel_sum(real_nD, other_mD)
    within = within_real / (n * (n - 1)) + within_other / (m * (m - 1))
    return float(within - 2 * across / (n * m))


def _kernel_sum(one_nD: np.ndarray, other_mD: np.ndarray) -> float:
    total = 0.0
    for start in range(0, len(one_nD), ROWS_AT_ONCE):
        products = one_nD[start : start + ROWS_AT_ONCE] @ other_mD.T
        total += float(((products / one_nD.shape[1] + 1) ** 3).sum())
    return total


def _own_kernels(features_nD: np.ndarray) -> float:
    """The sum of each image's kernel with itself."""
    return float((((features_nD**2).sum(1) / features_nD.shape[1] + 1) ** 3).sum())


def _distances(one_nD: np.ndarray, other_mD: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Euclidean distances [rows,m] of some rows of `one_nD` after others."""
    squares_m = (other_mD**2).sum(1)
    for start in range(0, len(one_nD), ROWS_AT_ONCE):
        rows = slice(start, min(start + ROWS_AT_ONCE, len(one_nD)))
        block = one_nD[rows]
        squared = (block**2).sum(1)[:, None] + squares_m - 2 * block @ other_mD.T
        # Rounding leaves squares just below 0.
        yield rows, np.sqrt(squared.clip(0))


def nearest_distances(one_nD: np.ndarray, other_mD: np.ndarray, rank: int = 0) -> np.ndarray:
    """Distance of each image of a set to its nearest one of another, [n].

    Args:
        one_nD: features.
        other_mD: features.
        rank: 0 for the nearest, 1 for the second.

    >>> nearest_distances(np.array([[0.0], [5.0]]), np.array([[1.0], [7.0]]))
    array([1., 2.])
    """
    found = np.empty(len(one_nD))
    for rows, distances in _distances(one_nD, other_mD):
        found[rows] = np.partition(distances, rank, axis=1)[:, rank]
    return found


def precision_recall(
    real_nD: np.ndarray, drawn_mD: np.ndarray, neighbours: int = NEIGHBOURS
) -> dict[str, float]:
    """Precision, recall, density and coverage (arXiv 1904.06991 and 2002.09797).

    A ball around each image reaches to its k-th neighbour in its own set. Precision is the share of
    drawn images in a real ball, recall that of real images in a drawn ball. Density counts the real
    balls around a drawn image, divided by k. Coverage is the share of real balls that hold a drawn
    image.

    Args:
        real_nD: more than `neighbours` images.
        drawn_mD: more than `neighbours` images.
        neighbours: k.
    """
    # An image is its own nearest neighbour, at rank 0.
    real_radius_n = nearest_distances(real_nD, real_nD, neighbours)
    drawn_radius_m = nearest_distances(drawn_mD, drawn_mD, neighbours)
    balls_m = np.zeros(len(drawn_mD))  # real balls around each drawn image
    is_recalled_n = np.zeros(len(real_nD), bool)
    is_covered_n = np.zeros(len(real_nD), bool)
    for rows, distances in _distances(real_nD, drawn_mD):
        in_real_ball = distances < real_radius_n[rows, None]
        balls_m += in_real_ball.sum(0)
        is_recalled_n[rows] = (distances < drawn_radius_m).any(1)
        is_covered_n[rows] = distances.min(1) < real_radius_n[rows]
    return {
        "precision": float((balls_m > 0).mean()),
        "recall": float(is_recalled_n.mean()),
        "density": float(balls_m.mean() / neighbours),
        "coverage": float(is_covered_n.mean()),
    }


class ImageKind(IntEnum):
    """Where features come from."""

    DRAWN = 0
    REAL = 1  # of the tested studies
    TRAINING = 2


class FeatureSets(PatientBootstrapMetric):
    """Drawn images against real ones and training images, under one encoder.

    Figures are `fid_…`, `kid_…`, `precision_…`, `recall_…`, `density_…` and `coverage_…`. With
    training images there are three more: `fid_…_floor` and `kid_…_floor`, the same distances of as
    many training images as there are drawings, and `near_training_…`, the share of drawings that
    lie nearer to a training image than 95 % of the held-out images do. Distances have no interval:
    a resample repeats images.

    Args:
        encoder: what stands behind the figures' names, such as cxr.
        width: D.
        protocol: how the features are computed.
        prefix: of the figures' names.
    """

    def __init__(self, encoder: str, width: int, protocol: str = "", prefix: str = ""):
        # The first column is the kind of image.
        super().__init__(width + 1)
        self.encoder, self.protocol, self.prefix = encoder, protocol, prefix

    def protocol_of(self, name: str) -> str:
        """How the figure of this name is computed."""
        what = name.removeprefix(self.prefix)
        if what.startswith("near_training"):
            return (
                f"share of drawings nearer to a training image than {1 - NEAR_SHARE:.0%} of the "
                f"set's own images are; {NEAR_SHARE:.0%} is expected; {self.protocol}"
            )
        if what.endswith("_floor"):
            return f"as many training images as drawings instead of drawings; {self.protocol}"
        if what.startswith("kid"):
            return f"unbiased, cubic kernel, all images at once; {self.protocol}"
        if what.startswith("fid"):
            return self.protocol
        return f"k = {NEIGHBOURS}; {self.protocol}"

    def update(self, features_BD: Tensor, kind: ImageKind, patients: Sequence[str]) -> None:
        """Add features [B,D] of images of one kind."""
        # In one table with the features, so that one gather and one sort serve all kinds.
        kind_B1 = torch.full((len(features_BD), 1), float(kind), device=features_BD.device)
        self.add_rows(torch.cat([kind_B1, features_BD], 1), patients)

    def compute(self) -> dict[str, Estimate]:
        """The figures that there are enough images for."""
        rows, patients = self.table()
        kinds = rows[:, 0]
        finite = np.isfinite(rows[:, 1:]).all(1)
        if not finite.all():
            warnings.warn(
                f"{self.encoder}: {int((~finite).sum()):,} of {len(rows):,} images have features "
                "that are no numbers (the encoder's values overflow); they are left out",
                MaviltWarning,
                stacklevel=2,
            )
        # In the order of `table`, which does not depend on the number of processes.
        of_drawn = finite & (kinds == ImageKind.DRAWN)
        drawn, real, training = (
            rows[finite & (kinds == kind)][:, 1:]
            for kind in (ImageKind.DRAWN, ImageKind.REAL, ImageKind.TRAINING)
        )
        # A covariance needs two images.
        if min(len(drawn), len(real)) < 2:
            return {}
        self._warn_of_few(min(len(drawn), len(real)), rows.shape[1] - 1)
        values = {"fid": frechet_distance(real, drawn), "kid": kernel_distance(real, drawn)}
        # A ball to the fifth neighbour needs six images.
        if min(len(drawn), len(real)) > NEIGHBOURS:
            values |= precision_recall(real, drawn)
        figures = {f"{self.prefix}{name}_{self.encoder}": value for name, value in values.items()}
        if len(training) >= 2:
            # As many as drawings, since both distances depend on the number. The rows are sorted
            # by hashed patients, so the first ones are as good as random.
            as_many = training[: len(drawn)]
            name = f"{self.prefix}fid_{self.encoder}_floor"
            figures[name] = frechet_distance(real, as_many)
            figures[name.replace("fid_", "kid_", 1)] = kernel_distance(real, as_many)
        found = {name: Estimate(value, None, None, len(drawn)) for name, value in figures.items()}
        if len(training):
            # What is near is decided by images that cannot be copies: those of other patients.
            threshold = np.quantile(nearest_distances(real, training), NEAR_SHARE)
            is_near = nearest_distances(drawn, training) < threshold
            share = float(is_near.mean())
            # A share of a few images, or of none: a bootstrap would shrink to a point.
            interval = wilson_interval(share, len(np.unique(patients[of_drawn])))
            name = f"{self.prefix}near_training_{self.encoder}"
            found[name] = Estimate(share, *interval, len(drawn), int(is_near.sum()))
        return found

    def _warn_of_few(self, images: int, width: int) -> None:
        """Say what a Fréchet distance of no more images than features is worth."""
        # Then a covariance is singular, and the distance of equal distributions far from 0.
        if images > width:
            return
        warnings.warn(
            f"{self.prefix}fid_{self.encoder} of {images:,} images has {width:,} features: with "
            "fewer images than features it depends more on their number than on the images. "
            f"Compare it with figures of {images:,} images only",
            MaviltWarning,
            stacklevel=3,
        )
