"""Every damaged table or JSON file of a dataset is one error that names it."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from dataset_layouts import LAYOUTS, rsna

from mavilt_pl.data.sources import SOURCES, read_source
from mavilt_pl.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore:.*no mimic-cxr-2.0.0-split table")


def read(name: str, root: Path) -> None:
    list(read_source(name, root, lambda *_: None))


def damage(path: Path, kind: str) -> str:
    """Damage a table or JSON file; return what the error must say besides the file's name."""
    if path.suffix == ".json":
        return damage_json(path, kind)
    text = path.read_text()
    header, *rows = text.splitlines()
    if kind == "cut":
        path.unlink()
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(text.encode())[:-9])
        return "not a readable table"
    if kind == "column":
        path.write_text("\n".join(["x" + header.replace(",", ",x"), *rows]))
        return "has no column"
    if kind == "twice":
        path.write_text("\n".join([header, *rows, rows[-1]]))
        return "is there twice"
    path.write_text(header)
    return "no rows"


def damage_json(path: Path, kind: str) -> str:
    text = path.read_text()
    damaged, expected = {
        "cut": (text[: len(text) // 2], "not readable JSON"),
        "column": ('"text"', "holds a JSON str"),
        "empty": ("[]", "empty|no list|holds a JSON list"),
        "twice": ("[[1]]", "holds a JSON list|no image_name|names no image"),
    }[kind]
    path.write_text(damaged)
    return expected


@pytest.mark.parametrize("kind", ["cut", "column", "empty", "twice"])
@pytest.mark.parametrize("name", sorted(SOURCES))
def test_each_damaged_table_is_named(name: str, kind: str, tmp_path: Path) -> None:
    if name == "rsna" and kind == "twice":
        pytest.skip("its tables have a row for each box")
    LAYOUTS[name](tmp_path / "whole")
    files = [path.name for path in (tmp_path / "whole").glob("*.*")]
    for file in files:
        if Path(file).suffix not in (".csv", ".json"):
            continue
        root = tmp_path / file
        LAYOUTS[name](root)
        expected = damage(root / file, kind)
        with pytest.raises(UserError, match=expected) as refused:
            read(name, root)
        assert str(root / file) in str(refused.value)


@pytest.mark.parametrize("row", ["x,y", "," * 40])
def test_ragged_rows_are_named(row: str, tmp_path: Path) -> None:
    rsna(tmp_path)
    with (tmp_path / "stage_2_train_labels.csv").open("a") as file:
        file.write(row + "\n")
    with pytest.raises(UserError, match=r"stage_2_train_labels\.csv, row 6: .* fields under 6"):
        read("rsna", tmp_path)


def test_a_column_twice_and_an_open_quote_are_named(tmp_path: Path) -> None:
    rsna(tmp_path)
    path = tmp_path / "stage_2_train_labels.csv"
    whole = path.read_text()
    path.write_text(whole.replace("Target", "x", 1))
    with pytest.raises(UserError, match="column 'x' twice"):
        read("rsna", tmp_path)
    path.write_text(whole + '"d,,,,,0')
    with pytest.raises(UserError, match="not a readable table"):
        read("rsna", tmp_path)
