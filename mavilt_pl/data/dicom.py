"""Decode a DICOM radiograph, with the grey-scale transformations of the standard.

Modality LUT or rescale, then VOI LUT or window, as DICOM PS3.3 C.11.1 and C.11.2 say; MONOCHROME1
is inverted. What the header promises is checked before anything is decoded.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pydicom
from pydicom.encaps import get_frame
from pydicom.pixels import apply_modality_lut, apply_voi_lut
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

from mavilt_pl.data.grey_image import GreyImage, check_size, extremes
from mavilt_pl.errors import Rejected

UNCOMPRESSED = (ExplicitVRLittleEndian, ImplicitVRLittleEndian)
HEADER_BYTES = 1024  # where the transfer syntax and a stream's size stand
JPEG2000_SIZE = b"\xff\x4f\xff\x51"  # the markers SOC and SIZ
JPEG_START = b"\xff\xd8"


def read_dicom(path: Path) -> GreyImage:
    """The stored pixels of a DICOM file with their window.

    Raises:
        Rejected: the file is not one grey frame, or its header and its pixels disagree. pydicom and
            its decoders raise errors of their own on damaged files.
    """
    _reject_deflated(path)
    data = pydicom.dcmread(path)
    if "PixelData" not in data:
        raise Rejected(f"{path}: the DICOM file holds no pixel data")
    # From here to the decoding, every check is of the header alone. A header that promises 65,535²
    # pixels would otherwise cost gigabytes before it is refused.
    rows, columns = int(data.Rows), int(data.Columns)
    check_size(path, rows, columns)
    _check_frames(path, data)
    _check_encoded_size(path, data, rows, columns)
    stored = _native_pixels(data, rows, columns)
    if stored is None:
        stored = data.pixel_array
    if stored.shape != (rows, columns):
        raise Rejected(
            f"{path}: the header says {rows} × {columns} pixels, {stored.shape} were decoded"
        )
    return _apply_grey_scale(path, data, stored)


def _reject_deflated(path: Path) -> None:
    # Inflating is the first thing that pydicom would do, whatever the size of the result.
    with path.open("rb") as file:
        deflated = DeflatedExplicitVRLittleEndian.encode() in file.read(HEADER_BYTES)
    if deflated:
        raise Rejected(
            f"{path}: a deflated data set, whose size cannot be known beforehand; save it "
            "undeflated"
        )


def _check_frames(path: Path, data: pydicom.Dataset) -> None:
    # The element may be present and empty.
    frames = int(data.get("NumberOfFrames", 1) or 1)
    samples = int(data.get("SamplesPerPixel", 1))
    if frames != 1 or samples != 1:
        raise Rejected(
            f"{path}: {frames} frames of {samples} samples a pixel; expected one grey frame"
        )


def _check_encoded_size(path: Path, data: pydicom.Dataset, rows: int, columns: int) -> None:
    """Compare the header's size with that of a compressed stream, before it is decoded."""
    syntax = data.file_meta.TransferSyntaxUID
    # Uncompressed pixels and RLE streams do not state a size.
    if not syntax.is_encapsulated or syntax == RLELossless:
        return
    encoded = _encoded_size(get_frame(data.PixelData, 0, number_of_frames=1))
    if encoded is not None and encoded != (rows, columns):
        raise Rejected(
            f"{path}: the header says {rows} × {columns} pixels and the compressed image "
            f"{encoded[0]} × {encoded[1]}"
        )


def _encoded_size(frame: bytes) -> tuple[int, int] | None:
    """Height and width in the header of a compressed stream.

    None for a stream that is not JPEG, JPEG-LS or JPEG 2000.
    """
    # A stream may be wrapped in a JP2 box, so the markers are searched and not expected first.
    siz = frame.find(JPEG2000_SIZE, 0, HEADER_BYTES)
    if siz >= 0 and len(frame) >= siz + 24:
        # The SIZ segment: size of the reference grid, then the image's offset on it (ISO 15444-1,
        # A.5.1).
        right, bottom, left, top = struct.unpack(">4I", frame[siz + 8 : siz + 24])
        return bottom - top, right - left
    if not frame.startswith(JPEG_START):
        return None
    # Walk from marker to marker until a start-of-frame, which holds the size.
    position = len(JPEG_START)
    while position + 9 <= len(frame) and frame[position] == 0xFF:
        marker, length = struct.unpack(">BH", frame[position + 1 : position + 4])
        if _is_start_of_frame(marker):
            # After marker, length and precision come the number of lines and of samples a line.
            return struct.unpack(">HH", frame[position + 5 : position + 9])
        # A segment's length counts its own two bytes, and not the marker's.
        position += 2 + length
    return None


