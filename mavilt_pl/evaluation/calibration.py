"""How often answers of yes or no are right at the probability that they have, as a plot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mavilt_pl.errors import UserError
from mavilt_pl.evaluation.predictions import FILE, Record, read_predictions
from mavilt_pl.metrics.decisions import reliability

LARGEST = 7.0  # radius of the dot of all answers, in hundredths of the plot's side


def reliability_plots(run: Path) -> list[dict[str, Any]]:
    """A plot of each source with answers of yes or no, from the predictions below a run.

    Each dot has a place x, y in a square of 100 from the upper left corner, a radius and a text.
    """
    by_source: dict[str, list[tuple[float, float]]] = {}
    for path in sorted(run.rglob(FILE)):
        for record in read_predictions(path):
            try:
                answer = _answer(record)
            # A run may come from somebody else, and its file hold anything.
            except (AttributeError, IndexError, TypeError, ValueError):
                raise UserError(
                    f"{path}: probabilities {str(record.get('probabilities'))[:80]} of candidates "
                    f"{str(record.get('candidates'))[:80]}; expected a list of a number for each: "
                    "run the test again"
                ) from None
            if answer is not None:
                by_source.setdefault(str(record["source"]), []).append(answer)
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


def _answer(record: Record) -> tuple[float, float] | None:
    """Probability of yes, and whether it is right; None of other questions and of reports."""
    # Only yes and no have one probability that can be right or wrong.
    candidates = record.get("candidates") or []
    if set(candidates) != {"yes", "no"} or "probabilities" not in record:
        return None
    score = float(record["probabilities"][candidates.index("yes")])
    return score, float(record["reference"] == "yes")
