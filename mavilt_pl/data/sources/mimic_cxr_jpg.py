"""MIMIC-CXR-JPG 2.x, with the reports of MIMIC-CXR (unpacked, or mimic-cxr-reports.zip)."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

from mavilt_pl.data.report import sections
from mavilt_pl.data.sources import Reject, table
from mavilt_pl.data.study import DataError, Image, Label, Split, Study, View

SPLIT: dict[str, Split] = {"train": "train", "validate": "val", "test": "test"}
LABEL: dict[str, Label] = {
    "1.0": "present",
    "1": "present",
    "0.0": "absent",
    "0": "absent",
    "-1.0": "uncertain",
    "-1": "uncertain",
}
VIEW: dict[str, View] = {"PA": "PA", "AP": "AP", "LATERAL": "LATERAL", "LL": "LATERAL", "": "UNKNOWN"}


def _report_reader(root: Path, reports: str | None) -> Callable[[str], str | None]:
    """A function from `files/p10/p…/s….txt` to its text, or None where there is none."""
    place = Path(reports) if reports else root
    archive = place if place.suffix == ".zip" else next((p for p in (place / "mimic-cxr-reports.zip", place.parent / "mimic-cxr-reports.zip") if p.exists()), None)  # fmt: skip
    if reports and not place.exists():
        raise DataError(
            f"--reports {reports} does not exist; expected mimic-cxr-reports.zip or the folder that holds files/"
        )
    if archive is not None and archive.exists():
        opened = zipfile.ZipFile(archive)
        names = set(opened.namelist())
        return lambda name: opened.read(name).decode("utf-8", "replace") if name in names else None

    def read(name: str) -> str | None:
        path = place / name
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else None

    return read


def read(root: Path, reject: Reject, reports: str | None = None, labels: str = "chexpert") -> Iterator[Study]:
    """Studies in the order of the split table.

    `reports` is mimic-cxr-reports.zip or the folder that holds `files/`; by default it is looked for in and beside
    `root`. `labels` is chexpert or negbio. A study without a report is kept (its images train the tokenizer).
    """
    split = table(root, "mimic-cxr-2.0.0-split", ("dicom_id", "study_id", "subject_id", "split"))
    metadata = table(root, "mimic-cxr-2.0.0-metadata", ("dicom_id", "ViewPosition"))
    label_table = table(root, f"mimic-cxr-2.0.0-{labels}", ("subject_id", "study_id"))
    if split.empty:
        raise DataError(f"{root}/mimic-cxr-2.0.0-split.csv.gz has no rows: the dataset is empty")
    doubled = split["dicom_id"][split["dicom_id"].duplicated()]
    if len(doubled):
        raise DataError(
            f"{root}/mimic-cxr-2.0.0-split.csv.gz names dicom_id {doubled.iloc[0]} twice: download the table again"
        )
    views = dict(zip(metadata["dicom_id"], metadata["ViewPosition"]))
    names = [column for column in label_table.columns if column not in ("subject_id", "study_id")]
    known = {row["study_id"]: row for row in label_table.to_dict("records")}
    report = _report_reader(root, reports)
    for (subject, study), rows in split.groupby(["subject_id", "study_id"], sort=False):
        folder = f"files/p{subject[:2]}/p{subject}"
        wrong = [s for s in rows["split"].unique() if s not in SPLIT]
        if wrong or rows["split"].nunique() != 1:
            reject(
                study,
                "mimic-cxr-2.0.0-split",
                "read",
                f"split {'/'.join(rows['split'].unique())}; expected one of {', '.join(SPLIT)}",
            )
            continue
        if not (subject.isalnum() and study.isalnum() and rows["dicom_id"].str.fullmatch(r"[\w.-]+").all()):
            reject(study, "mimic-cxr-2.0.0-split", "read", "an identifier that is not letters, digits, dots and dashes")
            continue
        text = report(f"{folder}/s{study}.txt")
        parts = sections(text) if text else {"findings": "", "impression": ""}
        found = known.get(study, {})
        yield Study(
            source="mimic-cxr",
            patient=subject,
            study=study,
            split=SPLIT[rows["split"].iloc[0]],
            images=tuple(
                Image(root / folder / f"s{study}" / f"{d}.jpg", VIEW.get(views.get(d, "").upper(), "UNKNOWN"), d)
                for d in rows["dicom_id"]
            ),
            findings=parts["findings"],
            impression=parts["impression"],
            labels={name.lower(): LABEL[found[name]] for name in names if found.get(name) in LABEL},
        )
