"""Decode the pixels of a DICOM radiograph.

What the header promises is checked before anything is decoded: the kind of image, its size, how
many bits a pixel has. See `mavilt_pl.data.dicom_grey_scale` for what follows.
"""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import get_frame
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

from mavilt_pl.data.dicom_grey_scale import apply_grey_scale
from mavilt_pl.data.grey_image import GreyImage, check_size, extremes
from mavilt_pl.errors import Rejected

# Modalities of projection radiography (PS3.3 C.7.3.1.1.1), of a scanned film (SC, OT), and of
# files whose anonymisation removed the tag.
MODALITIES = ("CR", "DX", "DR", "RG", "RF", "XR", "SC", "OT", "")
GREY = ("MONOCHROME1", "MONOCHROME2")

UNCOMPRESSED = (ExplicitVRLittleEndian, ImplicitVRLittleEndian)
BEGINNING_BYTES = 2**16  # where the elements of patient and equipment stand
HEADER_BYTES = 1024  # where the transfer syntax and a stream's size stand
JPEG2000_SIZE = b"\xff\x4f\xff\x51"  # the markers SOC and SIZ
JPEG_START = b"\xff\xd8"
ITEM_TAG = b"\xfe\xff\x00\xe0"  # compressed pixels begin with an item (PS3.5 A.4)


def read_dicom(path: Path) -> GreyImage:
    """The stored pixels of a DICOM file with their window.

    Raises:
        Rejected: the file is not one grey frame, or its header and its pixels disagree. pydicom and
            its decoders raise errors of their own on damaged files.
    """
    _reject_deflated(path)
    # `force`: old scanners and anonymisers write neither preamble nor file meta information.
    return grey_of_dataset(path, pydicom.dcmread(path, force=True))


def header_values(path: Path, keywords: Sequence[str]) -> dict[str, str]:
    """Values of a header's first elements; "" for one that is not there or cannot be read.

    Only the beginning of the file is read, whatever its elements promise.

    Args:
        path: of a regular file.
        keywords: of elements, such as PatientSex.
    """
    with path.open("rb") as file:
        beginning = file.read(BEGINNING_BYTES)
    values = dict.fromkeys(keywords, "")
    # Inflating it is what `_reject_deflated` refuses as well.
    if DeflatedExplicitVRLittleEndian.encode() in beginning[:HEADER_BYTES]:
        return values
    try:
        # pydicom warns of every oddity; an image that matters is refused when it is decoded.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            data = pydicom.dcmread(
                io.BytesIO(beginning),
                force=True,
                stop_before_pixels=True,
                specific_tags=[*keywords],
            )
            return {keyword: str(data.get(keyword) or "") for keyword in keywords}
    except Exception:
        return values


def grey_of_dataset(path: Path | str, data: pydicom.Dataset) -> GreyImage:
    """The stored pixels of a DICOM data set with their window.

    Args:
        path: of its file, or a name of it, for messages.
        data: missing tags of its encoding are filled in.

    Raises:
        Rejected: as `read_dicom`.
    """
    if "PixelData" not in data:
        raise Rejected(f"{path}: no pixel data in it; expected a DICOM radiograph")
    _infer_transfer_syntax(path, data)
    # From here to the decoding, every check is of the header alone. A header that promises 65,535²
    # pixels would otherwise cost gigabytes before it is refused.
    rows, columns = int(data.Rows), int(data.Columns)
    check_size(path, rows, columns)
    _check_kind(path, data)
    _check_bits(path, data)
    _check_encoded_size(path, data, rows, columns)
    stored = _native_pixels(data, rows, columns)
    if stored is None:
        stored = data.pixel_array
    if stored.shape != (rows, columns):
        raise Rejected(
            f"{path}: the header says {rows} × {columns} pixels, {stored.shape} were decoded"
        )
    return apply_grey_scale(path, data, stored)


def _reject_deflated(path: Path) -> None:
    # Inflating is the first thing that pydicom would do, whatever the size of the result.
    with path.open("rb") as file:
        deflated = DeflatedExplicitVRLittleEndian.encode() in file.read(HEADER_BYTES)
    if deflated:
        raise Rejected(
            f"{path}: a deflated data set, whose size cannot be known beforehand; save it "
            "undeflated"
        )


