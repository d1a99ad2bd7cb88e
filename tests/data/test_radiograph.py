"""One decoder for every file: radiographs are read right, others refused with a reason."""

from __future__ import annotations

import io
import zlib
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels import apply_modality_lut, apply_voi_lut
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    RLELossless,
)

from mavilt_pl.data.radiograph import read_radiograph, read_sized, resize
from mavilt_pl.errors import Rejected

RAMP = np.tile(np.linspace(0, 4095, 64).astype(np.uint16), (48, 1))


def write_dicom(path: Path, pixels: np.ndarray = RAMP, **tags: object) -> Path:
    data = pydicom.Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.SOPClassUID, data.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1", "1.2.3"
    data.Rows, data.Columns = pixels.shape
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 12, 11, 0
    data.PixelData = pixels.tobytes()
    for name, value in tags.items():
        if value is None:
            delattr(data, name)
        else:
            setattr(data, name, value)
    data.save_as(path, enforce_file_format=True)
    return path


def test_dicom_bone_is_bright_in_both_photometric_interpretations(tmp_path: Path) -> None:
    plain = read_radiograph(write_dicom(tmp_path / "a.dcm"))
    inverted = read_radiograph(
        write_dicom(tmp_path / "b.dcm", 4095 - RAMP, PhotometricInterpretation="MONOCHROME1")
    )
    assert plain.dtype == np.float32 and plain.shape == (48, 64)
    assert plain[0, 0] == 0 and plain[0, -1] == 1
    np.testing.assert_allclose(plain, inverted, atol=1e-3)


def test_dicom_window_is_applied(tmp_path: Path) -> None:
    image = read_radiograph(write_dicom(tmp_path / "a.dcm", WindowCenter=1000, WindowWidth=500))
    assert (image[0, RAMP[0] < 700] == 0).all() and (image[0, RAMP[0] > 1300] == 1).all()


TEXTURE = np.random.default_rng(0).integers(0, 4096, (600, 800)).astype(np.uint16)


@pytest.mark.parametrize("inverted", [False, True])
@pytest.mark.parametrize(
    "tags",
    [
        {"WindowCenter": 1000, "WindowWidth": 500},
        {"WindowCenter": [2000, 1], "WindowWidth": [3000, 2]},
        {"WindowCenter": 0, "WindowWidth": 801, "RescaleSlope": "0.5", "RescaleIntercept": "-1000"},
        {"WindowCenter": 900, "WindowWidth": 700, "VOILUTFunction": "LINEAR_EXACT"},
        {"WindowCenter": 2000, "WindowWidth": 900, "VOILUTFunction": "SIGMOID"},
    ],
)
def test_windows_are_those_of_pydicom(
    tmp_path: Path, tags: dict[str, object], inverted: bool
) -> None:
    """Against pydicom's own grey-scale transformations; and the fast path to a small image against
    the plain one.
    """
    if inverted:
        tags = tags | {"PhotometricInterpretation": "MONOCHROME1"}
    path = write_dicom(tmp_path / "a.dcm", TEXTURE, **tags)
    data = pydicom.dcmread(path)
    expected = apply_voi_lut(apply_modality_lut(data.pixel_array, data), data)
    expected = (expected - expected.min()) / (expected.max() - expected.min())
    np.testing.assert_allclose(
        read_radiograph(path), 1 - expected if inverted else expected, atol=2e-3
    )
    for size in (100, 256):  # 100: reduced by a whole factor first
        small = resize(read_radiograph(path), size).astype(int)
        assert np.abs(read_sized(path, size).astype(int) - small).max() <= 1


def test_a_modality_lut_is_applied_once(tmp_path: Path) -> None:
    """Before a sigmoid window; against pydicom's own chain."""
    table = pydicom.Dataset()
    table.add_new("LUTDescriptor", "US", [4096, 0, 16])
    table.add_new("LUTData", "OW", (np.arange(4096) // 2 + 300).astype("<u2").tobytes())
    table.ModalityLUTType = "US"
    path = write_dicom(
        tmp_path / "a.dcm",
        WindowCenter=1200,
        WindowWidth=900,
        VOILUTFunction="SIGMOID",
        ModalityLUTSequence=pydicom.Sequence([table]),
    )
    data = pydicom.dcmread(path)
    expected = apply_voi_lut(apply_modality_lut(data.pixel_array, data), data)
    expected = (expected - expected.min()) / (expected.max() - expected.min())
    np.testing.assert_allclose(read_radiograph(path), expected, atol=2e-3)


@pytest.mark.parametrize("window", [{}, {"WindowCenter": 2048, "WindowWidth": 4096}])
def test_a_negative_rescale_slope_inverts_the_scale(
    tmp_path: Path, window: dict[str, object]
) -> None:
    """(pydicom's own transformation turns it round twice where there is a window too.)"""
    image = read_radiograph(
        write_dicom(tmp_path / "a.dcm", RescaleSlope="-1", RescaleIntercept="4095", **window)
    )
    np.testing.assert_allclose(image, 1 - RAMP / 4095, atol=1e-3)


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless, JPEGLSLossless])
def test_compressed_dicom_is_the_same_image(tmp_path: Path, syntax: str) -> None:
    path = write_dicom(tmp_path / "a.dcm", TEXTURE)
    plain = read_radiograph(path)
    data = pydicom.dcmread(path)
    data.compress(syntax)
    data.save_as(path)
    np.testing.assert_array_equal(read_radiograph(path), plain)


