"""Read the tables and JSON files of a dataset strictly: damage is an error, never a guess."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from mavilt_pl.errors import UserError

# What spreadsheet programs take for the beginning of a formula, alone or after white space.
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


def find_table(root: Path, stem: str) -> Path | None:
    """The file `stem`.csv.gz or `stem`.csv under `root`, if there is one."""
    for path in (root / f"{stem}.csv.gz", root / f"{stem}.csv"):
        if path.exists():
            return path
    return None


def load_table(
    root: Path, stem: str, columns: Sequence[str], key: Sequence[str] = ()
) -> pd.DataFrame:
    """Read the table `stem`.csv.gz or `stem`.csv under `root`, as `read_table` does.

    Raises:
        UserError: the table is missing or damaged.
    """
    path = find_table(root, stem)
    if path is None:
        raise UserError(
            f"{root}: {stem}.csv.gz (or .csv) is missing; it belongs to the official release, "
            "download it there"
        )
    return read_table(path, columns, key)


def read_table(path: Path, columns: Sequence[str], key: Sequence[str] = ()) -> pd.DataFrame:
    """Read a table, all cells as text.

    Args:
        path: a CSV file, gzipped or not.
        columns: must be there, in any order.
        key: columns whose values together must be unique.

    Raises:
        UserError: the table is truncated, ragged, without rows or a needed column, or has a column
            or key twice.
    """
    header, fields = _read_csv(path)
    repeated = [name for name in header if header.count(name) > 1]
    if repeated:
        raise UserError(
            f"{path} has column {repeated[0]!r} twice; expected each once: is it the official "
            "table?"
        )
    # Text throughout: identifiers with leading zeros would not survive as numbers.
    rows = pd.DataFrame(fields, columns=header, dtype=object)
    missing = [column for column in columns if column not in rows.columns]
    if missing:
        raise UserError(
            f"{path} has no column {', '.join(missing)} (found {', '.join(rows.columns[:12])}): is "
            "it the official table?"
        )
    if rows.empty:
        raise UserError(f"{path} has no rows: the table is empty, download it again")
    if key:
        _check_unique(path, rows, list(key))
    return rows


def _read_csv(path: Path) -> tuple[list[str], list[list[str]]]:
    """Header and rows; each row as long as the header."""
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            # utf-8-sig drops the byte-order mark that spreadsheet programs write; `strict` refuses
            # a quote that is never closed.
            lines = csv.reader(io.TextIOWrapper(file, "utf-8-sig", newline=""), strict=True)
            header = [name.strip() for name in next(lines, [])]
            # Blank lines at the end of a file are no rows.
            fields = [line for line in lines if line]
    except (OSError, EOFError, UnicodeError, csv.Error, zlib.error) as error:
        raise UserError(
            f"{path} is not a readable table ({str(error)[:120]}): download it again"
        ) from None
    # pandas would fill or cut such a row silently.
    for number, line in enumerate(fields, 2):
        if len(line) != len(header):
            raise UserError(
                f"{path}, row {number}: {len(line)} fields under {len(header)} columns: download "
                "the table again"
            )
    return header, fields


def _check_unique(path: Path, rows: pd.DataFrame, key: list[str]) -> None:
    duplicated = rows.duplicated(key)
    if not duplicated.any():
        return
    # idxmax of booleans is the first True.
    row = int(duplicated.idxmax())
    values = ", ".join(f"{column} {rows.at[row, column]}" for column in key)
    raise UserError(
        f"{path}, row {row + 2}: {values} is there twice; expected once: download the table again"
    )


def group_rows(rows: pd.DataFrame, *key: str) -> Iterator[list[dict[str, str]]]:
    """Yield the rows that share a key, as dicts, in the order in which the keys come.

    It is an order of magnitude faster than pandas' groupby, which makes a frame of each group.
    """
    positions: dict[tuple[str, ...], list[int]] = {}
    for position, values in enumerate(zip(*(rows[column] for column in key))):
        positions.setdefault(values, []).append(position)
    # One array of all cells: indexing it by row is much cheaper than a DataFrame's rows.
    columns, cells = list(rows.columns), rows.to_numpy()
    for group in positions.values():
        yield [dict(zip(columns, cells[position])) for position in group]


def read_json_lines(path: Path, what: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the objects of a file of JSON lines, each with the number of its line.

    Args:
        path: the file; blank lines are skipped.
        what: such as "an object with an image", for the message.

    Raises:
        UserError: the file is not readable, or a line is no JSON object.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeError) as error:
        raise UserError(f"{path} is not readable ({error}); expected lines of JSON") from None
    # Not `splitlines`, which also splits within texts, at separators that JSON leaves as they are.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}, line {number}: no JSON ({error}); correct it") from None
        if not isinstance(row, dict):
            raise UserError(f"{path}, line {number}: a {type(row).__name__}; expected {what}")
        yield number, row


def read_json(path: Path, kind: type) -> Any:
    """Read a JSON file whose outermost value is a `kind` (list or dict).

    Raises:
        UserError: the file is missing, damaged or holds another kind of value.
    """
    try:
        value = json.loads(path.read_bytes().decode("utf-8-sig"))
    except FileNotFoundError:
        raise UserError(
            f"{path} is missing; it belongs to the official release, download it there"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path} is not readable JSON ({str(error)[:120]}): download it again"
        ) from None
    if not isinstance(value, kind):
        raise UserError(
            f"{path} holds a JSON {type(value).__name__}; expected a {kind.__name__}: is it the "
            "official file?"
        )
    return value


def inert_cell(cell: str) -> str:
    """A cell that a spreadsheet program shows and does not compute.

    >>> inert_cell("=1+1"), inert_cell("s50")
    ("'=1+1", 's50')
    """
    return f"'{cell}" if cell.startswith(FORMULA_STARTS) else cell
