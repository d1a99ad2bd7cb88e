"""Radiographs of every kind, as files and in memory: each is read, or refused with its reason."""

from __future__ import annotations

import json
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

from mavilt_pl.cli import main
from mavilt_pl.errors import UserError
from mavilt_pl.inference.mavilt import MAViLT

SIZE = 40


def chest(height: int = SIZE, width: int = SIZE, seed: int = 0) -> np.ndarray:
    """A smooth grey image uint8 [H,W] with dark and bright parts."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:height, 0:width]
    waves = np.sin(rows / height * 7) + np.cos(columns / width * 5) + rng.normal(0, 0.05)
    return ((waves - waves.min()) / np.ptp(waves) * 255).round().astype(np.uint8)


def dicom(
    pixels: np.ndarray, syntax: str = ExplicitVRLittleEndian, **tags: Any
) -> pydicom.FileDataset:
    """A DICOM radiograph of stored pixels."""
    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1"
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    data = pydicom.FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    bits = pixels.dtype.itemsize * 8
    values: dict[str, Any] = {
        **{"SOPClassUID": "1.2.840.10008.5.1.4.1.1.1", "SOPInstanceUID": "1.2.3"},
        **{"Modality": "CR", "Rows": pixels.shape[0], "Columns": pixels.shape[1]},
        **{"SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2"},
        **{"BitsAllocated": bits, "BitsStored": bits, "HighBit": bits - 1},
        **{"PixelRepresentation": int(pixels.dtype.kind == "i")},
        "PixelData": pixels.tobytes(),
        **tags,
    }
    for keyword, value in values.items():
        setattr(data, keyword, value)
    data["PixelData"].VR = "OB" if bits == 8 else "OW"
    if syntax == RLELossless:
        data.compress(RLELossless)
    elif syntax != ExplicitVRLittleEndian:
        # The pixels lie in the order of bytes of the file.
        if syntax == ExplicitVRBigEndian:
            data.PixelData = pixels.byteswap().tobytes()
            data["PixelData"].VR = "OW"
        data.file_meta.TransferSyntaxUID = syntax
    return data


def picture(mode: str, suffix: str, **options: Any) -> Callable[[Path], None]:
    """Writes the image in a mode of Pillow."""

    def write(path: Path) -> None:
        grey = Image.fromarray(chest())
        if mode in ("I;16", "I"):
            deep = Image.fromarray(chest().astype(np.uint16) * 257)
            deep = deep if mode == "I;16" else deep.convert("I")
            deep.save(path.with_suffix(suffix), **options)
            return
        if "resize" in options:
            grey = grey.resize(options.pop("resize"))
        grey.convert(mode).save(path.with_suffix(suffix), **options)

    return write


def dicom_file(*args: Any, **tags: Any) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        data = dicom(*args, **tags)
        syntax = data.file_meta.TransferSyntaxUID
        pydicom.dcmwrite(
            path.with_suffix(".dcm"),
            data,
            implicit_vr=syntax == ImplicitVRLittleEndian,
            little_endian=syntax != ExplicitVRBigEndian,
            force_encoding=True,
        )

    return write


def raw(content: bytes, suffix: str) -> Callable[[Path], None]:
    return lambda path: path.with_suffix(suffix).write_bytes(content) and None


def exif(orientation: int) -> Callable[[Path], None]:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return picture("L", ".jpg", exif=tags)


def encoded(mode: str, kind: str) -> bytes:
    buffer = BytesIO()
    Image.fromarray(chest()).convert(mode).save(buffer, kind)
    return buffer.getvalue()


GREY16 = chest().astype(np.uint16) * 16
READ: dict[str, Callable[[Path], None]] = {
    **{f"png-{mode}": picture(mode, ".png") for mode in ("L", "LA", "RGB", "RGBA", "P", "1")},
    **{f"png-{mode}": picture(mode, ".png") for mode in ("I;16", "I")},
    **{f"jpg-{mode}": picture(mode, ".jpg") for mode in ("L", "RGB", "CMYK", "YCbCr")},
    **{f"exif-{number}": exif(number) for number in range(1, 9)},
    "jpg-progressive": picture("L", ".jpg", progressive=True),
    "jpg-poor": picture("L", ".jpg", quality=5),
    "jpeg-suffix": picture("L", ".jpeg"),
    "png-interlaced-palette": picture("P", ".png", bits=8),
    "png-transparent": picture("L", ".png", transparency=0),
    "png-smallest": picture("L", ".png", resize=(16, 16)),
    "png-wide": picture("L", ".png", resize=(900, 30)),
    "png-tall": picture("L", ".png", resize=(30, 900)),
    "png-huge": picture("L", ".png", resize=(5000, 4000)),
    "jpg-huge": picture("L", ".jpg", resize=(6000, 5000)),
    "dcm-8": dicom_file(chest()),
    "dcm-16": dicom_file(GREY16),
    "dcm-signed": dicom_file(GREY16.astype(np.int16) - 1000),
    "dcm-12": dicom_file(GREY16, BitsStored=12, HighBit=11),
    "dcm-monochrome1": dicom_file(255 - chest(), PhotometricInterpretation="MONOCHROME1"),
    "dcm-window": dicom_file(GREY16, WindowCenter=2000, WindowWidth=3000),
    "dcm-two-windows": dicom_file(GREY16, WindowCenter=[2000, 9], WindowWidth=[3000, 1]),
    "dcm-zero-window": dicom_file(GREY16, WindowCenter=0, WindowWidth=0),
    "dcm-sigmoid": dicom_file(
        GREY16, WindowCenter=2000, WindowWidth=3000, VOILUTFunction="SIGMOID"
    ),
    "dcm-rescale": dicom_file(GREY16, RescaleSlope=2, RescaleIntercept=-50),
    "dcm-negative-slope": dicom_file(GREY16, RescaleSlope=-1, RescaleIntercept=4095),
    "dcm-padding": dicom_file(GREY16, PixelPaddingValue=0),
    "dcm-rle": dicom_file(GREY16, RLELossless),
    "dcm-implicit": dicom_file(GREY16, ImplicitVRLittleEndian),
    "dcm-big-endian": dicom_file(GREY16, ExplicitVRBigEndian),
    "dcm-no-modality": dicom_file(chest(), Modality=""),
    "dcm-scanned-film": dicom_file(chest(), Modality="SC"),
    "dcm-strange-name": dicom_file(chest(), PatientName="<script>alert(1)</script>"),
}
REFUSED: dict[str, tuple[Callable[[Path], None], str]] = {
    "png-tiny": (picture("L", ".png", resize=(15, 15)), "15 × 15 pixels; expected 16"),
    "png-flat": (raw(b"", ".png"), "not readable"),
    "png-cut": (raw(encoded("L", "PNG")[:-60], ".png"), "not readable"),
    "png-is-gif": (raw(encoded("L", "GIF"), ".png"), "not readable"),
    "png-is-text": (raw(b"a report", ".png"), "not readable"),
    "jpg-cut": (raw(encoded("L", "JPEG")[:100], ".jpg"), "not readable"),
    "dcm-is-png": (raw(encoded("L", "PNG"), ".dcm"), "png"),
    "dcm-empty": (raw(b"", ".dcm"), "dcm"),
    "dcm-ct": (dicom_file(chest(), Modality="CT"), "modality CT"),
    "dcm-colour": (
        dicom_file(chest(), PhotometricInterpretation="PALETTE COLOR"),
        "photometric interpretation PALETTE COLOR",
    ),
    "dcm-frames": (dicom_file(chest(), NumberOfFrames=2), "2 frames"),
    "dcm-flat": (dicom_file(np.full((SIZE, SIZE), 7, np.uint16)), "the same value"),
    "dcm-promises": (dicom_file(chest(), Rows=60000, Columns=60000), "60000 × 60000"),
    "dcm-short": (dicom_file(chest(), PixelData=b"\0\0"), "not readable"),
    "dcm-deflated": (dicom_file(chest(), DeflatedExplicitVRLittleEndian), "deflated"),
}


@pytest.fixture(scope="module")
def model(chain: Path) -> MAViLT:
    return MAViLT.from_runs(chain / "stage2", chain / "vqgan", device="cpu")


def test_every_odd_radiograph_is_answered_or_refused_with_its_reason(
    chain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """63 files in one folder; one that cannot be read costs its own report."""
    for name, write in READ.items():
        write(tmp_path / name)
    for name, (write, _) in REFUSED.items():
        write(tmp_path / name)
    assert len(READ) + len(REFUSED) == 63
    words = ["--model", str(chain / "stage2"), "--device", "cpu", "--json"]
    assert main(["report", str(tmp_path), *words]) == 1
    rows = {}
    for line in capsys.readouterr().out.splitlines():
        row = json.loads(line)
        rows[Path(row["image"]).stem] = row
    assert {name for name, row in rows.items() if "report" in row} == {*READ}
    for name, (_, reason) in REFUSED.items():
        assert name in rows[name]["error"] and reason in rows[name]["error"]


def test_the_same_radiograph_has_the_same_codes_however_it_is_stored(
    model: MAViLT, tmp_path: Path
) -> None:
    """MONOCHROME1 and its inverse, depth, colour and transparency make no difference."""
    alike = ["png-L", "png-LA", "png-RGB", "png-RGBA", "png-I;16", "dcm-8", "dcm-monochrome1"]
    alike += ["dcm-rle", "dcm-implicit", "dcm-big-endian", "dcm-12", "dcm-signed"]
    files = []
    for name in alike:
        READ[name](tmp_path / name)
        files += tmp_path.glob(f"{name}.*")
    codes = model.codes(sorted(files))
    assert len(codes) == len(alike) and bool((codes == codes[0]).all())


def test_images_in_memory_are_read_like_their_files(model: MAViLT, tmp_path: Path) -> None:
    READ["png-L"](tmp_path / "a")
    READ["dcm-monochrome1"](tmp_path / "b")
    READ["exif-6"](tmp_path / "c")
    data = dicom(255 - chest(), PhotometricInterpretation="MONOCHROME1")
    grey = chest()
    same = [
        *(tmp_path / "a.png", str(tmp_path / "b.dcm")),
        *(grey, grey[..., None], np.stack([grey] * 3, 2), grey[:, ::-1][:, ::-1]),
        *(grey / 255, (grey / 255).astype(np.float32), grey.astype(">u2") * 257),
        *(Image.fromarray(grey), Image.open(tmp_path / "a.png"), data),
    ]
    reports = model.report(same)
    assert len(reports) == len(same)
    for report in reports:
        assert report.text == reports[0].text and (report.codes == reports[0].codes).all()
    assert reports[0].image == str(tmp_path / "a.png")
    assert reports[2].image == "array of uint8 [40,40]"
    # A dataset is the caller's, and an orientation of a Pillow image counts.
    assert "PixelData" in data and data.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    turned = Image.open(tmp_path / "c.jpg")
    assert (model.codes([turned]) == model.codes([tmp_path / "c.jpg"])).all()


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (np.zeros((5, 40, 40), np.uint8), r"array of uint8 \[5,40,40\]; expected one image"),
        (np.zeros((40, 40, 3), np.float32), "expected one image"),
        (np.zeros((40, 40), bool), "expected one image"),
        (np.full((40, 40), np.nan), "are not numbers"),
        (np.zeros((40, 40), np.uint8), "the same value"),
        (np.zeros((4, 4), np.uint8), "4 × 4 pixels"),
        (Image.new("L", (4, 4)), "Pillow image of mode L, 4 × 4: 4 × 4 pixels"),
        (pydicom.Dataset(), "DICOM dataset without a UID: no pixel data"),
        (7, "found a int; expected a path, an array, a Pillow image or a pydicom dataset"),
    ],
)
def test_what_is_no_radiograph_is_refused(model: MAViLT, image: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        model.report(image)
    # In a list it costs its own report only.
    good, bad = model.report([chest(), image], return_errors=True)
    assert good.text == model.report(chest()).text and isinstance(bad, UserError)


def test_folders_and_patterns(model: MAViLT, tmp_path: Path) -> None:
    for name in ("png-L", "png-RGB", "dcm-8"):
        READ[name](tmp_path / name)
    (tmp_path / "table.csv").write_text("a,b")
    names = [Path(report.image).name for report in model.report(tmp_path)]
    assert names == ["dcm-8.dcm", "png-L.png", "png-RGB.png"]
    names = [Path(report.image).name for report in model.report(str(tmp_path / "*.png"))]
    assert names == ["png-L.png", "png-RGB.png"]
    # A file whose name looks like a pattern is a file.
    (tmp_path / "[a].png").write_bytes((tmp_path / "png-L.png").read_bytes())
    assert model.report(tmp_path / "[a].png").image.endswith("[a].png")
    for nothing, said in (
        (tmp_path / "*.jpg", "no file of this pattern"),
        ("absent.png", "missing"),
    ):
        with pytest.raises(UserError, match=said):
            model.report(nothing)
