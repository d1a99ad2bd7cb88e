"""What each arm has learned against what it has forgotten, as small charts for the page of a
comparison.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

LEARNED = (("report", "bleu_4"), ("report", "findings_f1_macro"), ("vqa", "accuracy"))
FORGOTTEN = ("text", "perplexity_ratio")
WIDTH, HEIGHT, MARGIN = 300.0, 190.0, 14.0  # of the field of points, in pixels


def tradeoffs(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A chart for every figure of `LEARNED` and every source: across, held-out perplexity as a
    multiple of what it was before any stage (1: nothing forgotten); up, the figure. A point is an
    arm's mean, its cross the interval.

    `rows` are compare.json's; there is no chart where the arms have no such figures.
    """
    real = [row for row in rows if row["control"] is None]
    forgotten = [row for row in real if (row["task"], row["metric"]) == FORGOTTEN]
    learned = [row for row in real if (row["task"], row["metric"]) in LEARNED]
    return [_chart(across, up) for across in forgotten for up in learned]


def _chart(across: dict[str, Any], up: dict[str, Any]) -> dict[str, Any]:
    x, y = _Axis(across["cells"], WIDTH), _Axis(up["cells"], HEIGHT)
    points = [
        {
            "arm": right["arm"],
            "x": x.place(right["mean"]),
            "y": HEIGHT - y.place(high["mean"]),
            "left": x.place(_end(right, "low")),
            "right": x.place(_end(right, "high")),
            "bottom": HEIGHT - y.place(_end(high, "low")),
            "top": HEIGHT - y.place(_end(high, "high")),
        }
        for right, high in zip(across["cells"], up["cells"])
    ]
    return {
        "title": f"{up['task']} {up['metric']}, {up['source']}",
        "across": f"{across['metric']}, {across['source']}",
        "x": (x.low, x.high),
        "y": (y.low, y.high),
        "points": points,
    }


def _end(cell: dict[str, Any], which: str) -> float:
    return cell["mean"] if cell[which] is None else cell[which]


class _Axis:
    """From values to pixels: all intervals fit, with a margin."""

    def __init__(self, cells: Sequence[dict[str, Any]], length: float):
        self.low = min(_end(cell, "low") for cell in cells)
        self.high = max(_end(cell, "high") for cell in cells)
        self.length = length - 2 * MARGIN

    def place(self, value: float) -> float:
        span = self.high - self.low
        return round(MARGIN + ((value - self.low) / span if span else 0.5) * self.length, 1)
