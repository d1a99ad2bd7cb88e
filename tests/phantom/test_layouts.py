"""Every layout on disk: the dataset's own names, columns and pixel formats, decoded by the one
decoder.
"""

from __future__ import annotations

import csv
import gzip
import json
import zipfile
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.pixels import get_encoder
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless, RLELossless

from mavilt_pl.cli import main
from mavilt_pl.data.radiograph import read_radiograph
from mavilt_pl.phantom.dicom import GREY, dicom, variety, writable
from mavilt_pl.phantom.mimic import CHEXPERT, METADATA, _draw, _tasks


def phantom(layout: str, out: Path, *options: str) -> Path:
    assert main(["phantom", layout, str(out), "--size", "40", "--workers", "1", *options]) == 0
    return out


def table(path: Path) -> list[dict[str, str]]:
    data = path.read_bytes()
    return list(
        csv.DictReader(
            (gzip.decompress(data) if path.suffix == ".gz" else data).decode().splitlines()
        )
    )


@pytest.fixture(scope="module")
def jpg(tmp_path_factory: pytest.TempPathFactory) -> Path:
    options = ("--studies", "12", "--laterals", "0.5", "--validate", "2", "--test", "3")
    return phantom("mimic", tmp_path_factory.mktemp("jpg") / "out", *options)


@pytest.fixture(scope="module")
def dcm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    options = ("--studies", "12", "--laterals", "0.5", "--validate", "2", "--test", "3")
    return phantom("mimic-dicom", tmp_path_factory.mktemp("dcm") / "out", *options)


def test_mimic_cxr_jpg_has_its_tables(jpg: Path) -> None:
    metadata, split = (
        table(jpg / f"mimic-cxr-2.0.0-{name}.csv.gz") for name in ("metadata", "split")
    )
    assert set(metadata[0]) == set(METADATA) and len(metadata) == len(split) > 12
    assert all(value for row in metadata for value in row.values())
    views = [row["ViewPosition"] for row in metadata]
    assert views.count("LATERAL") == len(metadata) - 12 and {"PA", "AP"} < set(views)
    for name in ("chexpert", "negbio"):
        assert set(table(jpg / f"mimic-cxr-2.0.0-{name}.csv.gz")[0]) == {
            "subject_id",
            "study_id",
            *CHEXPERT,
        }
    tested = table(jpg / "mimic-cxr-2.1.0-test-set-labeled.csv")
    assert set(tested[0]) == {"study_id", *CHEXPERT}
    assert {row["study_id"] for row in tested} == {
        row["study_id"] for row in split if row["split"] == "test"
    }


def test_laterals_change_neither_the_frontal_images_nor_the_words(
    jpg: Path, tmp_path: Path
) -> None:
    alone = phantom("mimic", tmp_path / "out", "--studies", "12", "--validate", "2", "--test", "3")
    images = {path.relative_to(alone) for path in alone.rglob("*.jpg")}
    assert len(images) == 12 and all(
        (jpg / path).read_bytes() == (alone / path).read_bytes() for path in images
    )
    for path in alone.rglob("s*.txt"):
        words = [
            text.read_text().split("FINDINGS:")[1] for text in (path, jpg / path.relative_to(alone))
        ]
        assert words[0] == words[1]


def test_mimic_cxr_dicom_shows_the_same_pictures_as_mimic_cxr_jpg(jpg: Path, dcm: Path) -> None:
    records = table(dcm / "cxr-record-list.csv.gz")
    pictures = {path.stem: path for path in jpg.rglob("*.jpg")}
    assert {row["dicom_id"] for row in records} == set(pictures)
    tasks = _tasks(dcm, 12, 40, 0, 2, 3, 0.5, "dicom")
    images = {name: image for task in tasks for name, _, image in _draw(task)[0]}
    seen = set()
    for row in records:
        path = dcm / row["path"]
        header = pydicom.dcmread(path, stop_before_pixels=True)
        assert (header.BitsStored, header.PatientID, header.StudyID) == (
            12,
            row["subject_id"],
            row["study_id"],
        )
        seen.add((header.PhotometricInterpretation, header.file_meta.TransferSyntaxUID))
        rendered = images[row["dicom_id"]]
        expected = (rendered - rendered.min()) / (rendered.max() - rendered.min())
        off = np.abs(read_radiograph(path) - expected)
        off[0, [0, -1]] = 0  # the two damaged detector elements
        assert off.max() < 0.002, header.file_meta.TransferSyntaxUID.name
        assert np.abs(read_radiograph(pictures[row["dicom_id"]]) - rendered).max() < 0.08  # JPEG
    assert {one for one, _ in seen} == {"MONOCHROME1", "MONOCHROME2"}
    assert {syntax for _, syntax in seen} == set(writable()) >= {RLELossless}


