"""Small charts of what each arm has learned against what it has forgotten."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

# One measure of wording, one of content, and one of answers.
LEARNED = (("report", "bleu_4"), ("report", "findings_f1_macro"), ("vqa", "accuracy"))
# A ratio, so that backbones of different vocabularies can share an axis.
FORGOTTEN = ("text", "perplexity_ratio")
WIDTH, HEIGHT, MARGIN = 300.0, 190.0, 14.0  # of the plotted field, in pixels

Row = dict[str, Any]  # of compare.json


def tradeoffs(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """A chart for every metric of `LEARNED` and every source.

    The horizontal axis is the perplexity of held-out text, as a multiple of what it was before any
    stage (1: nothing forgotten). The vertical axis is the metric. A point is an arm's mean, its
    cross the interval. Without such figures there is no chart.

    Args:
        rows: those of compare.json.
    """
    forgotten, learned = [], []
    for row in rows:
        name = (row["task"], row["metric"])
        if row["control"] is None and name == FORGOTTEN:
            forgotten.append(row)
        if row["control"] is None and name in LEARNED:
            learned.append(row)
    charts = []
    # Sources of text and of the metric may differ: language is forgotten, whatever was learned.
    for horizontal in forgotten:
        for vertical in learned:
            charts.append(_chart(horizontal, vertical))
    return charts


def _chart(horizontal: Row, vertical: Row) -> dict[str, Any]:
    x_axis = _Axis(horizontal["cells"], WIDTH)
    y_axis = _Axis(vertical["cells"], HEIGHT)
    points = []
    for x_cell, y_cell in zip(horizontal["cells"], vertical["cells"]):
        # SVG counts y from the top.
        points.append(
            {
                "arm": x_cell["arm"],
                "x": x_axis.position(x_cell["mean"]),
                "y": HEIGHT - y_axis.position(y_cell["mean"]),
                "left": x_axis.position(_bound(x_cell, "low")),
                "right": x_axis.position(_bound(x_cell, "high")),
                "bottom": HEIGHT - y_axis.position(_bound(y_cell, "low")),
                "top": HEIGHT - y_axis.position(_bound(y_cell, "high")),
            }
        )
    return {
        "title": f"{vertical['task']} {vertical['metric']}, {vertical['source']}",
        "across": f"{horizontal['metric']}, {horizontal['source']}",
        "x": (x_axis.low, x_axis.high),
        "y": (y_axis.low, y_axis.high),
        "points": points,
    }


def _bound(cell: dict[str, Any], side: str) -> float:
    """An end of a cell's interval; its mean if there is no interval."""
    # A cross of length 0 then, instead of a special case in the template.
    return cell["mean"] if cell[side] is None else cell[side]


class _Axis:
    """Maps values to pixels so that all intervals fit, with a margin."""

    def __init__(self, cells: Sequence[dict[str, Any]], length: float):
        # Over the intervals, so that no cross leaves the field.
        self.low = min(_bound(cell, "low") for cell in cells)
        self.high = max(_bound(cell, "high") for cell in cells)
        self.length = length - 2 * MARGIN

    def position(self, value: float) -> float:
        """Pixels from the axis's start; the middle if all values are equal."""
        span = self.high - self.low
        share = (value - self.low) / span if span else 0.5
        return round(MARGIN + share * self.length, 1)
