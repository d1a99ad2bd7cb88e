"""What can be seen on a phantom: findings with side, zone and size, and how they are drawn at
random.
"""

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
# drawn without it.
MIMIC_FINDINGS: tuple[str, ...] = FINDINGS[:-1]

PREVALENCE = 0.28
SIDED = frozenset(
    {"pleural effusion", "pneumothorax", "consolidation", "atelectasis", "lung lesion"}
)
DEVICES = ("pacemaker", "central line", "endotracheal tube")


@dataclass(frozen=True)
class Finding:
    """One finding. `side` is the patient's: left lies on the image's right. `size` is in [0, 1],
    from subtle to gross; `kind` says which device.
    """

    name: str
    side: str = ""  # left | right | both | "" where the finding has none
    zone: str = ""  # upper | lower | "" where the finding has none
    size: float = 0.5
    kind: str = ""


def make_finding(
    name: str, rng: np.random.Generator, side: str = "", zone: str = "", kind: str = ""
) -> Finding:
    """One finding of that name; what is not given is drawn at random."""
    if name not in FINDINGS:
        raise ValueError(f"unknown finding {name!r}; the phantom knows {', '.join(FINDINGS)}")
    if name in SIDED and not side:
        side = str(
            rng.choice(
                ["left", "right", "both"] if name == "pleural effusion" else ["left", "right"]
            )
        )
    if name in ("consolidation", "lung lesion") and not zone:
        zone = str(rng.choice(["upper", "lower"]))
    if name == "support devices" and not kind:
        kind = str(rng.choice(DEVICES))
    return Finding(name, side, zone, float(rng.uniform(0, 1)), kind)


def draw_findings(
    rng: np.random.Generator, names: tuple[str, ...] = MIMIC_FINDINGS
) -> list[Finding]:
    """Each finding is present with probability 0.28, on its own, so that about one study in
    fourteen is normal.
    """
    return [make_finding(name, rng) for name in names if rng.random() < PREVALENCE]
