"""METEOR 1.5, the Java program that R2Gen's tools call, where it can be run.

It comes with the package pycocoevalcap (the extra `mavilt[coco]`) and needs Java.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Sequence

from mavilt_pl.errors import MaviltWarning
from mavilt_pl.metrics.bootstrap import Estimate

PROTOCOL = "coco: METEOR 1.5, English, over the whole set, as pycocoevalcap calls it"


def meteor_coco(reports: Sequence[str], references: Sequence[str]) -> dict[str, Estimate]:
    """`meteor_coco` of a set of reports; nothing, with a warning, where it cannot be run.

    It has no interval: the program gives no score of a resample.
    """
    # The wrapper would fail with a traceback of its subprocess.
    if shutil.which("java") is None:
        missing = "java is not on the PATH: install a Java runtime"
    else:
        try:
            from pycocoevalcap.meteor.meteor import Meteor
        except ImportError:
            missing = "pycocoevalcap is not installed: pip install 'mavilt[coco]'"
        else:
            program = Meteor()
            # Texts by number, each in a list of one: an image may have several captions.
            value, _ = program.compute_score(
                {number: [text] for number, text in enumerate(references)},
                {number: [text] for number, text in enumerate(reports)},
            )
            return {"meteor_coco": Estimate(float(value), None, None, len(reports))}
    warnings.warn(f"meteor_coco is left out: {missing}", MaviltWarning, stacklevel=2)
    return {}
