"""What can be seen on a phantom: findings with side, zone and size, sampled at random."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# Canonical names, as in the label tables of the real datasets.
FINDINGS: tuple[str, ...] = (
    "cardiomegaly",
    "pleural effusion",
    "pneumothorax",
    "consolidation",
    "edema",
    "atelectasis",
    "lung lesion",
    "support devices",
    "hyperinflation",
)
# Hyperinflation has no column in the label table of MIMIC-CXR-JPG, so phantoms in that layout are
# sampled without it.
MIMIC_FINDINGS: tuple[str, ...] = FINDINGS[:-1]

# Of each finding. High enough that a few hundred studies contain each of them often, low enough
# that (1 − 0.28)⁸ = 7 % of the studies are normal.
PREVALENCE = 0.28
SIDED = frozenset(
    {"pleural effusion", "pneumothorax", "consolidation", "atelectasis", "lung lesion"}
)
ZONED = frozenset({"consolidation", "lung lesion"})
ZONES = ("upper", "lower")
DEVICES = ("pacemaker", "central line", "endotracheal tube")


@dataclass(frozen=True)
class Finding:
    """One finding.

    Args:
        name: one of `FINDINGS`.
        side: left, right or both, or "" if the finding has none. It is the patient's: left lies on
            the image's right.
        zone: upper or lower, or "" if the finding has none.
        size: in [0, 1], from subtle to gross.
        kind: which device.
    """

    name: str
    side: str = ""
    zone: str = ""
    size: float = 0.5
    kind: str = ""


def make_finding(
    name: str, rng: np.random.Generator, side: str = "", zone: str = "", kind: str = ""
) -> Finding:
    """One finding; what is not given is sampled.

    Raises:
        ValueError: the phantom has no finding of that name.
    """
    if name not in FINDINGS:
        raise ValueError(f"unknown finding {name!r}; the phantom knows {', '.join(FINDINGS)}")
    # Only what is not given is drawn: the sequence of draws is part of what a seed means.
    if name in SIDED and not side:
        sides = ["left", "right"]
        if name == "pleural effusion":
            sides.append("both")
        # str: rng.choice returns numpy's own text type.
        side = str(rng.choice(sides))
    if name in ZONED and not zone:
        zone = str(rng.choice(ZONES))
    if name == "support devices" and not kind:
        kind = str(rng.choice(DEVICES))
    return Finding(name, side, zone, float(rng.uniform(0, 1)), kind)


def sample_findings(
    rng: np.random.Generator, names: tuple[str, ...] = MIMIC_FINDINGS
) -> list[Finding]:
    """Sample each finding on its own with probability 0.28: one study in fourteen is normal."""
    return [make_finding(name, rng) for name in names if rng.random() < PREVALENCE]
