"""Compare the arms of an experiment: means over runs, differences, and their intervals."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mavilt_pl.errors import UserError
from mavilt_pl.evaluation.headlines import HEADLINES, TITLES
from mavilt_pl.evaluation.html_report import find_results, read_samples, real_sources
from mavilt_pl.evaluation.page import write_page
from mavilt_pl.evaluation.paired import Difference, paired_tests
from mavilt_pl.evaluation.predictions import FILE as PREDICTIONS
from mavilt_pl.evaluation.results import Figure, read_results, write_json
from mavilt_pl.evaluation.settings import (
    differing_settings,
    flat_settings,
    tested_otherwise,
)
from mavilt_pl.evaluation.tradeoff import tradeoffs
from mavilt_pl.metrics.bootstrap import Estimate
from mavilt_pl.metrics.intervals import t_interval

Key = tuple[str, ...]  # task, source, metric, control

PROTOCOL = (
    "A cell is the mean over the arm's runs with its 95 % t interval: how much trainings differ, "
    "not how much patients do. A single run has its bootstrap interval by patient. A difference is "
    "the first arm minus another one. Its 95 % interval is the paired t interval over runs in the "
    "given order (the same seed in both arms). Of single runs it is a paired bootstrap by patient, "
    "from their predictions.jsonl: it speaks of these two models on other patients, and not of "
    "other trainings. It has no interval if the arms have different numbers of runs. Intervals are "
    "not corrected for the number of rows."
)
# Task, and the keys of its samples for the original image and for what an arm made of it.
# Reports are compared by their figures; only images need to be looked at.
PICTURES = (
    ("tokenizer", "original", "reconstruction"),
    ("synthesis", "reference_image", "image"),
)


@dataclass
class RunResults:
    """The figures of all tests of one run, and what they were tested with."""

    folder: Path
    figures: dict[Key, Figure] = field(default_factory=dict)
    corpora: dict[str, str] = field(default_factory=dict)  # name → fingerprint
    judges: dict[str, str] = field(default_factory=dict)  # task → SHA-256
    settings: dict[str, Any] = field(default_factory=dict)  # test and name → value
    predictions: dict[Path, Path] = field(default_factory=dict)  # test → predictions.jsonl

    @classmethod
    def read(cls, folder: Path) -> RunResults:
        """Read every test below a run's folder.

        Raises:
            UserError: there is none, or two tests have the same figure.
        """
        run = cls(folder)
        for path in find_results(folder):
            content = read_results(path)
            # A run may have a test for each task, in folders of their own.
            for figure in content["figures"]:
                key = _key(figure)
                # Two runs below one folder: choosing one of them silently could be wrong.
                if key in run.figures:
                    raise UserError(
                        f"{folder}: two tests below it have {_describe(key)}; name the folder of "
                        "one run"
                    )
                run.figures[key] = figure
            run.corpora.update(content["made_by"].get("corpus", {}))
            run.judges.update(content["made_by"].get("judges", {}))
            # Of `stage2/test/results.json`, that is `stage2`; "." if the run is a test's own.
            test = path.parent.parent.relative_to(folder)
            if (path.parent / PREDICTIONS).exists():
                run.predictions[test] = path.parent / PREDICTIONS
            for name, value in flat_settings(content["made_by"]).items():
                run.settings[f"{test}: {name}"] = value
        return run

    def check_comparable(self, other: RunResults) -> None:
        """Check that two runs were tested on the same studies, by the same judge and protocol.

        Raises:
            UserError: they differ in one of these.
        """
        # Fingerprints, not names: a corpus prepared again with other settings has the same name.
        self._check_same("corpus", self.corpora, other, other.corpora)
        self._check_same("judge", self.judges, other, other.judges)
        name = tested_otherwise(self.settings, other.settings)
        if name is not None:
            here, there = self.settings[name], other.settings[name]
            raise self._not_comparable(other, f"the setting {name} of the test", here, there)
        for key in self.figures.keys() & other.figures.keys():
            mine, theirs = self.figures[key], other.figures[key]
            for part, name in (("n", "number of cases"), ("protocol", "protocol")):
                if mine[part] != theirs[part]:
                    what = f"the {name} of {_describe(key)}"
                    raise self._not_comparable(other, what, mine[part], theirs[part])

    def _check_same(
        self, what: str, mine: Mapping[str, str], other: RunResults, theirs: Mapping[str, str]
    ) -> None:
        for name in sorted(mine.keys() | theirs.keys()):
            # A corpus that only one run was tested on is a difference too.
            here, there = mine.get(name, "none"), theirs.get(name, "none")
            if here != there:
                what = f"the fingerprint of {what} {name}"
                raise self._not_comparable(other, what, here, there)

    def _not_comparable(self, other: RunResults, what: str, here: Any, there: Any) -> UserError:
        return UserError(
            f"not comparable: {self.folder} and {other.folder} differ in {what}: {here} and "
            f"{there}. Test both in the same way, on the same corpus"
        )


@dataclass(frozen=True)
class Arm:
    """An arm of an experiment: its name and its runs."""

    name: str
    runs: tuple[RunResults, ...]

    def values(self, key: Key) -> list[float]:
        """A figure of every run."""
        return [run.figures[key]["value"] for run in self.runs]

    def paired_differences(self, other: Arm) -> dict[Difference, Estimate]:
        """Differences by patient, if each arm is a single run."""
        if len(self.runs) > 1 or len(other.runs) > 1:
            return {}
        return paired_tests(self.runs[0].predictions, other.runs[0].predictions)

    def cell(self, key: Key) -> dict[str, Any]:
        """The mean of a figure with its interval."""
        values = self.values(key)
        # Over several trainings the interval is of trainings; a single one has only its patients'.
        if len(values) > 1:
            low, high = t_interval(values)
        else:
            figure = self.runs[0].figures[key]
            low, high = figure["low"], figure["high"]
        mean = float(np.mean(values))
        return {"arm": self.name, "mean": mean, "low": low, "high": high, "values": values}


@dataclass(frozen=True)
class Comparison:
    """A finished comparison.

    Args:
        arms: in the given order.
        headlines: rows of compare.json that the page shows.
        page: path of compare.html.
    """

    arms: tuple[Arm, ...]
    headlines: list[dict[str, Any]]
    page: Path


def compare(
    out: Path, arms: Sequence[str], seeds: str | None = None, names: str | None = None
) -> Comparison:
    """Compare arms, and write compare.json and compare.html.

    Args:
        out: folder of both files.
        arms: each the folder of a run, or several separated by commas, absolute or below `out`.
        seeds: subfolders of every arm that are its runs, separated by commas.
        names: of the arms, separated by commas; default: their folders.

    Raises:
        UserError: there are fewer than two arms, or runs are not comparable.
    """
    compared = _read_arms(out, arms, seeds, names)
    runs = [run for arm in compared for run in arm.runs]
    # Being equal to the first run is transitive, so pairs need no check.
    for other in runs[1:]:
        runs[0].check_comparable(other)
    # A mean over the runs that have a figure would compare different runs.
    shared, partial = _shared_figures(runs)
    # Of each other arm, the differences of the first one to it.
    paired = [compared[0].paired_differences(arm) for arm in compared[1:]]
    rows = [_row(key, compared, paired) for key in shared]
    folders = {}
    for arm in compared:
        # Relative, so that the folder can be moved, and no path of a machine is published.
        folders[arm.name] = [os.path.relpath(run.folder, out) for run in arm.runs]
    settings = differing_settings([arm.runs[0].settings for arm in compared])
    content: dict[str, Any] = {"arms": folders, "protocol": PROTOCOL, "rows": rows}
    content |= {"left_out": partial, "settings": settings}
    write_json(out / "compare.json", content)

    headlines = []
    for row in rows:
        # compare.json has every figure; the page would be unreadable with all of them.
        if row["control"] is None and row["metric"] in HEADLINES[row["task"]]:
            headlines.append(row)
    pictures = _pictures(compared)
    page = write_page(
        out / "compare.html",
        "compare.html.jinja",
        rows=headlines,
        arms=[arm.name for arm in compared],
        counts=[len(arm.runs) for arm in compared],
        left_out=partial,
        settings=settings,
        protocol=PROTOCOL,
        titles=TITLES,
        name=out.resolve().name,
        pictures=pictures,
        patients=real_sources({part["task"]: part["rows"] for part in pictures}),
        # Two points show no trade-off.
        charts=tradeoffs(rows) if len(compared) > 2 else [],
    )
    return Comparison(compared, headlines, page)


def _read_arms(
    out: Path, arms: Sequence[str], seeds: str | None, names: str | None
) -> tuple[Arm, ...]:
    arm_names = names.split(",") if names else list(arms)
    if len(arm_names) != len(arms) or len(arms) < 2:
        raise UserError(
            f"--compare {' '.join(arms)}: expected two arms or more, and as many names; found "
            f"{len(arm_names)} names"
        )
    # "" is the folder itself.
    subfolders = [seed.strip() for seed in seeds.split(",")] if seeds else [""]
    read = []
    for name, arm in zip(arm_names, arms):
        runs = []
        for part in arm.split(","):
            for subfolder in subfolders:
                runs.append(RunResults.read(out / part / subfolder))
        read.append(Arm(name, tuple(runs)))
    return tuple(read)


def _shared_figures(runs: Sequence[RunResults]) -> tuple[list[Key], list[str]]:
    """The figures that all runs have, in order, and descriptions of the others, sorted."""
    shared = []
    for key in runs[0].figures:
        if all(key in run.figures for run in runs):
            shared.append(key)
    names: set[str] = set()
    for run in runs:
        names.update(map(_describe, run.figures))
    # By description: a figure whose control is missing is reported once, with its own name.
    names.difference_update(map(_describe, shared))
    return shared, sorted(names)


def _key(figure: Figure) -> Key:
    """What a figure is of; two tests of one run must not share it."""
    return tuple(str(figure[part]) for part in ("task", "source", "metric", "control"))


def _describe(key: Key) -> str:
    """Task, source and metric of a figure."""
    return " ".join(key[:3])


def _row(
    key: Key, arms: Sequence[Arm], paired: Sequence[Mapping[Difference, Estimate]]
) -> dict[str, Any]:
    """One figure of every arm, and the differences of the first arm to each other one."""
    first = arms[0]
    figure = first.runs[0].figures[key]
    row = {part: figure[part] for part in ("task", "source", "metric", "control", "n", "protocol")}
    row["cells"] = [arm.cell(key) for arm in arms]
    # The first arm is the proposal, the others are what it is compared with.
    row["differences"] = []
    for other, by_patient in zip(arms[1:], paired):
        difference = _difference(first, other, key)
        found = by_patient.get((key[0], key[1], key[2]))
        # Predictions are of the model itself, not of its controls.
        if found is not None and figure["control"] is None:
            difference |= {"low": found.low, "high": found.high}
        row["differences"].append(difference)
    return row


def _difference(first: Arm, other: Arm, key: Key) -> dict[str, Any]:
    mine, theirs = first.values(key), other.values(key)
    low, high = None, None
    # Paired: runs of one seed share data order and initial weights, so their common variation
    # cancels.
    if len(mine) == len(theirs):
        differences = [a - b for a, b in zip(mine, theirs)]
        low, high = t_interval(differences)
    mean = float(np.mean(mine) - np.mean(theirs))
    return {"of": f"{first.name} − {other.name}", "mean": mean, "low": low, "high": high}


def _pictures(arms: Sequence[Arm]) -> list[dict[str, Any]]:
    """Studies that the first run of every arm shows: the original, and each arm's image."""
    samples = [read_samples(arm.runs[0].folder) for arm in arms]
    parts = []
    for task, original, generated in PICTURES:
        by_study = []  # of each arm
        for sample in samples:
            of_task = sample.get(task, [])
            by_study.append({(row["source"], row["study"]): row for row in of_task})
        rows = []
        for study, row in by_study[0].items():
            # The arms' samples are the same studies unless one was tested on fewer.
            if not all(study in of_arm for of_arm in by_study):
                continue
            images = [of_arm[study][generated] for of_arm in by_study]
            rows.append(
                {
                    "source": study[0],
                    "study": " · ".join(study),
                    "original": row[original],
                    "images": images,
                    "text": row.get("text", ""),
                }
            )
        if rows:
            parts.append({"task": task, "rows": rows})
    return parts
