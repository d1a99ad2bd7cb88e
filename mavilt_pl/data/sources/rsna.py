"""RSNA Pneumonia Detection Challenge, stage 2: frontal radiographs of the NIH as DICOM."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mavilt_pl.data.dicom import header_values
from mavilt_pl.data.links import check_link
from mavilt_pl.data.records import Image, Label, Study
from mavilt_pl.data.sources import Reject
from mavilt_pl.data.sources.demographics import known, parse_age, parse_sex
from mavilt_pl.data.sources.fields import hash_split, path_inside
from mavilt_pl.data.sources.tables import find_table, group_rows, load_table, read_table
from mavilt_pl.errors import Rejected

# DICOM elements of the images, for their attributes.
HEADER = ("PatientSex", "PatientAge", "ManufacturerModelName")
# Detailed class → the Target that belongs to it.
CLASSES = {"lung opacity": "1", "normal": "0", "no lung opacity / not normal": "0"}


def read(root: Path, reject: Reject, follow_links: bool = False) -> Iterator[Study]:
    """Yield one study an image, split 70 / 10 / 20 by hash.

    Several rows of a patientId are boxes of one image and give one study. Target is both
    `pneumonia` and `lung opacity`: the challenge boxed opacities that suggest pneumonia. The table
    of detailed classes, if it lies in `root`, separates normal images from other abnormal ones.

    Args:
        root: the folder with the tables and stage_2_train_images/.
        reject: called for everything that is not yielded.
        follow_links: read also the headers of images that lie elsewhere.

    Raises:
        UserError: a table is missing or damaged.
    """
    rows = load_table(root, "stage_2_train_labels", ("patientId", "Target"))
    classes = _read_classes(root)
    for boxes in group_rows(rows, "patientId"):
        patient = boxes[0]["patientId"]
        targets = {box["Target"] for box in boxes}
        try:
            labels = _labels(targets, classes.get(patient, set()))
            path = path_inside(root / "stage_2_train_images", f"{patient}.dcm")
        except Rejected as reason:
            reject(patient, f"{patient}.dcm", "read", str(reason))
            continue
        # patientId names one image; the challenge does not say which images share a patient.
        image = Image(path, "FRONTAL", patient)
        split = hash_split("rsna", patient)
        attributes = _attributes(path, None if follow_links else root.resolve())
        yield Study("rsna", patient, patient, split, (image,), labels=labels, attributes=attributes)


def _attributes(path: Path, allowed: Path | None) -> dict[str, str]:
    """Sex, age and scanner in the header of an image, which lies in `allowed`."""
    try:
        if allowed is not None:
            check_link(path, allowed)
        # What is not there, or is no file, is rejected when it is decoded.
        if not path.is_file():
            return {}
        header = header_values(path, HEADER)
    except (OSError, Rejected):
        return {}
    sex, age, scanner = (header[keyword] for keyword in HEADER)
    return known(sex=parse_sex(sex), age=parse_age(age), scanner=scanner)


def _read_classes(root: Path) -> dict[str, set[str]]:
    """Detailed classes by patientId; empty without the table."""
    # Optional: without it no image is labelled `no finding`.
    path = find_table(root, "stage_2_detailed_class_info")
    if path is None:
        return {}
    classes = {}
    for group in group_rows(read_table(path, ("patientId", "class")), "patientId"):
        classes[group[0]["patientId"]] = {row["class"].strip().lower() for row in group}
    return classes


def _labels(targets: set[str], classes: set[str]) -> dict[str, Label]:
    """Labels of one image, from all its rows in both tables."""
    if targets not in ({"0"}, {"1"}):
        raise Rejected(
            f"Target {' and '.join(sorted(targets))}; expected 0 or 1, the same in all rows"
        )
    # Checked above: there is exactly one.
    (target,) = targets
    if classes and (len(classes) > 1 or {CLASSES.get(name) for name in classes} != targets):
        raise Rejected(
            f"class {' and '.join(sorted(classes))} with Target {target}: correct the tables"
        )
    opacity: Label = "present" if target == "1" else "absent"
    labels: dict[str, Label] = {"pneumonia": opacity, "lung opacity": opacity}
    # Target 0 alone does not mean normal.
    if classes:
        labels["no finding"] = "present" if classes == {"normal"} else "absent"
    return labels
