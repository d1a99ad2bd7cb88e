"""HTML pages that are complete in one file: images and styles are part of it."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from mavilt_pl.metrics.clinical import findings_in
from mavilt_pl.parallel.atomic_write import atomic_write_text
from mavilt_pl.parallel.own_files import check_replaceable

GENERATOR = '<meta name="generator" content="mavilt">'  # in every page of ours


def write_page(page: Path, template: str, **content: Any) -> Path:
    """Render a template of this folder into a page, whole or not at all; return the page's path."""
    environment = Environment(
        loader=PackageLoader("mavilt_pl.evaluation", "."),
        # Reports are text of others and must not become HTML. An undefined name is an error, since
        # a missing figure would otherwise be an empty cell.
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["figure"] = format_figure
    environment.filters["claims"] = compare_claims
    check_replaceable(page, GENERATOR)
    atomic_write_text(page, environment.get_template(template).render(**content))
    return page


def format_figure(value: float | None) -> str:
    """A figure with about three significant digits; a dash for None.

    >>> [format_figure(value) for value in (None, 0.0042, 0.876543, 27.31)]
    ['–', '0.0042', '0.877', '27.3']
    """
    if value is None:
        return "–"
    # Digits beyond the third are noise at a few hundred test studies.
    if abs(value) >= 10:
        return f"{value:.1f}"
    if 0 < abs(value) < 0.01:
        return f"{value:.2g}"
    return f"{value:.3f}"


def inline_images(row: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A sample with the content of its picture files in place of their names.

    Args:
        row: a sample of samples.json.
        folder: that the names are relative to.
    """
    inlined = dict(row)
    for key, value in row.items():
        if isinstance(value, str) and value.startswith("pictures/") and value.endswith(".png"):
            # Part of the page, so that it can be sent or archived as one file.
            content = base64.b64encode((folder / value).read_bytes()).decode()
            inlined[key] = f"data:image/png;base64,{content}"
    return inlined


def compare_claims(row: dict[str, Any]) -> list[tuple[str, str]]:
    """Findings that a generated report got right, missed or invented, by the known labels.

    >>> labels = {"edema": "present", "pneumothorax": "absent", "fracture": "absent"}
    >>> compare_claims({"generated": "Small pneumothorax.", "labels": labels})
    [('edema', 'missed'), ('pneumothorax', 'invented')]
    """
    asserted = findings_in(row["generated"])
    verdicts = []
    for finding, label in row["labels"].items():
        # Only definite labels can prove a claim right or wrong; uncertain ones are left open.
        claimed = asserted.get(finding) == "present"
        if label == "present":
            verdicts.append((finding, "right" if claimed else "missed"))
        elif label == "absent" and claimed:
            verdicts.append((finding, "invented"))
    return verdicts
