"""report.html: the page of a run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mavilt_pl.errors import UserError
from mavilt_pl.evaluation.calibration import reliability_plots
from mavilt_pl.evaluation.figure_tables import write_tables
from mavilt_pl.evaluation.headlines import (
    CONTROLLED,
    CONTROLS,
    FINDING_COLUMNS,
    HEADLINES,
    PUBLISHED,
    REFERENCE,
    TITLES,
)
from mavilt_pl.evaluation.page import inline_images, write_page
from mavilt_pl.evaluation.results import TASKS, Figure, read_results, write_json
from mavilt_pl.evaluation.subgroups import FEWEST_PATIENTS, gather_subgroups

# Curves of a training that the page shows, besides train/loss.
# One curve a quantity; single tasks and findings are in TensorBoard.
VALIDATION_CURVES = ("loss", "psnr", "auroc", "text_perplexity")
# More than the chart has pixels; of a longer curve TensorBoard keeps a random sample.
MAX_POINTS = 2000  # of a curve


def gather(run: Path) -> Path:
    """Merge every test/results.json below a run into results.json, and write report.html.

    Args:
        run: the run's folder.

    Returns:
        The page's path.

    Raises:
        UserError: there are no results, or one of them cannot be read.
    """
    figures: list[Figure] = []
    made_by: dict[str, Any] = {}
    for path in find_results(run):
        results = read_results(path)
        figures += results["figures"]
        # Each step of the chain has a provenance of its own.
        made_by[str(path.parent.parent.relative_to(run))] = results["made_by"]
    made_by["seconds"], made_by["peak_memory_bytes"] = _costs_of_steps(run)
    write_json(run / "results.json", {"figures": figures, "made_by": made_by})
    write_tables(run, figures)
    samples = read_samples(run)
    subgroups = gather_subgroups(run)
    return write_page(
        run / "report.html",
        "report.html.jinja",
        figures=figures,
        tables=_tables(figures),
        per_finding=_per_finding(figures),
        controls=_controls(figures),
        subgroups=subgroups,
        fewest_patients=FEWEST_PATIENTS,
        control_headings=list(CONTROLS.values()),
        samples=samples,
        patients=real_sources(samples),
        errors=[row for row in samples.get("report", []) if row["error"]],
        reliability=reliability_plots(run),
        curves=_curves(run),
        made_by=made_by,
        published=PUBLISHED,
        titles=TITLES,
        name=run.resolve().name,
        total=sum(made_by["seconds"].values()),
    )


def find_results(run: Path) -> list[Path]:
    """Every test/results.json below a run, sorted.

    Raises:
        UserError: there is none.
    """
    # The parent's name distinguishes them from the merged results.json, which `gather` itself
    # writes.
    found = sorted(path for path in run.rglob("results.json") if path.parent.name == "test")
    if not found:
        raise UserError(
            f"{run}: no test/results.json below it; run `mavilt test` with metric callbacks first"
        )
    return found


def read_samples(run: Path) -> dict[str, list[dict[str, Any]]]:
    """The samples of every test below a run by task, with the content of their pictures.

    Raises:
        UserError: a samples.json cannot be read.
    """
    samples: dict[str, list[dict[str, Any]]] = {}
    for path in find_results(run):
        folder = path.parent
        # Written by older versions, or a test without samples.
        if not (folder / "samples.json").exists():
            continue
        try:
            by_task = json.loads((folder / "samples.json").read_text(encoding="utf-8"))
            by_task.pop("notice", None)
            rows_of_tasks = [(task, dict(row)) for task in by_task for row in by_task[task]]
        except (AttributeError, OSError, TypeError, ValueError) as error:
            raise UserError(
                f"{folder / 'samples.json'} is not a file of samples ({error}); run the test again"
            ) from None
        for task, row in rows_of_tasks:
            # Only an example of an error has one.
            samples.setdefault(task, []).append(inline_images({"error": None, **row}, folder))
    return samples


def real_sources(samples: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """Names of the sources of samples that are not synthetic."""
    sources = set()
    for rows in samples.values():
        for row in rows:
            if not str(row.get("source", "")).startswith("phantom_"):
                sources.add(str(row.get("source", "")))
    return sorted(sources)


def _costs_of_steps(run: Path) -> tuple[dict[str, float], int]:
    """Seconds of each step of a recipe, and the peak memory of all in bytes."""
    seconds: dict[str, float] = {}
    peak = 0
    # Written by `mavilt run`; a run by hand has none.
    for path in sorted((run / ".steps").glob("*.json")):
        step = json.loads(path.read_text(encoding="utf-8"))
        seconds[path.stem] = step["seconds"]
        peak = max(peak, step["peak_memory_bytes"])
    return seconds, peak


def _tables(figures: Sequence[Figure]) -> list[dict[str, Any]]:
    """Headline figures by task: rows are metrics, columns are sources."""
    tables = []
    for task in TASKS:
        # The first figure of a cell wins if two tests below the run have it.
        by_cell: dict[tuple[str, str], Figure] = {}
        for figure in figures:
            if figure["task"] == task and figure["control"] is None:
                by_cell.setdefault((figure["metric"], figure["source"]), figure)
        sources = sorted({source for _, source in by_cell})
        rows = _rows_of_task(task, sources, by_cell)
        if rows:
            tables.append({"task": task, "sources": sources, "rows": rows})
    return tables


def _rows_of_task(
    task: str, sources: Sequence[str], by_cell: Mapping[tuple[str, str], Figure]
) -> list[dict[str, Any]]:
    """Headline metrics of a task that at least one source has, with a cell for each source."""
    rows = []
    for metric in HEADLINES[task]:
        cells = [by_cell.get((metric, source)) for source in sources]
        present = [cell for cell in cells if cell is not None]
        if present:
            # A metric has one protocol for all sources.
            protocol = present[0]["protocol"]
            rows.append({"metric": metric, "cells": cells, "protocol": protocol})
    return rows


def _per_finding(figures: Sequence[Figure]) -> list[dict[str, Any]]:
    """One table per source: the figures of each finding along the chain."""
    tables = []
    for source in sorted({figure["source"] for figure in figures}):
        by_cell = _cells_of_findings(figures, source)
        findings = sorted({finding for _, finding in by_cell})
        if not findings:
            continue
        # In the order of `FINDING_COLUMNS`, and only those that have a figure.
        used = {column for column, _ in by_cell}
        columns = [column for column in FINDING_COLUMNS if column in used]
        rows = []
        for finding in findings:
            cells = [by_cell.get((column, finding)) for column in columns]
            rows.append((finding, cells))
        headings = [FINDING_COLUMNS[column] for column in columns]
        tables.append({"source": source, "columns": headings, "rows": rows})
    return tables


def _cells_of_findings(figures: Sequence[Figure], source: str) -> dict[tuple[str, str], Figure]:
    """Figures `<column>/<finding>` of a source by column and finding; no controls."""
    cells = {}
    for figure in figures:
        if figure["source"] != source or figure["control"] is not None:
            continue
        column, slash, finding = figure["metric"].partition("/")
        if slash and column in FINDING_COLUMNS:
            cells[column, finding] = figure
    return cells


def _controls(figures: Sequence[Figure]) -> list[dict[str, Any]]:
    """Figures with their controls, and the controls that a figure does not beat."""

    def identity(figure: Figure) -> tuple[str, str, str]:
        """What a figure and its controls have in common."""
        return figure["task"], figure["source"], figure["metric"]

    by_control: dict[tuple[str, str, str], dict[str, Figure]] = {}
    for figure in figures:
        if figure["control"] is not None:
            by_control.setdefault(identity(figure), {})[figure["control"]] = figure
    rows = []
    for figure in figures:
        found = by_control.get(identity(figure))
        # Only figures that chance is interesting for.
        if figure["control"] is None and figure["metric"] in CONTROLLED and found:
            cells = [found.get(control) for control in CONTROLS]
            rows.append({"real": figure, "cells": cells, "unbeaten": _unbeaten(figure, found)})
    return rows


def _unbeaten(figure: Figure, controls: Mapping[str, Figure]) -> list[str]:
    """Names of the controls that are not below a figure's interval; references are no control."""
    low = figure["value"] if figure["low"] is None else figure["low"]
    unbeaten = []
    for control, heading in CONTROLS.items():
        of_control = controls.get(control)
        if control != REFERENCE and of_control is not None and of_control["value"] >= low:
            unbeaten.append(heading)
    return unbeaten


