"""Output on the terminal: texts of others are shown, and never obeyed.

File names, reports and names in a dataset may hold escape sequences, which move the cursor or
rename the window, and brackets, which rich takes for its markup.
"""

from __future__ import annotations

import sys
from typing import IO, Any

from mavilt_pl.errors import escape


def say(text: object, file: IO[str] | None = None) -> None:
    """Print a text; its line breaks stay, all other control characters are shown escaped.

    Args:
        text: anything with a text.
        file: standard output by default.
    """
    lines = [escape(line) for line in str(text).split("\n")]
    # Looked up now: tests and notebooks replace it.
    print("\n".join(lines), file=file or sys.stdout, flush=True)


def plain(text: str) -> Any:
    """A text for a cell or a title of a rich table, without markup."""
    from rich.text import Text

    return Text(escape(text))
