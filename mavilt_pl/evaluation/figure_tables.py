"""Figures as a table for a spreadsheet or a paper."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mavilt_pl.data.sources.tables import inert_cell
from mavilt_pl.evaluation.headlines import CONTROLS, HEADLINES, TITLES
from mavilt_pl.evaluation.page import format_figure
from mavilt_pl.evaluation.results import TASKS, Figure
from mavilt_pl.parallel.atomic_write import atomic_write_text
from mavilt_pl.parallel.own_files import check_replaceable

COLUMNS = (
    *("task", "source", "metric", "control", "value", "low", "high", "n", "positives"),
    "protocol",
)
TEX_MARK = "% figures of mavilt"
SPECIAL = {char: f"\\{char}" for char in "&%$#_{}"}


def write_tables(run: Path, figures: Sequence[Figure]) -> list[Path]:
    """Write figures.csv with all figures, and figures.tex with the headlines.

    Args:
        run: the folder.
        figures: of results.json.

    Returns:
        The files.

    Raises:
        UserError: a file of that name is not ours.
    """
    # All figures, controls and single findings too: a spreadsheet filters.
    table, tex = run / "figures.csv", run / "figures.tex"
    write_csv(table, COLUMNS, figures)
    check_replaceable(tex, TEX_MARK)
    atomic_write_text(tex, _tex(figures))
    return [table, tex]


def write_csv(path: Path, columns: Sequence[str], figures: Sequence[Figure]) -> None:
    """Write a row for each figure.

    Args:
        path: the file.
        columns: keys of the figures; the header, by which a file of ours is recognised.
        figures: one that lacks a key has an empty cell.

    Raises:
        UserError: a file of that name is not ours.
    """
    table = io.StringIO()
    rows = csv.writer(table, lineterminator="\n")
    rows.writerow(columns)
    for figure in figures:
        cells = [figure.get(column) for column in columns]
        # Names of sources are a user's; none may begin a formula.
        rows.writerow([inert_cell(cell) if isinstance(cell, str) else cell for cell in cells])
    check_replaceable(path, ",".join(columns))
    atomic_write_text(path, table.getvalue())


def headline_tables(figures: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The headlines of each task in words, for a card or a page.

    Returns:
        For each task that has some, `title` and `rows`: of each figure its source, metric, value,
        interval, n, controls and protocol as texts.
    """
    by_key: dict[Any, Mapping[str, Any]] = {}
    for figure in figures:
        by_key[figure["task"], figure["source"], figure["metric"], figure["control"]] = figure
    # In their order, each once.
    sources = dict.fromkeys(figure["source"] for figure in figures)
    tables = []
    for task, title in TITLES.items():
        rows = []
        for metric in HEADLINES[task]:
            for source in sources:
                if (task, source, metric, None) not in by_key:
                    continue
                figure = by_key[task, source, metric, None]
                # Next to the figure, since none means anything without them.
                controls = []
                for control, heading in CONTROLS.items():
                    of_control = by_key.get((task, source, metric, control))
                    if of_control is not None:
                        controls.append(f"{heading} {format_figure(of_control['value'])}")
                interval = ""
                if figure["low"] is not None:
                    low, high = format_figure(figure["low"]), format_figure(figure["high"])
                    interval = f"{low} to {high}"
                row = {
                    "source": source,
                    "metric": metric,
                    "value": format_figure(figure["value"]),
                    "interval": interval,
                    "n": f"{figure['n']:,}",
                    "controls": ", ".join(controls),
                    "protocol": figure["protocol"],
                }
                rows.append(row)
        if rows:
            tables.append({"title": title, "rows": rows})
    return tables


def _tex(figures: Sequence[Figure]) -> str:
    """One tabular of the headlines for each source."""
    lines = [f"{TEX_MARK}; needs the package booktabs. Protocols: figures.csv"]
    for source in sorted({figure["source"] for figure in figures}):
        cells = {}
        for figure in figures:
            if figure["source"] == source:
                cells[figure["task"], figure["metric"], figure["control"]] = figure
        # Columns that would be empty are left out.
        controls = [name for name in CONTROLS if any(key[2] == name for key in cells)]
        headings = ["figure", "value", *(CONTROLS[name] for name in controls)]
        lines += ["", f"% {_escape(source)}", f"\\begin{{tabular}}{{l{'r' * (len(headings) - 1)}}}"]
        lines += ["\\toprule", " & ".join(headings) + r" \\"]
        # In the order of the page, so that the two can be compared.
        for task in TASKS:
            rows = _rows(task, controls, cells)
            if rows:
                lines += [
                    "\\midrule",
                    rf"\multicolumn{{{len(headings)}}}{{l}}{{{TITLES[task]}}} \\",
                ]
                lines += rows
        lines += ["\\bottomrule", "\\end{tabular}"]
    return "\n".join(lines) + "\n"


def _rows(
    task: str, controls: Sequence[str], cells: Mapping[tuple[str, str, str | None], Figure]
) -> list[str]:
    """The headline rows of a task."""
    rows = []
    for metric in HEADLINES[task]:
        figure = cells.get((task, metric, None))
        if figure is None:
            continue
        texts = [_escape(metric), _tex_value(figure)]
        for control in controls:
            of_control = cells.get((task, metric, control))
            texts.append(_tex_value(of_control) if of_control is not None else "")
        rows.append(" & ".join(texts) + r" \\")
    return rows


def _tex_value(figure: Figure) -> str:
    """A value with its interval."""
    # As many digits as the page: more would be noise.
    if figure["low"] is None:
        return format_figure(figure["value"])
    low, high = format_figure(figure["low"]), format_figure(figure["high"])
    return f"{format_figure(figure['value'])} ({low}--{high})"


def _escape(text: str) -> str:
    r"""Text for LaTeX; whatever it means there is shown and not run.

    >>> print(_escape("bleu_4"), _escape("50 %"))
    bleu\_4 50 \%
    """
    shown = "".join(SPECIAL.get(char, char) for char in text.replace("\\", " "))
    return " ".join(shown.split())
