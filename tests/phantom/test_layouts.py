"""Every layout on disk: the dataset's own names, columns and pixel formats, read by one decoder."""

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
from mavilt_pl.phantom.dicom import GREY, encode_dicom, variety, writable_syntaxes
from mavilt_pl.phantom.mimic import CHEXPERT, METADATA, MimicOptions, render_study, study_tasks

DAMAGED = (0, [0, -1])  # the detector elements that the DICOM files have outside the window


def phantom(layout: str, out: Path, *options: str) -> Path:
    assert main(["phantom", layout, str(out), "--size", "40", "--workers", "1", *options]) == 0
    return out


def table(path: Path) -> list[dict[str, str]]:
    data = path.read_bytes()
    if path.suffix == ".gz":
        data = gzip.decompress(data)
    return list(csv.DictReader(data.decode().splitlines()))


MIMIC_ARGUMENTS = ("--studies", "12", "--validate", "2", "--test", "3")


@pytest.fixture(scope="module")
def jpg(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("jpg") / "out"
    return phantom("mimic", out, "--laterals", "0.5", *MIMIC_ARGUMENTS)


@pytest.fixture(scope="module")
def dcm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dcm") / "out"
    return phantom("mimic-dicom", out, "--laterals", "0.5", *MIMIC_ARGUMENTS)


def test_mimic_cxr_jpg_has_its_tables(jpg: Path) -> None:
    metadata = table(jpg / "mimic-cxr-2.0.0-metadata.csv.gz")
    split = table(jpg / "mimic-cxr-2.0.0-split.csv.gz")
    assert set(metadata[0]) == set(METADATA)
    assert len(metadata) == len(split) > 12
    assert all(value for row in metadata for value in row.values())
    views = [row["ViewPosition"] for row in metadata]
    assert views.count("LATERAL") == len(metadata) - 12
    assert {"PA", "AP"} < set(views)
    for name in ("chexpert", "negbio"):
        labels = table(jpg / f"mimic-cxr-2.0.0-{name}.csv.gz")
        assert set(labels[0]) == {"subject_id", "study_id", *CHEXPERT}
    tested = table(jpg / "mimic-cxr-2.1.0-test-set-labeled.csv")
    assert set(tested[0]) == {"study_id", *CHEXPERT}
    test_studies = {row["study_id"] for row in split if row["split"] == "test"}
    assert {row["study_id"] for row in tested} == test_studies


def test_laterals_change_neither_the_frontal_images_nor_the_words(
    jpg: Path, tmp_path: Path
) -> None:
    alone = phantom("mimic", tmp_path / "out", *MIMIC_ARGUMENTS)
    images = [path.relative_to(alone) for path in alone.rglob("*.jpg")]
    assert len(images) == 12
    for image in images:
        assert (jpg / image).read_bytes() == (alone / image).read_bytes()
    for report in alone.rglob("s*.txt"):
        _, words = report.read_text().split("FINDINGS:")
        _, words_with_lateral = (jpg / report.relative_to(alone)).read_text().split("FINDINGS:")
        assert words == words_with_lateral


def test_mimic_cxr_dicom_shows_the_same_pictures_as_mimic_cxr_jpg(jpg: Path, dcm: Path) -> None:
    records = table(dcm / "cxr-record-list.csv.gz")
    pictures = {path.stem: path for path in jpg.rglob("*.jpg")}
    assert {row["dicom_id"] for row in records} == set(pictures)
    options = MimicOptions(dcm, 12, size=40, validate=2, test=3, laterals=0.5, pixels="dicom")
    images = {}
    for task in study_tasks(options):
        for name, _, image in render_study(task).images:
            images[name] = image
    photometrics, syntaxes = set(), set()
    for row in records:
        path = dcm / row["path"]
        header = pydicom.dcmread(path, stop_before_pixels=True)
        assert header.BitsStored == 12
        assert header.PatientID == row["subject_id"]
        assert header.StudyID == row["study_id"]
        photometrics.add(header.PhotometricInterpretation)
        syntaxes.add(header.file_meta.TransferSyntaxUID)
        rendered = images[row["dicom_id"]]
        expected = (rendered - rendered.min()) / (rendered.max() - rendered.min())
        error = np.abs(read_radiograph(path) - expected)
        error[DAMAGED] = 0
        assert error.max() < 0.002, header.file_meta.TransferSyntaxUID.name
        # JPEG is lossy.
        assert np.abs(read_radiograph(pictures[row["dicom_id"]]) - rendered).max() < 0.08
    assert photometrics == {"MONOCHROME1", "MONOCHROME2"}
    assert syntaxes == set(writable_syntaxes()) >= {RLELossless}


def test_mimic_cxr_dicom_lists_its_reports(jpg: Path, dcm: Path) -> None:
    with zipfile.ZipFile(dcm / "mimic-cxr-reports.zip") as archive:
        reports = {name: archive.read(name).decode() for name in archive.namelist()}
    assert [row["path"] for row in table(dcm / "cxr-study-list.csv.gz")] == list(reports)
    assert reports == {name: (jpg / name).read_text() for name in reports}
    assert not list(dcm.rglob("*.txt"))


@pytest.mark.parametrize("number", range(6))
def test_a_dicom_variety_is_wrong_without_its_grey_scale_transformation(
    number: int, tmp_path: Path
) -> None:
    """Each variety gives back its image, and does not without its window or VOI LUT."""
    image = np.linspace(0, 1, 64 * 48, dtype=np.float32).reshape(64, 48) ** 2
    path = tmp_path / "a.dcm"
    path.write_bytes(encode_dicom(image, variety(number), 1, 2, "name", "PA", 21000101))
    inner = (slice(1, None), slice(None))  # the damaged elements are in the first row
    assert np.abs(read_radiograph(path) - image)[inner].max() < 0.002
    data = pydicom.dcmread(path)
    for keyword in ("WindowCenter", "WindowWidth", "VOILUTSequence"):
        if keyword in data:
            delattr(data, keyword)
    data.save_as(path)
    assert np.abs(read_radiograph(path) - image)[inner].max() > 0.05


def test_varieties_cover_what_hospitals_send() -> None:
    combinations = 2 * len(GREY) * len(writable_syntaxes())
    kinds = [variety(number) for number in range(combinations)]
    assert {kind.photometric for kind in kinds[:8]} == {"MONOCHROME1", "MONOCHROME2"}
    assert {kind.grey for kind in kinds[:8]} == set(GREY)
    assert {kind.syntax for kind in kinds[:8]} == set(writable_syntaxes())
    assert len(set(kinds)) == combinations
    for syntax in (JPEGLSLossless, JPEG2000Lossless):
        assert (syntax in writable_syntaxes()) == get_encoder(syntax).is_available


def indiana(layout: str, out: Path, *options: str) -> Path:
    pytest.importorskip("torchxrayvision")
    return phantom(layout, out, "--studies", "10", *options)


def test_the_open_i_and_kaggle_layouts_show_the_same_pictures(tmp_path: Path) -> None:
    open_i = indiana("indiana", tmp_path / "open_i", "--laterals", "1")
    kaggle = indiana("indiana-kaggle", tmp_path / "kaggle")
    rows = table(kaggle / "indiana_projections.csv")
    folder = kaggle / "images" / "images_normalized"
    copies = {}
    for row in rows:
        name = row["filename"].removesuffix(".dcm.png")
        copies[name] = (folder / row["filename"]).read_bytes()
    assert open_i_pictures(open_i) == copies
    assert len(copies) > 10
    assert {row["projection"] for row in rows} == {"Frontal", "Lateral"}
    reports = table(kaggle / "indiana_reports.csv")
    columns = "uid MeSH Problems image indication comparison findings impression"
    assert list(reports[0]) == columns.split()
    assert {row["uid"] for row in reports} == {path.stem for path in open_i.rglob("*.xml")}


def open_i_pictures(root: Path) -> dict[str, bytes]:
    """Pictures by number and series, of names such as CXR10_IM-0002-1001 or CXR1_1_IM-0001-4001."""
    pictures = {}
    for path in root.rglob("*.png"):
        study, *_, series = path.stem.split("_")
        pictures[f"{study.removeprefix('CXR')}_{series}"] = path.read_bytes()
    return pictures


def test_the_r2gen_layout_shows_the_same_pictures(tmp_path: Path) -> None:
    open_i = indiana("indiana", tmp_path / "open_i", "--laterals", "1")
    r2gen = indiana("r2gen", tmp_path / "r2gen")
    pictures = open_i_pictures(open_i)
    reports = table(indiana("indiana-kaggle", tmp_path / "kaggle") / "indiana_reports.csv")
    groups = json.loads((r2gen / "annotation.json").read_text())
    assert [len(groups[split]) for split in ("train", "val", "test")] == [7, 1, 2]
    for item in [*groups["train"], *groups["val"], *groups["test"]]:
        assert item["image_path"] == [f"{item['id']}/0.png", f"{item['id']}/1.png"]
        number = item["id"].split("_")[0].removeprefix("CXR")
        frontal = (r2gen / "images" / item["image_path"][0]).read_bytes()
        known = [data for name, data in pictures.items() if name.split("_")[0] == number]
        assert frontal in known or not known
        assert read_radiograph(r2gen / "images" / item["image_path"][1]).shape == (40, 40)
    texts = {row["findings"] for row in reports}
    assert texts & {item["report"] for item in groups["train"]}


def test_a_picture_shows_phantoms_above_radiographs(
    jpg: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "picture.png"
    command = ["phantom", "picture", str(out), "--size", "32", "--radiographs"]
    assert main([*command, str(jpg)]) == 0
    assert read_radiograph(out).shape == (4 * 32, 4 * 32)
    assert main([*command, str(tmp_path / "nothing")]) == 1
    assert "no radiographs found" in capsys.readouterr().err


def test_a_share_of_laterals_is_a_share(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["phantom", "mimic", str(tmp_path / "x"), "--laterals", "2"]) == 1
    assert "from 0 to 1" in capsys.readouterr().err
