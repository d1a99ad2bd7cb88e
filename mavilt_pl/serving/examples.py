"""Example radiographs of the page: phantoms, so that nobody's image is shipped."""

from __future__ import annotations

import numpy as np

from mavilt_pl.data.radiograph import Fit, resize
from mavilt_pl.phantom.anatomy import render, sample_body
from mavilt_pl.phantom.findings import make_finding
from mavilt_pl.serving.uploads import PREVIEW, Upload

# Title of each example and its findings: name and side.
EXAMPLES: dict[str, tuple[tuple[str, str], ...]] = {
    "normal": (),
    "large heart": (("cardiomegaly", ""),),
    "left pleural effusion": (("pleural effusion", "left"),),
    "right pneumothorax": (("pneumothorax", "right"),),
    "nodule on the right": (("lung lesion", "right"),),
}


def example(title: str, size: int, fit: Fit) -> Upload:
    """The phantom of a title, as if it had been uploaded; the same one each time."""
    # By its place in the table, so that a screenshot stays true.
    rng = np.random.default_rng([*EXAMPLES].index(title))
    findings = [make_finding(name, rng, side) for name, side in EXAMPLES[title]]
    image = render(sample_body(rng, findings), findings, PREVIEW, rng, "PA")
    return Upload(f"example: {title}", resize(image, PREVIEW, fit), resize(image, size, fit))