def jpeg_dicom(path: Path, rows: int) -> Path:
    """8 bits, JPEG baseline, 48 × 64 whatever the header says."""
    out = io.BytesIO()
    Image.fromarray((RAMP >> 4).astype(np.uint8)).save(out, "JPEG", quality=95)
    data = pydicom.dcmread(write_dicom(path, BitsAllocated=8, BitsStored=8, HighBit=7))
    data.PixelData, data.Rows = encapsulate([out.getvalue()]), rows
    data["PixelData"].VR = "OB"
    data.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    data.save_as(path)
    return path


def test_jpeg_in_dicom_and_a_wrong_header(tmp_path: Path) -> None:
    np.testing.assert_allclose(
        read_radiograph(jpeg_dicom(tmp_path / "a.dcm", 48)), RAMP / 4095, atol=0.02
    )
    with pytest.raises(Rejected, match="50 × 64 pixels and the compressed image 48 × 64"):
        read_radiograph(jpeg_dicom(tmp_path / "b.dcm", 50))


def test_overlay_bits_are_no_pixels(tmp_path: Path) -> None:
    """Old files keep overlays in the four bits above the twelve."""
    plain = read_radiograph(write_dicom(tmp_path / "a.dcm", TEXTURE))
    np.testing.assert_array_equal(
        read_radiograph(write_dicom(tmp_path / "b.dcm", TEXTURE | 0x3000)), plain
    )


def test_a_deflated_file_is_refused_before_it_is_inflated(tmp_path: Path) -> None:
    data = pydicom.dcmread(write_dicom(tmp_path / "a.dcm"))
    data.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    data.save_as(tmp_path / "b.dcm")
    with pytest.raises(Rejected, match="deflated"):
        read_radiograph(tmp_path / "b.dcm")


@pytest.mark.parametrize("mode", ["L", "I;16", "RGB", "RGBA", "P"])
def test_png_modes_agree(tmp_path: Path, mode: str) -> None:
    grey = np.tile(np.arange(64, dtype=np.uint8) * 4, (48, 1))
    picture = Image.fromarray(grey)
    picture = (
        Image.fromarray(grey.astype(np.uint16) * 257) if mode == "I;16" else picture.convert(mode)
    )
    picture.save(tmp_path / "a.png")
    np.testing.assert_allclose(read_radiograph(tmp_path / "a.png"), grey / 252, atol=0.02)


def test_jpeg_cmyk_and_exif_rotation(tmp_path: Path) -> None:
    grey = np.tile(np.arange(64, dtype=np.uint8) * 4, (48, 1))
    Image.fromarray(grey).convert("CMYK").save(tmp_path / "a.jpg", quality=95)
    assert read_radiograph(tmp_path / "a.jpg")[24, 60] > read_radiograph(tmp_path / "a.jpg")[24, 4]
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(grey).save(tmp_path / "b.jpg", exif=exif)
    assert read_radiograph(tmp_path / "b.jpg").shape == (64, 48)


def bomb(path: Path) -> Path:
    """A PNG whose header promises 100,000 × 100,000 pixels."""
    Image.fromarray(np.zeros((20, 20), np.uint8)).save(path)
    data = bytearray(path.read_bytes())
    data[16:24] = (100_000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    path.write_bytes(data)
    return path


def disguised(path: Path) -> Path:
    """PostScript under another name: Pillow would hand it to an interpreter."""
    Image.fromarray((RAMP >> 4).astype(np.uint8)).save(path, "EPS")
    return path


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda p: p / "absent.png", "missing"),
        (lambda p: bomb(p / "big.png"), "DecompressionBomb"),
        (lambda p: disguised(p / "postscript.png"), "cannot identify"),
        (lambda p: write_dicom(p / "no.dcm", PixelData=None), "no pixel data"),
        (lambda p: write_dicom(p / "many.dcm", NumberOfFrames=2), "2 frames"),
        (lambda p: write_dicom(p / "flat.dcm", np.full_like(RAMP, 7)), "same value"),
        (lambda p: write_dicom(p / "huge.dcm", Rows=60000), "60000"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, make: object, reason: str) -> None:
    path = make(tmp_path)  # type: ignore[operator]
    with pytest.raises(Rejected) as refused:
        read_radiograph(path)
    assert path.name in str(refused.value) and reason in str(refused.value)


@pytest.mark.parametrize("name", ["a.dcm", "a.png", "a.jpg"])
def test_truncated_files_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name.endswith("dcm"):
        write_dicom(path)
    else:
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)).save(
            path
        )
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(Rejected, match=name):
        read_radiograph(path)


def test_resize_keeps_the_aspect() -> None:
    wide = np.ones((50, 100), np.float32)
    padded, cropped = resize(wide, 32, "pad"), resize(wide, 32, "crop")
    assert padded.shape == cropped.shape == (32, 32)
    assert (padded[:8] == 0).all() and (padded[8:24] == 255).all() and (cropped == 255).all()


@pytest.mark.real
def test_real_dicom(real_data: Path) -> None:
    image = read_radiograph(next((real_data / "dicom").glob("*.dcm")))
    assert image.shape == (1024, 1024) and 0.1 < image.mean() < 0.9
