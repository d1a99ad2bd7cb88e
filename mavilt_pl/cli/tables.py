"""Tables of figures on the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mavilt_pl.cli.terminal import plain
from mavilt_pl.evaluation.headlines import CONTROLS

WIDE = 140  # columns that all controls need


def print_figures(figures: Sequence[dict[str, Any]]) -> None:
    """Print a table for each source; figures of single findings are in the file only.

    Args:
        figures: as in results.json.
    """
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    console = Console()
    # `metric/finding` is the figure of a single finding; a table of all would be several screens
    # long.
    overall = [figure for figure in figures if "/" not in figure["metric"]]
    for source in dict.fromkeys(figure["source"] for figure in overall):
        by_key = {}
        for figure in overall:
            if figure["source"] == source:
                by_key[figure["task"], figure["metric"], figure["control"]] = figure
        present = {control for _, _, control in by_key}
        controls = [control for control in CONTROLS if control in present]
        # On a narrow terminal the other controls would fold the names of the figures.
        if console.width < WIDE:
            controls = controls[:1]
        table = Table(title=plain(source), box=SIMPLE_HEAD, title_justify="left")
        table.add_column("figure", overflow="fold")
        table.add_column("value (95 % interval)", overflow="fold", justify="right")
        for control in controls:
            table.add_column(CONTROLS[control], overflow="fold", justify="right")
        for (task, metric, control), figure in by_key.items():
            if control is not None:
                continue
            cells = [with_interval(figure["value"], figure["low"], figure["high"])]
            for name in controls:
                of_control = by_key.get((task, metric, name))
                cells.append(f"{of_control['value']:.4g}" if of_control else "")
            table.add_row(plain(f"{task} {metric}"), *cells)
        console.print(table)


def print_comparison(comparison: Any) -> None:
    """Print the headline rows of a comparison.

    Args:
        comparison: an `evaluation.compare.Comparison`.
    """
    from rich.console import Console
    from rich.table import Table

    table = Table(title="means over runs, with 95 % intervals")
    table.add_column("metric")
    for arm in comparison.arms:
        count = len(arm.runs)
        table.add_column(plain(f"{arm.name}, {count} run{'s' if count > 1 else ''}"))
    first, *others = comparison.arms
    for arm in others:
        table.add_column(plain(f"{first.name} − {arm.name}"))
    for row in comparison.headlines:
        texts = [plain(f"{row['task']} {row['source']} {row['metric']}")]
        for cell in (*row["cells"], *row["differences"]):
            texts.append(with_interval(cell["mean"], cell["low"], cell["high"]))
        table.add_row(*texts)
    Console().print(table)


def with_interval(value: float, low: float | None, high: float | None) -> str:
    """A value with its interval if it has one.

    >>> with_interval(0.51234, 0.4, 0.6), with_interval(3.0, None, None)
    ('0.5123 (0.4 to 0.6)', '3')
    """
    if low is None or high is None:
        return f"{value:.4g}"
    return f"{value:.4g} ({low:.4g} to {high:.4g})"