def test_mimic_cxr_dicom_lists_its_reports(jpg: Path, dcm: Path) -> None:
    with zipfile.ZipFile(dcm / "mimic-cxr-reports.zip") as archive:
        reports = {name: archive.read(name).decode() for name in archive.namelist()}
    assert [row["path"] for row in table(dcm / "cxr-study-list.csv.gz")] == list(reports)
    assert reports == {name: (jpg / name).read_text() for name in reports} and not list(
        dcm.rglob("*.txt")
    )


@pytest.mark.parametrize("number", range(6))
def test_a_dicom_variety_is_wrong_without_its_grey_scale_transformation(
    number: int, tmp_path: Path
) -> None:
    """Each variety comes back as the image it was made from, and does not once its window or VOI
    LUT is taken away.
    """
    image = np.linspace(0, 1, 64 * 48, dtype=np.float32).reshape(64, 48) ** 2
    kind = variety(number)
    path = tmp_path / "a.dcm"
    path.write_bytes(dicom(image, kind, 1, 2, "name", "PA", 21000101))
    inner = (slice(1, None), slice(None))  # the damaged elements are in the first row
    assert np.abs(read_radiograph(path) - image)[inner].max() < 0.002
    data = pydicom.dcmread(path)
    for keyword in ("WindowCenter", "WindowWidth", "VOILUTSequence"):
        if keyword in data:
            delattr(data, keyword)
    data.save_as(path)
    assert np.abs(read_radiograph(path) - image)[inner].max() > 0.05


def test_varieties_cover_what_hospitals_send() -> None:
    kinds = [variety(number) for number in range(2 * len(GREY) * len(writable()))]
    assert {kind.photometric for kind in kinds[:8]} == {"MONOCHROME1", "MONOCHROME2"}
    assert {kind.grey for kind in kinds[:8]} == set(GREY) and {
        kind.syntax for kind in kinds[:8]
    } == set(writable())
    assert len(set(kinds)) == 2 * len(GREY) * len(writable())
    assert (JPEGLSLossless in writable()) == get_encoder(JPEGLSLossless).is_available
    assert (JPEG2000Lossless in writable()) == get_encoder(JPEG2000Lossless).is_available


def indiana(layout: str, out: Path, *options: str) -> Path:
    pytest.importorskip("torchxrayvision")
    return phantom(layout, out, "--studies", "10", *options)


def test_the_three_indiana_layouts_show_the_same_pictures(tmp_path: Path) -> None:
    official = indiana("indiana", tmp_path / "o", "--laterals", "1")
    kaggle = indiana("indiana-kaggle", tmp_path / "k")
    pictures = {}
    for path in official.rglob("*.png"):  # CXR10_IM-0002-1001, and once CXR1_1_IM-0001-4001
        study, *_, series = path.stem.split("_")
        pictures[f"{study.removeprefix('CXR')}_{series}"] = path.read_bytes()
    rows = table(kaggle / "indiana_projections.csv")
    folder = kaggle / "images" / "images_normalized"
    copies = {
        row["filename"].removesuffix(".dcm.png"): (folder / row["filename"]).read_bytes()
        for row in rows
    }
    assert pictures == copies and len(copies) > 10
    assert {row["projection"] for row in rows} == {"Frontal", "Lateral"}
    reports = table(kaggle / "indiana_reports.csv")
    assert list(reports[0]) == [
        "uid",
        "MeSH",
        "Problems",
        "image",
        "indication",
        "comparison",
        "findings",
        "impression",
    ]
    assert {row["uid"] for row in reports} == {path.stem for path in official.rglob("*.xml")}

    r2gen = indiana("r2gen", tmp_path / "r")
    groups = json.loads((r2gen / "annotation.json").read_text())
    assert [len(groups[split]) for split in ("train", "val", "test")] == [7, 1, 2]
    texts = {row["findings"] for row in reports}
    for item in (item for group in groups.values() for item in group):
        assert item["image_path"] == [f"{item['id']}/0.png", f"{item['id']}/1.png"]
        number = item["id"].split("_")[0].removeprefix("CXR")
        frontal = (r2gen / "images" / item["image_path"][0]).read_bytes()
        known = [data for name, data in pictures.items() if name.split("_")[0] == number]
        assert frontal in known or not known
        assert read_radiograph(r2gen / "images" / item["image_path"][1]).shape == (40, 40)
    assert texts & {item["report"] for item in groups["train"]}


def test_a_picture_shows_phantoms_above_radiographs(
    jpg: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "beside.png"
    assert main(["phantom", "picture", str(out), "--beside", str(jpg), "--size", "32"]) == 0
    assert read_radiograph(out).shape == (4 * 32, 4 * 32)
    assert main(["phantom", "picture", str(out), "--beside", str(tmp_path / "nothing")]) == 1
    assert "no radiographs found" in capsys.readouterr().err


def test_a_share_of_laterals_is_a_share(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["phantom", "mimic", str(tmp_path / "x"), "--laterals", "2"]) == 1
    assert "from 0 to 1" in capsys.readouterr().err
