"""results.json: a flat list of figures with their provenance."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mavilt_pl.errors import UserError
from mavilt_pl.evaluation.predictions import FILE as PREDICTIONS
from mavilt_pl.evaluation.predictions import MARK as PREDICTIONS_MARK
from mavilt_pl.parallel.atomic_write import atomic_write_text
from mavilt_pl.parallel.own_files import check_replaceable

Figure = dict[str, Any]

# The order of the tables on the page.
TASKS = ("encoder", "tokenizer", "report", "synthesis", "vqa", "text")
KEYS = ("task", "source", "metric", "value", "low", "high", "n", "protocol", "control")
# Keys by which our files are recognised before they are replaced.
MARKS = {
    "results.json": '"figures"',
    "samples.json": '"notice"',
    "compare.json": '"arms"',
    PREDICTIONS: PREDICTIONS_MARK,
    "subgroups.json": '"fewest_patients"',
}


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file whole or not at all, and its folder if missing.

    Raises:
        ValueError: a number is nan or infinite, which JSON does not have.
        UserError: the file exists and is not ours.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    check_replaceable(path, MARKS[path.name])
    # `allow_nan=False`: Python would write NaN, which other readers of JSON refuse.
    text = json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False)
    atomic_write_text(path, text)


def check_figures(figures: Sequence[Figure], origin: str) -> list[Figure]:
    """Check that every figure has all keys, a known task, a protocol and a finite value.

    Args:
        figures: to be checked.
        origin: file or folder that they come from, for messages.

    Raises:
        UserError: one is incomplete. A number without its protocol is refused.

    >>> check_figures([{"task": "vqa", "metric": "accuracy"}], "here")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    mavilt_pl.errors.UserError: here: figure accuracy of task vqa: missing ['source', ...
    """
    # Checked when written and when read: files of other versions are read too.
    for figure in figures:
        missing = [key for key in KEYS if key not in figure]
        is_valid = (
            not missing
            and figure["task"] in TASKS
            and figure["protocol"]
            and math.isfinite(figure["value"])
        )
        if not is_valid:
            raise UserError(
                f"{origin}: figure {figure.get('metric', '?')} of task {figure.get('task', '?')}: "
                f"missing {missing}, an unknown task, an empty protocol or a value that is not "
                "finite; run the test again"
            )
    return list(figures)


def read_results(path: Path) -> dict[str, Any]:
    """Read and check a results.json.

    Raises:
        UserError: it cannot be read, or a figure is incomplete.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        check_figures(content["figures"], str(path))
        return content
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is not a results file ({type(error).__name__}: {error}); run the test again"
        ) from None


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide on figures."""
    from importlib.metadata import version

    found = {"python": platform.python_version()}
    for name in ("mavilt", "torch", "lightning", "transformers", "torchmetrics"):
        found[name] = version(name)
    return found
