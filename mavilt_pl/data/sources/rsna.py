"""RSNA Pneumonia Detection Challenge, stage 2: frontal radiographs of the NIH as DICOM, and who had
an opacity.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mavilt_pl.data.records import Image, Label, Study
from mavilt_pl.data.sources import Reject, find_table, groups, hash_split, inside, read_table, table
from mavilt_pl.errors import Rejected

CLASSES = {
    "lung opacity": "1",
    "normal": "0",
    "no lung opacity / not normal": "0",
}  # class → its Target


def read(root: Path, reject: Reject) -> Iterator[Study]:
    """One study an image, 70 / 10 / 20 by hash; several rows of a patientId are boxes of one image
    and give one study.

    Target is both `pneumonia` and `lung opacity`: the challenge boxed opacities that suggest
    pneumonia. The detailed classes, where their table lies in `root`, tell normal images from other
    abnormal ones.
    """
    rows = table(root, "stage_2_train_labels", ("patientId", "Target"))
    classes: dict[str, set[str]] = {}
    if path := find_table(root, "stage_2_detailed_class_info"):
        for group in groups(read_table(path, ("patientId", "class")), "patientId"):
            classes[group[0]["patientId"]] = {row["class"].strip().lower() for row in group}
    for boxes in groups(rows, "patientId"):
        patient, targets = boxes[0]["patientId"], {box["Target"] for box in boxes}
        named = classes.get(patient, set())
        try:
            if targets not in ({"0"}, {"1"}):
                raise Rejected(
                    f"Target {' and '.join(sorted(targets))}; expected 0 or 1, the same in all rows"
                )
            if named and ({CLASSES.get(name) for name in named} != targets or len(named) > 1):
                raise Rejected(
                    f"class {' and '.join(sorted(named))} with Target {targets.pop()}: correct the "
                    f"tables"
                )
            file = inside(root / "stage_2_train_images", f"{patient}.dcm")
        except Rejected as reason:
            reject(patient, f"{patient}.dcm", "read", str(reason))
            continue
        opacity: Label = "present" if targets == {"1"} else "absent"
        labels: dict[str, Label] = {"pneumonia": opacity, "lung opacity": opacity}
        if named:
            labels["no finding"] = "present" if named == {"normal"} else "absent"
        yield Study(
            "rsna",
            patient,
            patient,
            hash_split("rsna", patient),
            (Image(file, "FRONTAL", patient),),
            labels=labels,
        )
