"""A dataset of your own: images, and one table that says what belongs to them.

    ROOT/studies.csv (or .csv.gz, .jsonl)     one row for each image
    ROOT/…                                    the images that the table names

Columns, of which only `image` must be there:

    image       path under ROOT
    study       rows that share it are images of one study (default: the path without its ending)
    patient     default: the study
    split       train, val or test (default: 70 / 10 / 20 by hash of the patient)
    view        as in a DICOM header, such as PA, AP or LATERAL
    report      the whole report; without headings it counts as findings
    findings, impression    sections, if they are known (default: those of the report)
    labels      `edema=1; pneumonia=0; mass=-1`, or in JSON an object
    sex, age, ethnicity, scanner    by which results are broken down; age in years

Text and labels of a study stand on any of its rows; where several have them, they must agree.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from mavilt_pl.data.records import SPLITS, Image, Label, Split, Study
from mavilt_pl.data.report_sections import sections
from mavilt_pl.data.sources import Reject
from mavilt_pl.data.sources.demographics import ATTRIBUTES, known, parse_age, parse_sex
from mavilt_pl.data.sources.fields import hash_split, parse_labels, parse_view, path_inside
from mavilt_pl.data.sources.tables import find_table, read_json_lines, read_table
from mavilt_pl.errors import Rejected, UserError

TABLE = "studies"
JSON_LINES = "studies.jsonl"
COLUMNS = (
    "image",
    "study",
    "patient",
    "split",
    "view",
    "report",
    "findings",
    "impression",
    "labels",
    *ATTRIBUTES,
)
# Of a study, on whichever of its rows it stands.
SHARED = ("patient", "split", "report", "findings", "impression", "labels", *ATTRIBUTES)
# Words for the values that the tables of MIMIC-CXR-JPG and CheXpert write as numbers.
LABEL_WORDS = {"present": "1", "absent": "0", "uncertain": "-1"}


def read(root: Path, reject: Reject) -> Iterator[Study]:
    """Yield the studies in the order in which the table names them first.

    Args:
        root: the folder with the table.
        reject: called for everything that is not yielded.

    Raises:
        UserError: there is no table, or it is damaged.
    """
    path, rows = _read_rows(root)
    # A dict keeps the order in which studies are named first.
    by_study: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        name = row.get("study") or _without_ending(row.get("image", ""))
        by_study.setdefault(name, []).append(row)
    for name, group in by_study.items():
        try:
            study = _study(root, name, group)
        except Rejected as reason:
            reject(name, str(path), "read", str(reason))
            continue
        yield study


def _read_rows(root: Path) -> tuple[Path, list[dict[str, str]]]:
    """The table's path, and its rows with every value as a text."""
    table, lines = find_table(root, TABLE), root / JSON_LINES
    # Which of two is the current one, nobody can say for the user.
    if table is not None and lines.exists():
        raise UserError(f"{root} holds {table.name} and {JSON_LINES}; expected one of them")
    if table is not None:
        rows = read_table(table, ("image",), key=("image",))
        _check_columns(table, [str(name) for name in rows.columns])
        return table, cast("list[dict[str, str]]", rows.to_dict("records"))
    if not lines.exists():
        raise UserError(
            f"{root}: no {TABLE}.csv, {TABLE}.csv.gz or {JSON_LINES}; expected a table with the "
            f"column image, and what there is of {', '.join(COLUMNS[1:])}"
        )
    return lines, _read_json_lines(lines)


def _check_columns(path: Path, names: list[str]) -> None:
    unknown = [name for name in names if name not in COLUMNS]
    # A misspelt column would otherwise be lost without a word.
    if unknown:
        raise UserError(
            f"{path} has a column {unknown[0]!r}; expected columns among {', '.join(COLUMNS)}"
        )


def _read_json_lines(path: Path) -> list[dict[str, str]]:
    rows: list[dict[str, str]] = []
    images: set[str] = set()
    for number, row in read_json_lines(path, "an object with an image"):
        _check_columns(path, list(row))
        texts = {key: _as_text(value) for key, value in row.items()}
        image = texts.get("image", "")
        # The same image under two studies would leak between splits.
        if image in images:
            raise UserError(f"{path}, line {number}: image {image} is there twice; expected once")
        images.add(image)
        rows.append(texts)
    if not rows:
        raise UserError(f"{path} has no rows: the table is empty")
    return rows


def _without_ending(file: str) -> str:
    """A file's name without what follows the last dot of its last part.

    >>> _without_ending("a.b/1.png"), _without_ending("a.b/1")
    ('a.b/1', 'a.b/1')
    """
    return re.sub(r"\.[^./]*$", "", file)


def _as_text(value: Any) -> str:
    """A value of JSON as a cell of a table."""
    if value is None:
        return ""
    if isinstance(value, dict):
        # As a cell of a CSV has them, so that both are read by one function.
        return "; ".join(f"{key}={item}" for key, item in value.items())
    return str(value)


def _study(root: Path, name: str, group: list[dict[str, str]]) -> Study:
    """The study of one group of rows; each row is an image."""
    # From whichever rows have them: people fill in the first, the last or each.
    shared = {column: _shared(group, column) for column in SHARED}
    # Without a patient each study is one: nothing says which belong together.
    patient, split = shared["patient"] or name, shared["split"]
    if split and split not in SPLITS:
        raise Rejected(f"split {split!r}; expected one of {', '.join(SPLITS)}: correct the table")
    images = []
    for row in group:
        file = row.get("image", "").strip()
        # An empty path would name the folder itself.
        if not file:
            raise Rejected("a row without an image; expected its path in the dataset's folder")
        view = parse_view(row.get("view", ""))
        images.append(Image(path_inside(root, file), view, _without_ending(file)))
    # Sections of their own columns take precedence over those found in the text.
    of_report = sections(shared["report"])
    if not of_report["findings"] and not of_report["impression"]:
        of_report["findings"] = of_report["whole"]
    return Study(
        source="table",
        patient=patient,
        study=name,
        # By the patient, so that all studies of a patient have the same split.
        split=cast(Split, split) if split else hash_split("table", patient),
        images=tuple(images),
        findings=shared["findings"] or of_report["findings"],
        impression=shared["impression"] or of_report["impression"],
        report=of_report["whole"],
        labels=_labels(shared["labels"]),
        attributes=known(
            sex=parse_sex(shared["sex"]),
            age=parse_age(shared["age"]),
            ethnicity=shared["ethnicity"],
            scanner=shared["scanner"],
        ),
    )


def _shared(group: list[dict[str, str]], column: str) -> str:
    """The value of a study's rows, any of which may be blank."""
    # Blank says nothing, so it contradicts nothing.
    values = {row.get(column, "").strip() for row in group} - {""}
    if len(values) > 1:
        raise Rejected(f"its rows differ in {column}; expected one value a study: correct them")
    return values.pop() if values else ""


def _labels(text: str) -> dict[str, Label]:
    """Labels such as `edema=1; mass=uncertain`."""
    row = {}
    for part in filter(None, (part.strip() for part in text.split(";"))):
        name, _, value = (half.strip() for half in part.partition("="))
        row[name] = LABEL_WORDS.get(value.lower(), value)
    return parse_labels(row, list(row))
