"""Settings of tested runs: which must agree for a comparison, and which differ between arms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

# What a test scores, of `data`. Figures under other values are of other questions.
TESTED_WITH = (
    "sections",
    "cleaning",
    "views",
    "each_view",
    "findings",
    "ask_labels",
    "limit_test",
)
# Of a training; arms have several on purpose.
SEEDS = ("data.seed", "seed")


def flat_settings(made_by: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a results.json records, as `data.sections` → value.

    >>> flat_settings({"config": {"data": {"sections": "findings"}}, "decoding": {}})
    {'data.sections': 'findings'}
    """
    flat: dict[str, Any] = {}
    # Decoding is recorded apart: a test may change it.
    groups = {**made_by.get("config", {}), "decoding": made_by.get("decoding", {})}
    for name, group in groups.items():
        _flatten(name, group, flat)
    return flat


def _flatten(name: str, value: Any, flat: dict[str, Any]) -> None:
    if not isinstance(value, Mapping):
        flat[name] = value
        return
    for key, inner in value.items():
        _flatten(f"{name}.{key}", inner, flat)


def tested_otherwise(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> str | None:
    """The first setting of the test in which two runs differ; None if there is none."""
    for name in sorted(mine.keys() & theirs.keys()):
        # Without the test that it is of: "stage2: data.sections".
        setting = name.rpartition(": ")[2]
        is_tested = setting.removeprefix("data.") in TESTED_WITH and setting.startswith("data.")
        if is_tested and mine[name] != theirs[name]:
            return name
    return None


def differing_settings(settings: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The settings that are not the same in all arms, with each arm's value.

    Args:
        settings: of the first run of each arm.
    """
    rows = []
    # Also settings that only one arm has.
    for name in sorted(set().union(*settings)):
        if name.rpartition(": ")[2] in SEEDS:
            continue
        values = [arm.get(name) for arm in settings]
        if any(value != values[0] for value in values):
            rows.append({"setting": name, "values": [_shown(value) for value in values]})
    return rows


def _shown(value: Any) -> str:
    # Null and not there are the same to a reader.
    return "–" if value is None else str(value)
