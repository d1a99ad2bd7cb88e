"""Arms of an experiment side by side: means over runs, what differs, and how sure that is."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from mavilt_pl.errors import UserError
from mavilt_pl.evaluation.html_report import HEADLINES, TITLES, samples_below, tested, write_page
from mavilt_pl.evaluation.results import read_results, write_json
from mavilt_pl.evaluation.tradeoff import tradeoffs

PROTOCOL = (
    "A cell is the mean over the arm's runs with the 95 % t interval over them: how much a "
    "training differs from the "
    "next, not how much patients do. Of a single run it is that run's bootstrap interval by "
    "patient. A difference is the "
    "first arm minus another; its 95 % interval is the paired t interval over runs in the order "
    "given (the same seed in "
    "both arms), and there is none where the arms differ in number or have one run. Intervals are "
    "not corrected for the "
    "number of rows."
)


class _Tests(NamedTuple):
    """What the tests of one run found, and on what."""

    folder: Path
    figures: dict[tuple[str, ...], dict[str, Any]]
    corpora: dict[str, str]
    judges: dict[str, str]


def t_interval(values: Sequence[float]) -> tuple[float | None, float | None]:
    """The 95 % t interval of the mean; none below two values."""
    if len(values) < 2:
        return None, None
    half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values))
    return float(np.mean(values) - half), float(np.mean(values) + half)


def _read(folder: Path) -> _Tests:
    made = _Tests(folder, {}, {}, {})
    for path in tested(folder):
        content = read_results(path)
        for figure in content["figures"]:
            key = tuple(str(figure[part]) for part in ("task", "source", "metric", "control"))
            if key in made.figures:
                raise UserError(
                    f"{folder}: two tests below it have {' '.join(key[:3])}; name the folder of "
                    f"one run"
                )
            made.figures[key] = figure
        made.corpora.update(content["made_by"].get("corpus", {}))
        made.judges.update(content["made_by"].get("judges", {}))
    return made


def _refuse_others(first: _Tests, other: _Tests) -> None:
    """Raise where two runs were not tested on the same studies, by the same judge, in the same way."""

    def refuse(what: str, here: Any, there: Any) -> None:
        if here != there:
            raise UserError(
                f"not comparable: {first.folder} and {other.folder} differ in {what}: {here} and "
                f"{there}. Test both in "
                "the same way, on the same corpus"
            )

    for what, here, there in (
        ("corpus", first.corpora, other.corpora),
        ("judge", first.judges, other.judges),
    ):
        for name in sorted(here.keys() | there.keys()):
            refuse(
                f"the fingerprint of {what} {name}", here.get(name, "none"), there.get(name, "none")
            )
    for key in first.figures.keys() & other.figures.keys():
        for part, what in (("n", "the number of cases"), ("protocol", "the protocol")):
            refuse(
                f"{what} of {' '.join(key[:3])}", first.figures[key][part], other.figures[key][part]
            )


def compare(
    out: Path, arms: Sequence[str], seeds: str | None = None, names: str | None = None
) -> Path:
    """Writes compare.json and compare.html in `out`, prints the table, and gives the page's path.

    Args:
        arms: each a run's folder or several between commas, absolute or within `out`.
        seeds: subfolders of every arm that are its runs, between commas.
        names: of the arms, between commas; without, their folders' names.
    """
    folders = [
        [
            out / part / seed.strip()
            for part in arm.split(",")
            for seed in (seeds.split(",") if seeds else [""])
        ]
        for arm in arms
    ]
    called = names.split(",") if names else arms
    if len(called) != len(arms) or len(arms) < 2:
        raise UserError(
            f"--compare {' '.join(arms)}: expected two arms or more, and as many names; found "
            f"{len(called)} names"
        )
    runs = [[_read(folder) for folder in arm] for arm in folders]
    everything = [run for arm in runs for run in arm]
    for other in everything[1:]:
        _refuse_others(everything[0], other)
    keys = [key for key in everything[0].figures if all(key in run.figures for run in everything)]
    left_out = sorted(
        {" ".join(key[:3]) for run in everything for key in run.figures}
        - {" ".join(k[:3]) for k in keys}
    )
    rows = [_row(key, called, runs) for key in keys]
    content = {
        "arms": {
            name: [os.path.relpath(run.folder, out) for run in arm]
            for name, arm in zip(called, runs)
        },
        "protocol": PROTOCOL,
    }
    write_json(out / "compare.json", content | {"rows": rows, "left_out": left_out})
    shown = [
        row for row in rows if row["control"] is None and row["metric"] in HEADLINES[row["task"]]
    ]
    _print(shown, called, [len(arm) for arm in runs])
    return write_page(
        out / "compare.html",
        "compare.html.jinja",
        rows=shown,
        arms=called,
        counts=[len(arm) for arm in runs],
        left_out=left_out,
        protocol=PROTOCOL,
        titles=TITLES,
        name=out.resolve().name,
        pictures=_pictures([arm[0].folder for arm in runs]),
        charts=tradeoffs(rows) if len(arms) > 2 else [],
    )


def _row(key: tuple[str, ...], names: Sequence[str], runs: list[list[_Tests]]) -> dict[str, Any]:
    """One figure of every arm, and the differences of the first to each other."""
    first = runs[0][0].figures[key]
    values = [[run.figures[key]["value"] for run in arm] for arm in runs]
    cells = []
    for name, arm, mine in zip(names, runs, values):
        only = arm[0].figures[key]
        low, high = t_interval(mine) if len(mine) > 1 else (only["low"], only["high"])
        cells.append(
            {"arm": name, "mean": float(np.mean(mine)), "low": low, "high": high, "values": mine}
        )
    differences = []
    for name, other in zip(names[1:], values[1:]):
        paired = [a - b for a, b in zip(values[0], other)] if len(values[0]) == len(other) else []
        low, high = t_interval(paired)
        mean = float(np.mean(values[0]) - np.mean(other))
        differences.append({"of": f"{names[0]} − {name}", "mean": mean, "low": low, "high": high})
    return {
        **{part: first[part] for part in ("task", "source", "metric", "control", "n", "protocol")},
        "cells": cells,
        "differences": differences,
    }


def _pictures(folders: list[Path]) -> list[dict[str, Any]]:
    """Studies that the first run of every arm shows: the original, and what each arm made of it."""
    samples = [samples_below(folder) for folder in folders]
    out = []
    for task, original, made in (
        ("tokenizer", "original", "reconstruction"),
        ("synthesis", "reference_image", "image"),
    ):
        arms = [
            {(row["source"], row["study"]): row for row in sample.get(task, [])}
            for sample in samples
        ]
        shared = [study for study in arms[0] if all(study in arm for arm in arms)]
        rows = [
            {
                "study": " · ".join(study),
                "original": arms[0][study][original],
                "made": [arm[study][made] for arm in arms],
                "text": arms[0][study].get("text", ""),
            }
            for study in shared
        ]
        if rows:
            out.append({"task": task, "rows": rows})
    return out


def _print(rows: list[dict[str, Any]], names: Sequence[str], counts: Sequence[int]) -> None:
    from rich.console import Console
    from rich.table import Table

    def cell(value: dict[str, Any]) -> str:
        text = f"{value['mean']:.4g}"
        return (
            text if value["low"] is None else f"{text} ({value['low']:.4g} to {value['high']:.4g})"
        )

    table = Table(title="means over runs, with 95 % intervals")
    for heading in (
        "metric",
        *(f"{name}, {n} run{'s' * (n > 1)}" for name, n in zip(names, counts)),
    ):
        table.add_column(heading)
    for name in names[1:]:
        table.add_column(f"{names[0]} − {name}")
    for row in rows:
        table.add_row(
            f"{row['task']} {row['source']} {row['metric']}",
            *map(cell, row["cells"]),
            *map(cell, row["differences"]),
        )
    Console().print(table)
