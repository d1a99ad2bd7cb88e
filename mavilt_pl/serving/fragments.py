"""Pictures and tables as HTML, with their pixels inside: no file is written for a browser."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from markupsafe import Markup
from PIL import Image

from mavilt_pl.inference.outputs import Drawing

FIGURE = Markup(
    '<figure><img src="data:image/png;base64,{}" alt="{}"><figcaption>{}{}</figcaption></figure>'
)
DOWNLOAD = Markup(' <a download="{}" href="data:{};base64,{}">{}</a>')
ROW = Markup('<div class="pictures">{}</div>')
TABLE = Markup("<h3>{}</h3><table class='figures'><tr>{}</tr>{}</table>")
HEADINGS = ("figure", "value", "95 % interval", "n", "controls")


def radiographs_html(pictures: Sequence[tuple[np.ndarray, str]]) -> str:
    """Pictures uint8 [H,W] next to each other, each with its caption."""
    figures = Markup()
    for pixels, caption in pictures:
        buffer = BytesIO()
        Image.fromarray(pixels).save(buffer, format="png")
        # Markup.format escapes what it is given, so a caption cannot become HTML.
        figures += FIGURE.format(_base64(buffer.getvalue()), caption, caption, "")
    return str(ROW.format(figures))


def drawings_html(drawings: Sequence[Drawing]) -> str:
    """Drawings with their seeds, and links to them as files that say that they are synthetic."""
    figures = Markup()
    for drawing in drawings:
        files = {}
        with TemporaryDirectory() as folder:
            # The files that `mavilt draw` writes, with their marks.
            for suffix in ("png", "dcm"):
                path = Path(folder) / f"drawing.{suffix}"
                drawing.save(path)
                files[suffix] = _base64(path.read_bytes())
        # Downloads lose their comments in some programs; the name stays.
        name = f"synthetic-{drawing.seed}"
        links = DOWNLOAD.format(f"{name}.png", "image/png", files["png"], "PNG")
        links += DOWNLOAD.format(f"{name}.dcm", "application/dicom", files["dcm"], "DICOM")
        caption = f"synthetic, seed {drawing.seed}"
        figures += FIGURE.format(files["png"], caption, caption, links)
    return str(ROW.format(figures))


def figures_html(tables: Sequence[Mapping[str, Any]]) -> str:
    """Tables of figures, each with its protocol, of `headline_tables`."""
    page = Markup()
    headings = Markup().join(Markup("<th>{}</th>").format(text) for text in HEADINGS)
    for table in tables:
        rows = Markup()
        for row in table["rows"]:
            # Escaped by `format`: names of sources are a user's.
            name = Markup("{}<br><b>{}</b><br><small>{}</small>").format(
                row["source"], row["metric"], row["protocol"]
            )
            cells = (name, row["value"], row["interval"], row["n"], row["controls"])
            texts = Markup().join(Markup("<td>{}</td>").format(cell) for cell in cells)
            rows += Markup("<tr>{}</tr>").format(texts)
        # Joined as Markup, which escapes nothing twice.
        page += TABLE.format(table["title"], headings, rows)
    return str(page)


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()
