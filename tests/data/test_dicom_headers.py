"""Headers that scanners, archives and anonymisers really write: the right picture, or a reason.

Most are public bug reports: pydicom#2182 and vindr-cxr#3 (no transfer syntax), fo-dicom#406
(padding), fo-dicom#161 (window width 0).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRBigEndian, ImplicitVRLittleEndian, JPEG2000Lossless

from mavilt_pl.data.radiograph import read_radiograph
from mavilt_pl.errors import Rejected
from tests.data.test_radiograph import RAMP, write_dicom

PLAIN = RAMP / 4095


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, None])
@pytest.mark.parametrize("preamble", [True, False])
def test_no_transfer_syntax(tmp_path: Path, syntax: str | None, preamble: bool) -> None:
    data = pydicom.dcmread(write_dicom(tmp_path / "a.dcm"))
    path = tmp_path / "b.dcm"
    implicit = syntax is not None
    data.file_meta = FileMetaDataset()
    data.preamble = b"\0" * 128 if preamble else None
    pydicom.dcmwrite(path, data, implicit_vr=implicit, little_endian=True)
    assert "TransferSyntaxUID" not in pydicom.dcmread(path, force=True).file_meta
    np.testing.assert_allclose(read_radiograph(path), PLAIN, atol=1e-3)


def test_compressed_pixels_without_a_transfer_syntax_are_refused(tmp_path: Path) -> None:
    data = pydicom.dcmread(write_dicom(tmp_path / "a.dcm"))
    data.compress(JPEG2000Lossless)
    data.file_meta = FileMetaDataset()
    pydicom.dcmwrite(tmp_path / "b.dcm", data, implicit_vr=False, little_endian=True)
    with pytest.raises(Rejected, match=r"no Transfer Syntax UID"):
        read_radiograph(tmp_path / "b.dcm")


def test_big_endian(tmp_path: Path) -> None:
    data = pydicom.dcmread(write_dicom(tmp_path / "a.dcm"))
    data.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    data.PixelData = RAMP.astype(">u2").tobytes()
    pydicom.dcmwrite(tmp_path / "b.dcm", data, implicit_vr=False, little_endian=False)
    np.testing.assert_allclose(read_radiograph(tmp_path / "b.dcm"), PLAIN, atol=1e-3)


@pytest.mark.parametrize("signed", [False, True])
def test_values_in_the_upper_bits(tmp_path: Path, signed: bool) -> None:
    """HighBit 15 with 12 bits stored; what lies below them is noise."""
    values = RAMP.astype(np.int32) - (2048 if signed else 0)
    cells = ((values << 4) + 9).astype(np.int16 if signed else np.uint16)
    tags = {"HighBit": 15, "PixelRepresentation": int(signed)}
    path = write_dicom(tmp_path / "a.dcm", cells, **tags)
    np.testing.assert_allclose(read_radiograph(path), PLAIN, atol=1e-3)


@pytest.mark.parametrize("inverted", [False, True])
@pytest.mark.parametrize("window", [{}, {"WindowCenter": 2048, "WindowWidth": 4096}])
def test_padding_is_background(tmp_path: Path, inverted: bool, window: dict[str, object]) -> None:
    """A collimated image: the frame is no part of the scale, and black."""
    image = 4095 - RAMP if inverted else RAMP
    padded = np.pad(image, 8, constant_values=65535)
    tags = {"PixelPaddingValue": 65535, "BitsStored": 16, "HighBit": 15, **window}
    if inverted:
        tags["PhotometricInterpretation"] = "MONOCHROME1"
    read = read_radiograph(write_dicom(tmp_path / "a.dcm", padded, **tags))
    np.testing.assert_allclose(read[8:-8, 8:-8], PLAIN, atol=2e-3)
    assert read[:8].max() < 0.002


def test_padding_of_a_range_of_values(tmp_path: Path) -> None:
    padded = np.pad(RAMP, 8, constant_values=60000)
    padded[0] = 65000
    tags = {"PixelPaddingValue": 65535, "PixelPaddingRangeLimit": 59000}
    path = write_dicom(tmp_path / "a.dcm", padded, **tags, BitsStored=16, HighBit=15)
    np.testing.assert_allclose(read_radiograph(path)[8:-8, 8:-8], PLAIN, atol=1e-3)
    with pytest.raises(Rejected, match=r"every pixel is padding"):
        read_radiograph(write_dicom(path, np.full_like(RAMP, 7), PixelPaddingValue=7))


NOTHING = [
    {"WindowCenter": 1000, "WindowWidth": 0},
    {"WindowCenter": 1000, "WindowWidth": 1},
    {"WindowCenter": 1000, "WindowWidth": -200},
    {"WindowCenter": 2048, "WindowWidth": "1e30"},
    {"WindowCenter": 60000, "WindowWidth": 100},
    {"WindowCenter": "", "WindowWidth": 100},
    {"WindowCenter": 1000, "WindowWidth": 500, "RescaleSlope": "0"},
    {"WindowCenter": 1000, "WindowWidth": 0, "VOILUTFunction": "SIGMOID"},
]


@pytest.mark.parametrize("tags", NOTHING)
def test_a_window_that_shows_nothing_is_left_out(tmp_path: Path, tags: dict[str, object]) -> None:
    path = write_dicom(tmp_path / "a.dcm", **tags)
    np.testing.assert_allclose(read_radiograph(path), PLAIN, atol=1e-3)


def test_the_next_window_counts(tmp_path: Path) -> None:
    tags = {"WindowCenter": [2048, 1000], "WindowWidth": [0, 501]}
    image = read_radiograph(write_dicom(tmp_path / "a.dcm", **tags))
    np.testing.assert_allclose(image, np.clip((RAMP - 749.5) / 500, 0, 1), atol=1e-3)


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "PALETTE COLOR"),
        ({"PhotometricInterpretation": None}, "interpretation nothing"),
        ({"Modality": "CT"}, "modality CT"),
        ({"Modality": "SEG"}, "modality SEG"),
        ({"BitsAllocated": 1, "BitsStored": 1, "HighBit": 0}, "1 bits a pixel"),
        ({"BitsStored": 20}, "20 of them stored"),
        ({"HighBit": 7}, "highest is bit 7"),
        ({"Rows": 11_000, "Columns": 11_000}, "at most 67,108,864 in all"),
    ],
)
def test_what_is_no_grey_radiograph_is_refused(
    tmp_path: Path, tags: dict[str, object], reason: str
) -> None:
    with pytest.raises(Rejected) as refused:
        read_radiograph(write_dicom(tmp_path / "a.dcm", **tags))
    assert reason in str(refused.value) and "expected" in str(refused.value)


def test_a_large_picture_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGBA", (9_000, 9_000)).save(path)
    with pytest.raises(Rejected, match=r"at most 67,108,864"):
        read_radiograph(path)
    # Sparse: it takes no room.
    with path.open("wb") as file:
        file.truncate(2**30)
    with pytest.raises(Rejected, match=r"1,073,741,824 bytes"):
        read_radiograph(path)
