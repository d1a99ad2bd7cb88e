"""NIH ChestX-ray14: images and labels, no reports."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from mavilt_pl.data.records import Image, Label, Split, Study
from mavilt_pl.data.sources import Reject
from mavilt_pl.data.sources.demographics import known, parse_age, parse_sex
from mavilt_pl.data.sources.fields import hash_split, parse_view, path_inside
from mavilt_pl.data.sources.tables import find_table, load_table
from mavilt_pl.errors import Rejected, UserError

# The finding's name in the table → its name here, if they differ.
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
# The second is the name of the release of 2017, whose rows are the same.
TABLES = ("Data_Entry_2017_v2020", "Data_Entry_2017")
COLUMNS = ("Image Index", "Finding Labels", "Patient ID", "View Position")
VAL_SHARE = 0.125  # of the patients outside the official test set


def read(root: Path, reject: Reject) -> Iterator[Study]:
    """Yield one study an image.

    With the official lists, test is the official test and an eighth of the other patients is val.
    Without them, patients are split 70 / 10 / 20 by hash.

    Args:
        root: the folder with the table, the lists and the image folders.
        reject: called for everything that is not yielded.

    Raises:
        UserError: a table or list is missing or damaged, or there are no images.
    """
    table = TABLES[0] if find_table(root, TABLES[0]) else TABLES[1]
    if find_table(root, table) is None:
        # So that a missing table is named by its present name.
        table = TABLES[0]
    rows = load_table(root, table, COLUMNS, key=("Image Index",))
    test, train = _read_list(root, "test_list.txt"), _read_list(root, "train_val_list.txt")
    files = _find_images(root)
    for row in rows.to_dict("records"):
        name, patient = row["Image Index"], row["Patient ID"]
        key = Path(name).stem
        try:
            path = files.get(name) or path_inside(root / "images", name)
            labels = _labels(row)
            # With both lists there, a missing image means that a list is damaged.
            if test and train and name not in test and name not in train:
                raise Rejected(
                    f"{name} is in neither test_list.txt nor train_val_list.txt: download the "
                    "lists again"
                )
        except Rejected as reason:
            reject(key, name, "read", str(reason))
            continue
        # Either list is enough: what is not in the test list trains or validates.
        # By patient, not by image: many patients have several images.
        split: Split = hash_split("nih", patient)
        if name in test:
            split = "test"
        elif test or train:
            split = hash_split("nih", patient, test=0, val=VAL_SHARE)
        image = Image(path, parse_view(row["View Position"]), key)
        # The releases name the column differently, and a table of one's own may lack it.
        sex = row.get("Patient Sex", row.get("Patient Gender", ""))
        age = row.get("Patient Age", "")
        attributes = known(sex=parse_sex(sex), age=parse_age(age))
        yield Study("nih", patient, key, split, (image,), labels=labels, attributes=attributes)


def _read_list(root: Path, name: str) -> set[str]:
    """File names of an official list; empty if it is not there."""
    path = root / name
    try:
        return set(path.read_text(encoding="utf-8-sig").split()) if path.exists() else set()
    except (OSError, UnicodeError) as error:
        raise UserError(
            f"{path} is not a readable list of file names ({error}): download it again"
        ) from None


def _find_images(root: Path) -> dict[str, Path]:
    files = {}
    for folder in sorted(root.glob("images*")):
        # Twelve folders in the official download; a name is in one of them only.
        for path in folder.rglob("*.png"):
            files[path.name] = path
    if not files:
        raise UserError(
            f"{root}: no *.png under images*/; expected images/ or images_001/images/ … of the "
            "official layout"
        )
    return files


def _labels(row: Mapping[str, str]) -> dict[str, Label]:
    found = {label.strip().lower() for label in row["Finding Labels"].split("|")}
    unknown = found - {*FINDINGS, "no finding"}
    if unknown:
        raise Rejected(
            f"Finding Labels {', '.join(sorted(unknown))!r}; expected those of ChestX-ray14, "
            "joined by |"
        )
    # Two of the dataset's findings may share a name here; present in one is present.
    labels: dict[str, Label] = {"no finding": "absent"}
    for name in FINDINGS:
        labels[NAMES.get(name, name)] = "absent"
    for name in found:
        labels[NAMES.get(name, name)] = "present"
    return labels