def _curves(run: Path) -> list[dict[str, Any]]:
    """Training and validation curves of TensorBoard's files, as points of small line charts."""
    # Imported here: it takes seconds, and other pages need no curves.
    from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

    charts = []
    for folder in sorted({path.parent for path in run.rglob("events.out.tfevents.*")}):
        reader = EventAccumulator(str(folder), size_guidance={SCALARS: MAX_POINTS})
        reader.Reload()
        for tag in reader.Tags()["scalars"]:
            if not _is_shown(tag):
                continue
            points = [(event.step, event.value) for event in reader.Scalars(tag)]
            # One point is no curve.
            if len(points) > 1:
                charts.append(
                    {
                        "module": str(folder.parent.relative_to(run)),
                        "tag": tag,
                        "line": _polyline(points),
                        "last": points[-1],
                        "first": points[0],
                    }
                )
    return charts


def _is_shown(tag: str) -> bool:
    is_validation = tag.startswith("val/") and tag.rsplit("/", 1)[-1] in VALIDATION_CURVES
    return tag == "train/loss" or is_validation


def _polyline(points: Sequence[tuple[int, float]], width: float = 220, height: float = 60) -> str:
    """Points of an SVG polyline that fills a field of that size.

    >>> _polyline([(0, 2.0), (5, 1.0), (10, 0.0)], width=100, height=50)
    '0.0,0.0 50.0,25.0 100.0,50.0'
    """
    steps = [step for step, _ in points]
    values = [value for _, value in points]
    first = min(steps)
    low, high = min(values), max(values)
    step_span = (max(steps) - first) or 1
    # A constant curve is drawn at the bottom.
    value_span = (high - low) or 1
    pairs = []
    for step, value in points:
        x = (step - first) / step_span * width
        y = height - (value - low) / value_span * height
        pairs.append(f"{x:.1f},{y:.1f}")
    return " ".join(pairs)
