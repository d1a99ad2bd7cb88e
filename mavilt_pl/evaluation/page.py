"""HTML pages that are complete in one file: images and styles are part of it."""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from mavilt_pl.errors import UserError
from mavilt_pl.metrics.claims import compare_claims
from mavilt_pl.parallel.atomic_write import atomic_write_text
from mavilt_pl.parallel.own_files import check_replaceable

# Keys of a sample that name pictures.
PICTURES = {
    *("image", "reference_image", "second_image", "second_reference_image"),
    *("original", "reconstruction", "difference"),
}
PICTURE_NAME = re.compile(r"pictures/[A-Za-z0-9_][A-Za-z0-9_.-]*\.png")
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
GENERATOR = '<meta name="generator" content="mavilt">'  # in every page of ours


def write_page(
    page: Path, template: str, package: str = "mavilt_pl.evaluation", **content: Any
) -> Path:
    """Render a template of a package into a page, whole or not at all; return the page's path."""
    environment = Environment(
        loader=PackageLoader(package, "."),
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

    Raises:
        UserError: a picture is not a PNG file in the folder `pictures`, or is missing.
    """
    inlined = dict(row)
    for key, value in row.items():
        # Whoever sends a run to somebody else writes its samples.json: it may name no other file,
        # and no address that the page would load.
        if key in PICTURES:
            inlined[key] = f"data:image/png;base64,{_read_picture(folder, value)}"
    return inlined


def _read_picture(folder: Path, name: Any) -> str:
    """The content of a picture, in base64: part of the page, so that it can be sent as one file."""
    where = f"{folder / 'samples.json'}: picture {name!r}"
    if not isinstance(name, str) or not PICTURE_NAME.fullmatch(name):
        raise UserError(f"{where}: expected a name such as pictures/report-000-image.png")
    path = folder / name
    if path.is_symlink() or path.parent.is_symlink():
        raise UserError(f"{where} is a link; expected a file of the test itself")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{where} cannot be read ({error.strerror}): test again") from None
    if not content.startswith(PNG_SIGNATURE):
        raise UserError(f"{where} is no PNG file: test again")
    return base64.b64encode(content).decode()
