"""MIMIC-CXR-JPG 2.x, with the reports of MIMIC-CXR (unpacked, or mimic-cxr-reports.zip)."""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pandas as pd

from mavilt_pl.data.records import Image, Split, Study
from mavilt_pl.data.report_sections import sections
from mavilt_pl.data.sources import Reject, certainties, groups, inside, table, view
from mavilt_pl.errors import Rejected, UserError

SPLIT: dict[str, Split] = {"train": "train", "validate": "val", "test": "test"}
LABELLERS = ("chexpert", "negbio")
_IDENTIFIER = re.compile(r"(?!\.+$)[\w.-]+", re.ASCII)  # of what folder and file names are made
Labels = Mapping[tuple[str, str], dict[str, str]]  # (subject_id, study_id) → a row's label columns


def report_reader(root: Path, reports: str | None) -> Callable[[str], str]:
    """A function from `files/p10/p…/s….txt` to its text, "" where there is none.

    `reports` is mimic-cxr-reports.zip or the folder that holds it or `files/`; by default it is
    looked for in `root` and beside it. Raises `UserError` where `reports` names nothing, and for a
    zip file that cannot be opened.
    """
    place = Path(reports) if reports else root
    if not place.exists():
        raise UserError(
            f"--reports {reports} does not exist; expected mimic-cxr-reports.zip or the folder "
            f"that holds files/"
        )
    zips = (
        [place]
        if place.suffix == ".zip"
        else [p / "mimic-cxr-reports.zip" for p in (place, place.parent)]
    )
    archive = next((path for path in zips if path.exists()), None)
    if archive is None:

        def read_file(name: str) -> str:
            path = inside(place, name)
            return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""

        return read_file
    try:
        opened = zipfile.ZipFile(archive)
    except (OSError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{archive} is not a readable zip file ({error}): download it again"
        ) from None
    names = set(opened.namelist())

    def read_member(name: str) -> str:
        try:
            return opened.read(name).decode("utf-8", "replace") if name in names else ""
        except (
            OSError,
            EOFError,
            zipfile.BadZipFile,
            zlib.error,
            NotImplementedError,
            RuntimeError,
        ) as error:
            raise Rejected(
                f"{archive}: report {name} is damaged ({error}): download it again"
            ) from None

    return read_member


def view_table(root: Path) -> dict[str, tuple[str, ...]]:
    """dicom_id → the codes that tell its view: ViewPosition, then the name of the view code where
    that is blank.
    """
    rows = table(root, "mimic-cxr-2.0.0-metadata", ("dicom_id", "ViewPosition"), key=("dicom_id",))
    second = rows.get("ViewCodeSequence_CodeMeaning", rows["ViewPosition"])
    return dict(zip(rows["dicom_id"], zip(rows["ViewPosition"], second)))


def split_table(root: Path) -> pd.DataFrame:
    return table(
        root,
        "mimic-cxr-2.0.0-split",
        ("dicom_id", "study_id", "subject_id", "split"),
        key=("dicom_id",),
    )


def label_table(root: Path, labels: str) -> Labels:
    """Raises `UserError` where `labels` is not one of the release's two labellers."""
    if labels not in LABELLERS:
        raise UserError(f"option labels is {labels!r}; expected one of {', '.join(LABELLERS)}")
    key = ["subject_id", "study_id"]
    rows = table(root, f"mimic-cxr-2.0.0-{labels}", key, key=key)
    names = rows.columns.difference(key, sort=False)
    return dict(zip(zip(rows["subject_id"], rows["study_id"]), rows[names].to_dict("records")))  # type: ignore[arg-type]


def folder(subject: str) -> str:
    return f"files/p{subject[:2]}/p{subject}"


def studies(
    rows: pd.DataFrame,
    root: Path,
    reject: Reject,
    *,
    text: Callable[[str], str],
    report_paths: Mapping[str, str],
    views: Mapping[str, tuple[str, ...]],
    labels: Labels,
) -> Iterator[Study]:
    """Studies in the order of `rows`, which name an image each: dicom_id, study_id, subject_id,
    split, path.
    """
    for group in groups(rows, "subject_id", "study_id"):
        subject, study = group[0]["subject_id"], group[0]["study_id"]
        try:
            split = "/".join(dict.fromkeys(row["split"] for row in group))
            if split not in SPLIT:
                raise Rejected(
                    f"split {split!r}; expected one of {', '.join(SPLIT)}: correct the split table"
                )
            wrong = [
                name
                for name in (subject, study, *(r["dicom_id"] for r in group))
                if not _IDENTIFIER.fullmatch(name)
            ]
            if wrong:
                raise Rejected(
                    f"identifier {wrong[0]!r}; expected letters, digits, dots and dashes: correct "
                    f"the table"
                )
            images = [
                Image(
                    inside(root, row["path"]),
                    view(*views.get(row["dicom_id"], ())),
                    row["dicom_id"],
                )
                for row in group
            ]
            report = text(report_paths.get(study, f"{folder(subject)}/s{study}.txt"))
            said = labels.get((subject, study), {})
            found = certainties(said, list(said))
        except Rejected as reason:
            reject(study, group[0]["path"], "read", str(reason))
            continue
        parts = sections(report)
        yield Study(
            source="mimic-cxr",
            patient=subject,
            study=study,
            split=SPLIT[split],
            images=tuple(images),
            findings=parts["findings"],
            impression=parts["impression"],
            report=parts["whole"],
            labels=found,
        )


def read(
    root: Path, reject: Reject, reports: str | None = None, labels: str = "chexpert"
) -> Iterator[Study]:
    """Studies in the order of the split table.

    `reports` is mimic-cxr-reports.zip or the folder that holds `files/`; by default it is looked
    for in and beside `root`. `labels` is chexpert or negbio. A study without a report is kept (its
    images train the tokenizer).
    """
    rows = split_table(root)
    names = zip(rows["subject_id"], rows["study_id"], rows["dicom_id"])
    rows["path"] = [f"{folder(subject)}/s{study}/{dicom}.jpg" for subject, study, dicom in names]
    yield from studies(
        rows,
        root,
        reject,
        text=report_reader(root, reports),
        report_paths={},
        views=view_table(root),
        labels=label_table(root, labels),
    )
