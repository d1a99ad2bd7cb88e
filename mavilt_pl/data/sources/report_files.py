"""Read report files that nobody vouches for: bounded, regular, inside the dataset's folder."""

from __future__ import annotations

from pathlib import Path
from typing import IO

from mavilt_pl.data.links import check_link
from mavilt_pl.errors import Rejected

# The longest report of MIMIC-CXR has about 9,000 bytes, the longest XML of Indiana 16,000.
LARGEST_REPORT = 2**20  # bytes


def read_report_file(path: Path, folder: Path | None) -> bytes:
    """The bytes of a report.

    Args:
        path: of the file.
        folder: that the file must lie in, resolved; None if links may lead anywhere.

    Raises:
        Rejected: no regular file, one outside of `folder`, too large or unreadable.
    """
    if folder is not None:
        check_link(path, folder)
    # A pipe would keep the reader waiting.
    if not path.is_file():
        kind = "a folder" if path.is_dir() else "no regular file"
        raise Rejected(f"{path} is {kind}; expected a report")
    try:
        with path.open("rb") as file:
            return read_bounded(file, str(path))
    except OSError as error:
        raise Rejected(f"{path}: not readable ({error.strerror}); expected a report") from None


def read_bounded(file: IO[bytes], name: str) -> bytes:
    """The bytes of an open report; `name` is for the message.

    Raises:
        Rejected: it has more than `LARGEST_REPORT` bytes, whatever an archive says of it.
    """
    # One byte more than allowed shows that there is more.
    content = file.read(LARGEST_REPORT + 1)
    if len(content) > LARGEST_REPORT:
        raise Rejected(
            f"{name} has more than {LARGEST_REPORT:,} bytes; expected a report: download it again"
        )
    return content
