"""NIH ChestX-ray14: images and labels, no reports."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mavilt_pl.data.records import Image, Label, Split, Study
from mavilt_pl.data.sources import Reject, hash_split, inside, table, view
from mavilt_pl.errors import Rejected, UserError

# The finding's name in the table → its name here, where they differ.
NAMES = {
    "effusion": "pleural effusion",
    "nodule": "lung lesion",
    "mass": "lung lesion",
    "infiltration": "lung opacity",
    "pleural_thickening": "pleural other",
}
FINDINGS = (
    "atelectasis",
    "cardiomegaly",
    "consolidation",
    "edema",
    "effusion",
    "emphysema",
    "fibrosis",
    "hernia",
    "infiltration",
    "mass",
    "nodule",
    "pleural_thickening",
    "pneumonia",
    "pneumothorax",
)


def _list(root: Path, name: str) -> set[str]:
    path = root / name
    try:
        return set(path.read_text(encoding="utf-8-sig").split()) if path.exists() else set()
    except (OSError, UnicodeError) as error:
        raise UserError(
            f"{path} is not a readable list of file names ({error}): download it again"
        ) from None


def _labels(row: dict[str, str]) -> dict[str, Label]:
    found = {label.strip().lower() for label in row["Finding Labels"].split("|")}
    if unknown := found - {*FINDINGS, "no finding"}:
        raise Rejected(
            f"Finding Labels {', '.join(sorted(unknown))!r}; expected those of ChestX-ray14, "
            f"joined by |"
        )
    labels: dict[str, Label] = {NAMES.get(name, name): "absent" for name in FINDINGS}
    labels |= {NAMES.get(name, name): "present" for name in found}
    return {"no finding": "absent", **labels}


def read(root: Path, reject: Reject) -> Iterator[Study]:
    """One study an image. With the official lists, test is the official test and an eighth of the
    other patients is val; without, 70 / 10 / 20 by patient.
    """
    columns = ("Image Index", "Finding Labels", "Patient ID", "View Position")
    rows = table(root, "Data_Entry_2017_v2020", columns, key=("Image Index",))
    test, train = _list(root, "test_list.txt"), _list(root, "train_val_list.txt")
    files = {
        path.name: path for folder in sorted(root.glob("images*")) for path in folder.rglob("*.png")
    }
    if not files:
        raise UserError(
            f"{root}: no *.png under images*/; expected images/ or images_001/images/ … of the "
            f"official layout"
        )
    for row in rows.to_dict("records"):
        name, patient = row["Image Index"], row["Patient ID"]
        try:
            path = files.get(name) or inside(root / "images", name)
            labels = _labels(row)
            if test and train and name not in test and name not in train:
                raise Rejected(
                    f"{name} is in neither test_list.txt nor train_val_list.txt: download the "
                    f"lists again"
                )
        except Rejected as reason:
            reject(Path(name).stem, name, "read", str(reason))
            continue
        split: Split = hash_split("nih", patient)
        if test or train:
            split = "test" if name in test else hash_split("nih", patient, 0, 0.125)
        image = Image(path, view(row["View Position"]), Path(name).stem)
        yield Study("nih", patient, Path(name).stem, split, (image,), labels=labels)
