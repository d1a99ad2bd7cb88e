"""Readers on the datasets' own layouts, and what they say of damage."""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path

import pandas as pd
import pytest

from mavilt_pl.data.sources import hash_split, read_source
from mavilt_pl.data.study import DataError, Study


def read(name: str, root: Path, **options: object) -> tuple[list[Study], list[tuple]]:
    rejects: list[tuple] = []
    return list(read_source(name, root, lambda *why: rejects.append(why), **options)), rejects


def test_mimic_reads_what_the_phantom_wrote(mimic_root: Path) -> None:
    studies, rejects = read("mimic-cxr-jpg", mimic_root)
    assert len(studies) == 61 and not rejects
    assert [sum(s.split == name for s in studies) for name in ("train", "val", "test")] == [43, 7, 11]
    assert all(
        s.findings and s.impression and s.images[0].path.exists() and s.images[0].view in ("PA", "AP") for s in studies
    )
    splits: dict[str, set[str]] = {}
    for study in studies:
        splits.setdefault(study.patient, set()).add(study.split)
    assert all(len(split) == 1 for split in splits.values())


@pytest.fixture
def copied(mimic_root: Path, tmp_path: Path) -> Path:
    root = tmp_path / "mimic"
    shutil.copytree(mimic_root, root)
    return root


def test_mimic_plain_tables_with_bom_and_other_column_order(copied: Path) -> None:
    before, _ = read("mimic-cxr-jpg", copied)
    for path in list(copied.glob("*.csv.gz")):
        rows = pd.read_csv(path, dtype=str, keep_default_na=False)
        rows[rows.columns[::-1]].to_csv(path.with_suffix(""), index=False, encoding="utf-8-sig", lineterminator="\r\n")
        path.unlink()
    assert read("mimic-cxr-jpg", copied)[0] == before


def test_mimic_zipped_reports(copied: Path) -> None:
    before, _ = read("mimic-cxr-jpg", copied)
    import zipfile

    with zipfile.ZipFile(copied / "mimic-cxr-reports.zip", "w") as archive:
        for path in copied.rglob("*.txt"):
            archive.write(path, path.relative_to(copied))
            path.unlink()
    assert read("mimic-cxr-jpg", copied)[0] == before


def test_mimic_damage_is_named(copied: Path) -> None:
    split = copied / "mimic-cxr-2.0.0-split.csv.gz"
    whole = split.read_bytes()
    split.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"split\.csv\.gz is not a readable table"):
        read("mimic-cxr-jpg", copied)
    split.write_bytes(gzip.compress(b"dicom_id,study_id,split\n1,2,train\n"))
    with pytest.raises(DataError, match="no column subject_id"):
        read("mimic-cxr-jpg", copied)
    split.write_bytes(gzip.compress(b"dicom_id,study_id,subject_id,split\n"))
    with pytest.raises(DataError, match="empty"):
        read("mimic-cxr-jpg", copied)
    split.write_bytes(gzip.compress(b"dicom_id,study_id,subject_id,split\na,2,3,train\na,2,3,train\n"))
    with pytest.raises(DataError, match="twice"):
        read("mimic-cxr-jpg", copied)
    split.write_bytes(gzip.compress(b"dicom_id,study_id,subject_id,split\n../../a,2,3,train\nb,3,4,holdout\n"))
    studies, rejects = read("mimic-cxr-jpg", copied)
    assert not studies and len(rejects) == 2
    split.unlink()
    with pytest.raises(DataError, match="is missing"):
        read("mimic-cxr-jpg", copied)


def test_indiana_counts_are_exact_on_the_real_reports() -> None:
    pytest.importorskip("torchxrayvision")
    from mavilt_pl.phantom.indiana import reports_archive

    studies, rejects = read("indiana", Path("."), reports=str(reports_archive()))
    assert not rejects and len(studies) == 3955
    assert sum(bool(s.findings) for s in studies) == 3425
    assert sum(bool(s.impression) for s in studies) == 3921
    assert sum(bool(s.findings and s.impression) for s in studies) == 3419
    assert sum(not s.findings and not s.impression for s in studies) == 28
    assert sum(len(s.images) for s in studies) == 7470
    assert sum(not s.images for s in studies) == 104
    assert sum(s.labels.get("no finding") == "present" for s in studies) == 1391


def test_indiana_entities_are_not_expanded(tmp_path: Path) -> None:
    folder = tmp_path / "ecgen-radiology"
    folder.mkdir()
    lol = '<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;">]><eCitation><uId id="CXR1"/>&b;</eCitation>'
    (folder / "1.xml").write_text(lol)
    (folder / "2.xml").write_text('<eCitation><uId id="CXR2"/></eCitation>')
    (folder / "3.xml").write_text('<eCitation><uId id="CXR2"/></eCitation>')
    studies, rejects = read("indiana", tmp_path)
    assert [s.study for s in studies] == ["CXR2"]
    assert "EntitiesForbidden" in rejects[0][3] and "second report" in rejects[1][3]


@pytest.mark.real
def test_nih_is_read_whole(real_data: Path) -> None:
    studies, rejects = read("nih", real_data / "nih")
    assert (len(studies), len({s.patient for s in studies}), len(rejects)) == (680, 466, 0)
    splits = {(s.patient, s.split) for s in studies}
    assert len(splits) == 466


def test_hash_split_is_stable_and_proportionate() -> None:
    splits = [hash_split("indiana", str(n)) for n in range(4000)]
    assert splits[:3] == [hash_split("indiana", str(n)) for n in range(3)]
    assert abs(splits.count("test") / 4000 - 0.2) < 0.02 and abs(splits.count("val") / 4000 - 0.1) < 0.02


def test_unknown_source_and_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected one of"):
        read("chest", tmp_path)
    with pytest.raises(DataError, match="not a folder"):
        read("nih", tmp_path / "absent")
