"""What the images of a dataset are like, so that a model can say which ones it does not know.

Two measurements of an image are compared with what validation images have:

- the distance of its features from the training images', after Mahalanobis (Lee et al. 2018,
  arXiv 1807.03888), with the covariance shrunk after Ledoit and Wolf (2004);
- the error of its reconstruction from codes.

The limit of each is its conformal quantile among validation images, which the tokenizer was not
trained on: of images like them, at most `FALSE_ALARMS` lie above either limit, in expectation (Vovk
et al. 2005, Algorithmic Learning in a Random World, 4.2). A score is the larger of the two
measurements divided by their limits: above 1, the image is unfamiliar.

Shape legend: B images, C validation images, N codes an image, D features.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mavilt_pl.checkpoint import load_tensors
from mavilt_pl.data.records import Side
from mavilt_pl.parallel.atomic_write import atomic_write_bytes

REFERENCE_FILE = "ood.safetensors"
FALSE_ALARMS = 0.05
LEAST_DEVIATION = 1e-3  # of a feature, of the largest one's
TINY = 1e-12  # keeps the scale above 0 if no feature varies at all
MEASUREMENTS = 2  # each has its part of the false alarms
# With fewer, no limit keeps the promise: the largest of n values is exceeded once in n + 1.
FEWEST_CALIBRATION = math.ceil(MEASUREMENTS / FALSE_ALARMS) - 1


class Measured(NamedTuple):
    """Codes [B,N], features [B,D] and reconstruction errors [B] in grey levels, of B images."""

    codes: np.ndarray
    features: np.ndarray
    errors: np.ndarray


@dataclass(frozen=True)
class OODReference:
    """What the images of one dataset and one view are like.

    Args:
        side: the view.
        mean: [D], of the training images' features.
        whitening: [D,D]; the length of a whitened difference is its Mahalanobis distance.
        distance_limit: that few validation images exceed.
        error_limit: likewise, in grey levels of 255.
    """

    side: str
    mean: Tensor
    whitening: Tensor
    distance_limit: float
    error_limit: float

    @classmethod
    def fit(
        cls, side: Side, features: np.ndarray, calibration: np.ndarray, errors: np.ndarray
    ) -> OODReference:
        """A reference from measurements.

        Args:
            side: the view.
            features: [B,D] of training images.
            calibration: [C,D] features of validation images.
            errors: [C] of the validation images.
        """
        mean, deviation = features.mean(0), features.std(0)
        # A feature that never varies would make any other value infinitely far.
        scale = np.maximum(deviation, deviation.max() * LEAST_DEVIATION + TINY)
        # Scaled first: the identity that the covariance is shrunk towards knows no units.
        eigenvalues, vectors = np.linalg.eigh(shrunk_covariance((features - mean) / scale))
        # Σ^(−1/2) up to a rotation, which no length depends on.
        whitening = vectors / np.sqrt(eigenvalues) / scale[:, None]
        # Of images that the tokenizer has not seen: distances of its own would be too short.
        distances = np.linalg.norm((calibration - mean) @ whitening, axis=1)
        level = FALSE_ALARMS / MEASUREMENTS
        return cls(
            side,
            # Half the size of float64, and far more exact than the estimate.
            torch.from_numpy(mean.astype(np.float32)),
            torch.from_numpy(whitening.astype(np.float32)),
            conformal_limit(distances, level),
            conformal_limit(errors, level),
        )

    def scores(self, measured: Measured) -> np.ndarray:
        """Scores [B]: 1 at the limit, more for what is less familiar."""
        differences = (measured.features - self.mean.numpy()) @ self.whitening.numpy()
        distances = np.linalg.norm(differences, axis=1) / self.distance_limit
        return np.maximum(distances, measured.errors / self.error_limit)


def shrunk_covariance(scaled: np.ndarray) -> np.ndarray:
    """Covariance [D,D] of centred features [B,D], shrunk towards a multiple of the identity.

    The share of the identity is that of Ledoit and Wolf (2004, J. Multivariate Analysis 88), who
    minimise the expected error; without it, fewer images than features have no inverse covariance.
    """
    num_images, num_features = scaled.shape
    sample = scaled.T @ scaled / num_images
    scale = np.trace(sample) / num_features
    target = scale * np.eye(num_features)
    # Their δ² and β²: how far the sample is from the target, and from the truth by chance.
    from_target = ((sample - target) ** 2).sum()
    lengths = (scaled**2).sum(1)
    by_chance = ((lengths**2).sum() / num_images - (sample**2).sum()) / num_images
    share = min(by_chance / from_target, 1.0) if from_target > 0 else 1.0
    return share * target + (1 - share) * sample


def conformal_limit(values: np.ndarray, level: float) -> float:
    """The value that a new one of the same distribution exceeds with probability `level` at most.

    >>> conformal_limit(np.arange(1.0, 100.0), 0.05)
    95.0
    """
    # The n + 1 values are equally likely to be the new one, in any order of their sizes.
    rank = math.ceil((len(values) + 1) * (1 - level))
    return float(np.sort(values)[min(rank, len(values)) - 1])


def lowest_scores(
    references: Sequence[OODReference], measured: Measured, sides: Sequence[Side]
) -> np.ndarray:
    """Scores [B] by the dataset that knows each image best.

    Args:
        references: at least one.
        measured: of B images.
        sides: the view of each; a view without a reference is compared with all of them.
    """
    known = {reference.side for reference in references}
    # Any reference that an image may be compared with lowers this.
    scores = np.full(len(sides), np.inf)
    for reference in references:
        comparable = [side == reference.side or side not in known for side in sides]
        of_reference = np.where(comparable, reference.scores(measured), np.inf)
        scores = np.minimum(scores, of_reference)
    return scores


def to_plain(references: Sequence[OODReference]) -> list[dict[str, Any]]:
    """References as tensors and plain values, for a checkpoint."""
    return [asdict(reference) for reference in references]


def from_plain(values: Sequence[Mapping[str, Any]]) -> list[OODReference]:
    """What `to_plain` gave."""
    return [OODReference(**one) for one in values]


def save_references(references: Sequence[OODReference], path: Path) -> None:
    """Write references as safetensors."""
    from safetensors.torch import save

    # safetensors holds no numbers of its own: limits are a tensor too.
    tensors = {}
    for number, reference in enumerate(references):
        key = f"{number}.{reference.side}"
        tensors[f"{key}.mean"] = reference.mean.contiguous()
        tensors[f"{key}.whitening"] = reference.whitening.contiguous()
        limits = [reference.distance_limit, reference.error_limit]
        tensors[f"{key}.limits"] = torch.tensor(limits, dtype=torch.float64)
    atomic_write_bytes(path, save(tensors))


def read_references(path: Path) -> list[OODReference]:
    """What `save_references` wrote; nothing if there is no such file.

    Raises:
        UserError: the file is damaged.
    """
    if not path.exists():
        return []
    tensors = load_tensors(path)
    references = []
    for name in sorted({key.rpartition(".")[0] for key in tensors}):
        distance_limit, error_limit = tensors[f"{name}.limits"].tolist()
        references.append(
            OODReference(
                name.partition(".")[2],
                tensors[f"{name}.mean"],
                tensors[f"{name}.whitening"],
                distance_limit,
                error_limit,
            )
        )
    return references
