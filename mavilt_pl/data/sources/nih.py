"""NIH ChestX-ray14: images and labels, no reports."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mavilt_pl.data.sources import Reject, hash_split, table
from mavilt_pl.data.study import DataError, Image, Label, Split, Study, View

NAMES = {
    "effusion": "pleural effusion",
    "nodule": "lung lesion",
    "mass": "lung lesion",
    "infiltration": "lung opacity",
    "pleural_thickening": "pleural other",
}
FINDINGS = (
    "Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Effusion", "Emphysema", "Fibrosis", "Hernia",
    "Infiltration", "Mass", "Nodule", "Pleural_Thickening", "Pneumonia", "Pneumothorax",
)  # fmt: skip
VIEW: dict[str, View] = {"PA": "PA", "AP": "AP"}


def _list(root: Path, name: str) -> set[str]:
    path = root / name
    return set(path.read_text(encoding="utf-8-sig").split()) if path.exists() else set()


def read(root: Path, reject: Reject) -> Iterator[Study]:
    """One study an image. With the official lists, test is the official test and an eighth of the other patients is
    val; without, 70 / 10 / 20 by patient."""
    rows = table(root, "Data_Entry_2017_v2020", ("Image Index", "Finding Labels", "Patient ID", "View Position"))
    test, train = _list(root, "test_list.txt"), _list(root, "train_val_list.txt")
    files = {path.name: path for folder in sorted(root.glob("images*")) for path in folder.rglob("*.png")}
    if rows.empty or not files:
        raise DataError(
            f"{root}: {len(rows)} rows in the table and {len(files)} *.png under images*/; expected the official layout"
        )
    for row in rows.to_dict("records"):
        name, patient = row["Image Index"], row["Patient ID"]
        if test or train:
            by_hash: Split = "val" if hash_split("nih", patient, 0, 0.125) == "val" else "train"
            split: Split = "test" if name in test else by_hash
        else:
            split = hash_split("nih", patient)
        found = {NAMES.get(label.lower(), label.lower()) for label in row["Finding Labels"].split("|")}
        labels: dict[str, Label] = {NAMES.get(n.lower(), n.lower()): "absent" for n in FINDINGS}
        labels |= {label: "present" for label in found if label != "no finding"}
        labels["no finding"] = "present" if "no finding" in found else "absent"
        path = files.get(name, root / "images" / Path(name).name)
        image = Image(path, VIEW.get(row["View Position"], "UNKNOWN"), Path(name).stem)
        yield Study("nih", patient, Path(name).stem, split, (image,), labels=labels)
