"""How often answers of yes or no are right at the probability that they have, as a plot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mavilt_pl.evaluation.predictions import FILE, read_predictions
from mavilt_pl.metrics.decisions import reliability

LARGEST = 7.0  # radius of the dot of all answers, in hundredths of the plot's side


def reliability_plots(run: Path) -> list[dict[str, Any]]:
    """A plot of each source with answers of yes or no, from the predictions below a run.

    Each dot has a place x, y in a square of 100 from the upper left corner, a radius and a text.
    """
    by_source: dict[str, list[tuple[float, float]]] = {}
    for path in sorted(run.rglob(FILE)):
        for record in read_predictions(path):
            # Only yes and no have one probability that can be right or wrong.
            candidates = record.get("candidates") or []
            if set(candidates) == {"yes", "no"} and "probabilities" in record:
                score = float(record["probabilities"][candidates.index("yes")])
                truth = float(record["reference"] == "yes")
                by_source.setdefault(str(record["source"]), []).append((score, truth))
    plots = []
    for source, rows in sorted(by_source.items()):
        scores, truths = np.array(rows).T
        dots = []
        # Bins without answers have no dot.
        for _, mean, share, count in reliability(scores, truths, np.ones(len(rows))):
            # The area, not the radius, grows with the number; a single answer is still seen.
            radius = max(LARGEST * (count / len(rows)) ** 0.5, 0.8)
            dots.append(
                {
                    "x": round(100 * mean, 1),
                    "y": round(100 * (1 - share), 1),
                    "r": round(radius, 1),
                    "what": f"{count:.0f} answers, probability {mean:.2f}, yes {share:.2f}",
                }
            )
        plots.append({"source": source, "answers": len(rows), "dots": dots})
    return plots
