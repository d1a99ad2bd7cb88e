"""Figures of a test by sex, age, ethnicity, scanner and view, and how far groups are apart.

Some group is always the best and some the worst. So the largest gap stands next to what chance
makes of it: patients are resampled, each group's deviation from its own figure is taken, and the
range of these deviations over the groups is the gap that appears where there is none. Its 95th
percentile, added to and subtracted from the gap, gives an interval that holds for all pairs of
groups together, as Tukey's range test does for means.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mavilt_pl.data.sources.demographics import ATTRIBUTES
from mavilt_pl.errors import UserError
from mavilt_pl.evaluation.figure_tables import COLUMNS, write_csv
from mavilt_pl.evaluation.headlines import HEADLINES
from mavilt_pl.evaluation.predictions import Record
from mavilt_pl.evaluation.results import MARKS, TASKS, Figure, write_json
from mavilt_pl.evaluation.scoring import Table, score, tables, topics_of
from mavilt_pl.metrics.bootstrap import RESAMPLES, patient_key, resamples
from mavilt_pl.parallel.own_files import check_replaceable

FILE = "subgroups.json"
FEWEST_PATIENTS = 10  # of a group that is shown: fewer are neither a figure nor anonymous
OF_GROUP = ("attribute", "group", "patients")  # columns besides those of every figure
Groups = Mapping[str, Sequence[Record]]  # the records of each group
Place = tuple[str, str, str]  # task, source, attribute


def write_subgroups(
    folder: Path, records: Sequence[Record], findings: Sequence[str] | None
) -> Path | None:
    """Write subgroups.json of a test's records; none if no record has an attribute of two values.

    Args:
        folder: of the test.
        records: as in predictions.jsonl.
        findings: that the test scored.

    Raises:
        UserError: a file of that name is not ours.
    """
    content = subgroups(records, findings)
    path = folder / FILE
    # Before it is removed as well as before it is replaced.
    check_replaceable(path, MARKS[FILE])
    if not content["figures"] and not content["suppressed"]:
        # That of an earlier test is not this one's.
        path.unlink(missing_ok=True)
        return None
    write_json(path, content)
    return path


def subgroups(records: Sequence[Record], findings: Sequence[str] | None) -> dict[str, Any]:
    """All figures by subgroup.

    Args:
        records: of `predictions.read_predictions`; their `attributes` name the groups.
        findings: as for `scoring.score`.

    Returns:
        `figures`: those of `scoring.score`, each with its `attribute`, `group` and number of
        `patients`. `gaps`: by attribute and metric the `gap` between `highest` and `lowest` group,
        its interval `low` to `high`, the gap that `chance` exceeds in 5 of 100 tests, and the
        findings it is over. `suppressed`: groups of fewer than `fewest_patients`.
    """
    found: dict[str, Any] = {"figures": [], "gaps": [], "suppressed": []}
    for named, groups in _groups(records):
        shown: dict[str, Sequence[Record]] = {}
        for group, of_group in sorted(groups.items()):
            patients = len({str(record["patient"]) for record in of_group})
            # A figure of three patients is theirs; without its number it is not even that.
            if patients < FEWEST_PATIENTS:
                found["suppressed"].append({**named, "group": group})
                continue
            shown[group] = of_group
            about = {"attribute": named["attribute"], "group": group, "patients": patients}
            for figure in score(of_group, findings):
                found["figures"].append({**figure, **about})
        # A gap is between two.
        if len(shown) > 1:
            found["gaps"] += [{**named, **gap} for gap in _gaps(named["task"], shown, findings)]
    return {"fewest_patients": FEWEST_PATIENTS, **found}


def _groups(records: Sequence[Record]) -> Iterator[tuple[dict[str, str], dict[str, list[Record]]]]:
    """The groups of each task, source and attribute that has more than one.

    Yields:
        Names of the three, and the records of each group.
    """
    by_place: dict[tuple[str, str, str], dict[str, list[Record]]] = {}
    for record in records:
        attributes = record.get("attributes")
        # Another program's records may have none, or anything.
        if not isinstance(attributes, dict) or record["task"] not in TASKS:
            continue
        # The view is the image's and not the patient's, so it is no attribute of the study.
        for attribute in (*ATTRIBUTES, "view"):
            group = str(attributes.get(attribute, ""))
            if group and group != "UNKNOWN":
                place = record["task"], str(record["source"]), attribute
                by_place.setdefault(place, {}).setdefault(group, []).append(record)
    for (task, source, attribute), groups in by_place.items():
        # One group is the whole test, whose figures are in results.json.
        if len(groups) > 1:
            yield {"task": task, "source": source, "attribute": attribute}, groups


def _gaps(task: str, groups: Groups, findings: Sequence[str] | None) -> list[dict[str, Any]]:
    """The largest gap of each average, over the findings that all groups have cases of."""
    # A mean over other findings would be another figure.
    shared = [topics_of(task, of_group, findings) for of_group in groups.values()]
    common = sorted(set.intersection(*shared))
    # A unit is what one patient has in one group: a patient may have images of two views.
    names: dict[int, tuple[int, str]] = {}
    units: list[Record] = []
    for number, of_group in enumerate(groups.values()):
        for record in of_group:
            if task == "vqa" and str(record.get("topic", "other")) not in common:
                continue
            patient = str(record["patient"])
            unit = f"{number} {patient}"
            names[patient_key(unit)] = number, patient
            units.append({**record, "patient": unit})
    gaps = []
    for table in tables(task, units, common) if units else []:
        # A metric without a case, such as that of open questions, has no rows.
        if len(table[1]):
            gaps += _gaps_of_table(table, names, [*groups])
    return [{**gap, "findings": common} for gap in gaps]


def _gaps_of_table(
    table: Table, names: Mapping[int, tuple[int, str]], groups: Sequence[str]
) -> list[dict[str, Any]]:
    """The largest gap of each figure of a metric.

    Shape legend: N rows of the metric, G groups, R resamples.

    Args:
        table: statistics of the rows, and the unit of each.
        names: number of the group and patient of each unit.
        groups: their names.
    """
    statistics, units_N = table
    group_N = np.array([names[unit][0] for unit in units_N])
    patient_N = np.array([patient_key(names[unit][1]) for unit in units_N])
    of_group_GN = np.stack([group_N == number for number in range(len(groups))]).astype(float)
    # As if the test had this group's rows alone.
    values = [statistics(of_group_N) for of_group_N in of_group_GN]
    # Patients are resampled as a whole, with all their groups.
    resampled = []
    for weights_N in resamples(patient_N, RESAMPLES, seed=0):
        resampled.append([statistics(of_group_N * weights_N) for of_group_N in of_group_GN])
    # Each figure of the metric by itself: another pair of groups may be furthest apart.
    gaps = []
    for name in values[0]:
        value_G = np.array([of_group[name] for of_group in values])
        resampled_RG = np.array([[of_group[name] for of_group in one] for one in resampled])
        gap = _gap(value_G, resampled_RG, groups)
        if gap is not None:
            gaps.append({"metric": name, **gap})
    return gaps


def _gap(
    value_G: np.ndarray, resampled_RG: np.ndarray, groups: Sequence[str]
) -> dict[str, Any] | None:
    """The largest gap of one figure; None if fewer than two groups have the figure."""
    defined = np.flatnonzero(np.isfinite(value_G))
    if len(defined) < 2:
        return None
    # Groups without the figure take part in no comparison.
    value_G = value_G[defined]
    highest, lowest = int(value_G.argmax()), int(value_G.argmin())
    gap = float(value_G[highest] - value_G[lowest])
    chance = None
    deviation_RG = resampled_RG[:, defined] - value_G if len(resampled_RG) else np.empty((0, 2))
    # A small group may lack the figure in a resample.
    deviation_RG = deviation_RG[np.isfinite(deviation_RG).all(1)]
    if len(deviation_RG) >= RESAMPLES // 2:
        chance = float(np.percentile(np.ptp(deviation_RG, axis=1), 95))
    return {
        "gap": gap,
        "low": None if chance is None else max(gap - chance, 0.0),
        "high": None if chance is None else gap + chance,
        "chance": chance,
        "highest": {"group": groups[defined[highest]], "value": float(value_G[highest])},
        "lowest": {"group": groups[defined[lowest]], "value": float(value_G[lowest])},
    }


def gather_subgroups(run: Path) -> list[dict[str, Any]]:
    """Tables of every test/subgroups.json below a run, and subgroups.csv with all their figures.

    Args:
        run: the run's folder.

    Returns:
        As `_tables`, of all tests.

    Raises:
        UserError: a file cannot be read, or subgroups.csv is not ours.
    """
    found, figures = [], []
    for path in sorted(run.rglob(FILE)):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            found += _tables(content)
            figures += content["figures"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path} is not a file of subgroups ({type(error).__name__}: {error}); run the "
                "test again"
            ) from None
    # Of all tests in one file: a spreadsheet filters.
    if figures:
        write_csv(run / "subgroups.csv", (*COLUMNS, *OF_GROUP), figures)
    return found


def _tables(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What the page shows: a table of each task, source and attribute.

    Args:
        content: of a subgroups.json.

    Returns:
        Of each table its names, `groups` with their numbers of patients, `rows` of a headline with
        a figure for each group and its gap, and the names of `suppressed` groups.
    """
    # By table first, since a table's groups are its columns.
    figures: dict[Place, dict[tuple[str, str], Figure]] = {}
    patients: dict[Place, dict[str, int]] = {}
    for figure in content["figures"]:
        figures.setdefault(_place(figure), {})[figure["metric"], figure["group"]] = figure
        patients.setdefault(_place(figure), {})[figure["group"]] = figure["patients"]
    gaps = {(_place(gap), gap["metric"]): gap for gap in content["gaps"]}
    # In the order of the page: task by task, and within a task as the attributes came.
    shown = []
    for place in sorted(figures, key=lambda place: TASKS.index(place[0])):
        rows = []
        for metric in HEADLINES[place[0]]:
            # What chance would reach is no figure of the model.
            if metric.endswith("_chance"):
                continue
            cells = [figures[place].get((metric, group)) for group in patients[place]]
            if any(cells):
                rows.append({"metric": metric, "cells": cells, "gap": gaps.get((place, metric))})
        # Named, so that nobody takes the groups shown for all.
        suppressed = [row["group"] for row in content["suppressed"] if _place(row) == place]
        table = dict(zip(("task", "source", "attribute"), place))
        counted = [*patients[place].items()]
        shown.append({**table, "groups": counted, "rows": rows, "suppressed": suppressed})
    return shown


def _place(row: Mapping[str, Any]) -> Place:
    return row["task"], row["source"], row["attribute"]