def _is_start_of_frame(marker: int) -> bool:
    """SOF0 to SOF15 of JPEG (DHT, JPG and DAC lie among them) or SOF55 of JPEG-LS."""
    return marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC))


def _native_pixels(data: pydicom.Dataset, rows: int, columns: int) -> np.ndarray | None:
    """Pixels that lie in the file as they are, without the copies that `pixel_array` makes.

    None if they are compressed, signed, of another width or length, or carry overlay bits.
    """
    allocated, used = int(data.BitsAllocated), int(data.BitsStored)
    if allocated not in (8, 16) or data.PixelRepresentation:
        return None
    if data.file_meta.TransferSyntaxUID not in UNCOMPRESSED:
        return None
    dtype = np.dtype(f"<u{allocated // 8}")
    num_bytes = rows * columns * dtype.itemsize
    # An element of odd length has a padding byte.
    if len(data.PixelData) not in (num_bytes, num_bytes + num_bytes % 2):
        return None
    stored = np.frombuffer(data.PixelData, dtype, rows * columns).reshape(rows, columns)
    # Bits above the stored ones hold an overlay in old files; `pixel_array` removes them.
    if used < allocated and int(extremes(stored)[1]) >> used:
        return None
    return stored


def _has_value(data: pydicom.Dataset, name: str) -> bool:
    return data.get(name) not in (None, "")


def _number(data: pydicom.Dataset, name: str, default: float) -> float:
    """The value of a numeric tag; the first if there are several."""
    if not _has_value(data, name):
        return default
    value = data.get(name)
    if isinstance(value, pydicom.multival.MultiValue):
        # Several windows are alternatives for display (PS3.3 C.11.2.1.2); the first one is used.
        value = value[0]
    return float(value)


def _apply_grey_scale(path: Path, data: pydicom.Dataset, stored: np.ndarray) -> GreyImage:
    """Apply the tables of a file; turn rescale and window into a window of stored values."""
    inverted = data.PhotometricInterpretation == "MONOCHROME1"
    has_modality_lut = bool(data.get("ModalityLUTSequence"))
    if has_modality_lut:
        stored = apply_modality_lut(stored, data)
        slope, intercept = 1.0, 0.0
    else:
        slope = _number(data, "RescaleSlope", 1.0)
        intercept = _number(data, "RescaleIntercept", 0.0)
    function = str(data.get("VOILUTFunction") or "LINEAR")
    windowed = _has_value(data, "WindowCenter") and _has_value(data, "WindowWidth")
    other_function = windowed and function not in ("LINEAR", "LINEAR_EXACT")
    if data.get("VOILUTSequence") or other_function:
        # The VOI transformation applies to the output of the modality's, and pydicom does not
        # combine them.
        if not has_modality_lut:
            stored = apply_modality_lut(stored, data)
        return GreyImage(apply_voi_lut(stored, data).astype(np.float32), None, inverted)
    if not windowed:
        # A negative slope turns the grey scale over, and a second inversion turns it back.
        return GreyImage(stored, None, inverted != (slope < 0))
    centre, width = _number(data, "WindowCenter", 0), _number(data, "WindowWidth", 1)
    if function == "LINEAR":
        # PS3.3 C.11.2.1.2.1: the centre is that of a pixel, the width counts both ends.
        centre, width = centre - 0.5, width - 1
    if not width > 0 or slope == 0:
        raise Rejected(
            f"{path}: window width {width:g} and rescale slope {slope:g}; expected a window that "
            "is not empty"
        )
    # The window in stored values spares a pass over the pixels.
    low = (centre - width / 2 - intercept) / slope
    high = (centre + width / 2 - intercept) / slope
    return GreyImage(stored, (low, high), inverted)