def _infer_transfer_syntax(path: Path | str, data: pydicom.Dataset) -> None:
    """Fill in a transfer syntax that the file does not name, from how its tags are written."""
    if not isinstance(getattr(data, "file_meta", None), FileMetaDataset):
        data.file_meta = FileMetaDataset()
    if data.file_meta.get("TransferSyntaxUID"):
        return
    if data.PixelData[: len(ITEM_TAG)] == ITEM_TAG:
        raise Rejected(
            f"{path}: compressed pixels and no Transfer Syntax UID that says how; write it with "
            "the tag (0002,0010)"
        )
    # pydicom has found out from the bytes of the tags.
    is_implicit, is_little_endian = data.original_encoding
    syntax = ImplicitVRLittleEndian if is_implicit else ExplicitVRLittleEndian
    if is_little_endian is False:
        syntax = ExplicitVRBigEndian
    data.file_meta.TransferSyntaxUID = syntax


def _check_kind(path: Path | str, data: pydicom.Dataset) -> None:
    """Refuse what is not one grey image of projection radiography."""
    modality = str(data.get("Modality") or "").strip().upper()
    if modality not in MODALITIES:
        raise Rejected(
            f"{path}: modality {modality}; expected a radiograph ({', '.join(MODALITIES[:-1])})"
        )
    # The element may be present and empty.
    frames = int(data.get("NumberOfFrames", 1) or 1)
    samples = int(data.get("SamplesPerPixel", 1))
    if frames != 1 or samples != 1:
        raise Rejected(
            f"{path}: {frames} frames of {samples} samples a pixel; expected one grey frame"
        )
    # Indices into a palette are no grey levels.
    photometric = str(data.get("PhotometricInterpretation") or "nothing")
    if photometric not in GREY:
        raise Rejected(
            f"{path}: photometric interpretation {photometric}; expected {' or '.join(GREY)}"
        )


def _check_bits(path: Path | str, data: pydicom.Dataset) -> None:
    """Refuse bits that do not fit into one another, or that a codec would put elsewhere."""
    allocated, used, highest = _bits(data)
    if allocated not in (8, 16, 32) or not 0 < used <= allocated or highest not in range(allocated):
        raise Rejected(
            f"{path}: {allocated} bits a pixel, {used} of them stored, the highest is bit "
            f"{highest}; expected 8, 16 or 32 and the stored ones among them"
        )
    if highest + 1 == used:
        return
    if highest + 1 < used or data.file_meta.TransferSyntaxUID not in UNCOMPRESSED:
        raise Rejected(
            f"{path}: {used} bits stored and the highest is bit {highest}; expected bit {used - 1}"
        )


def _bits(data: pydicom.Dataset) -> tuple[int, int, int]:
    """Bits allocated and stored, and the highest bit, which is the last stored one by default."""
    allocated, used = int(data.BitsAllocated), int(data.BitsStored)
    highest = data.get("HighBit")
    return allocated, used, used - 1 if highest in (None, "") else int(highest)


def _check_encoded_size(path: Path | str, data: pydicom.Dataset, rows: int, columns: int) -> None:
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
    allocated, used, highest = _bits(data)
    shift = highest + 1 - used
    if data.file_meta.TransferSyntaxUID not in UNCOMPRESSED:
        return None
    if not shift and (allocated == 32 or data.PixelRepresentation):
        return None
    dtype = np.dtype(f"<u{allocated // 8}")
    num_bytes = rows * columns * dtype.itemsize
    # An element of odd length has a padding byte.
    if len(data.PixelData) not in (num_bytes, num_bytes + num_bytes % 2):
        return None
    stored = np.frombuffer(data.PixelData, dtype, rows * columns).reshape(rows, columns)
    if shift:
        # Files of old scanners keep the value in the upper bits (PS3.5 8.1.1), which `pixel_array`
        # does not look at.
        return _shifted_down(stored, shift, used, signed=bool(data.PixelRepresentation))
    # Bits above the stored ones hold an overlay in old files; `pixel_array` removes them.
    if used < allocated and int(extremes(stored)[1]) >> used:
        return None
    return stored


def _shifted_down(cells: np.ndarray, shift: int, used: int, signed: bool) -> np.ndarray:
    """The `used` bits above the lowest `shift` ones, as numbers."""
    values = cells >> shift & (1 << used) - 1
    if not signed:
        return values
    sign = 1 << (used - 1)
    return (values.astype(np.int64) ^ sign) - sign
