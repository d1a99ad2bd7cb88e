"""One radiograph file as one float image: the only code that decodes pixels.

DICOM through pydicom: modality LUT or rescale, then VOI LUT or window, as DICOM PS3.3 C.11.1 and
C.11.2 say; MONOCHROME1 is inverted. PNG and JPEG through Pillow. What a header promises is read and
refused before anything is decoded.

Where the grey scale begins and ends: a window says so itself; a picture of 8 bits has 0 and 255;
everything else is stretched from its darkest to its brightest pixel.
"""

from __future__ import annotations

import struct
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import pydicom
from PIL import Image as Pillow
from PIL import ImageOps
from pydicom.encaps import get_frame
from pydicom.pixels import apply_modality_lut, apply_voi_lut
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

from mavilt_pl.errors import Rejected

LARGEST = 12_000  # pixels a side; detectors make at most 4,000 to 5,000
SMALLEST = 16
SMALL_INTEGERS = (np.uint8, np.uint16, np.int16)  # OpenCV is several times faster on them
DICOM_SUFFIXES = (".dcm", ".dicom", "")
Fit = Literal["pad", "crop"]
Pillow.MAX_IMAGE_PIXELS = LARGEST**2


@dataclass
class _Grey:
    """Pixels as stored, [H,W] of any number type, the values that become 0 and 1, and whether
    bright means air.
    """

    pixels: np.ndarray
    ends: tuple[float, float] | None = None  # None: the darkest and the brightest pixel
    inverted: bool = False
    beyond: bool = False  # whether some pixels lie beyond the ends

    def scaled(self, pixels: np.ndarray) -> np.ndarray:
        """These pixels, or the same made smaller, in [0, 1] with air dark."""
        assert self.ends is not None
        low, high = self.ends
        out = (pixels.astype(np.float32) - np.float32(low)) / np.float32(high - low)
        return (1 - out if self.inverted else out).clip(0, 1)


def _check_size(path: Path, height: int, width: int) -> None:
    if not (SMALLEST <= height <= LARGEST and SMALLEST <= width <= LARGEST):
        raise Rejected(
            f"{path}: {height} × {width} pixels; expected {SMALLEST} to {LARGEST} a side"
        )


def _extremes(pixels: np.ndarray) -> tuple[float, float]:
    if pixels.dtype in SMALL_INTEGERS:
        return cv2.minMaxLoc(pixels)[:2]
    return float(pixels.min()), float(pixels.max())


def _encoded_size(frame: bytes) -> tuple[int, int] | None:
    """Height and width in the header of a JPEG, JPEG-LS or JPEG 2000 stream; None where it is none
    of them.
    """
    siz = frame.find(b"\xff\x4f\xff\x51", 0, 1024)  # JPEG 2000: SOC, SIZ
    if siz >= 0 and len(frame) >= siz + 24:
        right, bottom, left, top = struct.unpack(">4I", frame[siz + 8 : siz + 24])
        return bottom - top, right - left
    place = 2 if frame[:2] == b"\xff\xd8" else len(frame)
    while place + 9 <= len(frame) and frame[place] == 0xFF:
        marker, length = struct.unpack(">BH", frame[place + 1 : place + 4])
        if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            return struct.unpack(">HH", frame[place + 5 : place + 9])
        place += 2 + length
    return None


def _number(data: pydicom.Dataset, name: str, default: float) -> float:
    """A numeric tag; the first of several values."""
    value = data.get(name)
    return (
        default
        if value in (None, "")
        else float(value[0] if isinstance(value, pydicom.multival.MultiValue) else value)
    )


def _native(data: pydicom.Dataset, rows: int, columns: int) -> np.ndarray | None:
    """Pixels that stand in the file as they are, without the copies that `pixel_array` makes; None
    where they do not.
    """
    bits, used = int(data.BitsAllocated), int(data.BitsStored)
    syntax = data.file_meta.TransferSyntaxUID
    if (
        bits not in (8, 16)
        or data.PixelRepresentation
        or syntax not in (ExplicitVRLittleEndian, ImplicitVRLittleEndian)
    ):
        return None
    kind = np.dtype(f"<u{bits // 8}")
    if len(data.PixelData) not in (n := rows * columns * kind.itemsize, n + n % 2):
        return None
    stored = np.frombuffer(data.PixelData, kind, rows * columns).reshape(rows, columns)
    return (
        None if used < bits and int(_extremes(stored)[1]) >> used else stored
    )  # something else in the unused bits


def _read_dicom(path: Path) -> _Grey:
    with path.open("rb") as file:  # inflating is the first thing that pydicom would do
        deflated = DeflatedExplicitVRLittleEndian.encode() in file.read(1024)
    if deflated:
        raise Rejected(
            f"{path}: a deflated data set, whose size cannot be known beforehand; save it "
            f"undeflated"
        )
    data = pydicom.dcmread(path)
    if "PixelData" not in data:
        raise Rejected(f"{path}: the DICOM file holds no pixel data")
    rows, columns = int(data.Rows), int(data.Columns)
    _check_size(path, rows, columns)
    frames, samples = int(data.get("NumberOfFrames", 1) or 1), int(data.get("SamplesPerPixel", 1))
    if frames != 1 or samples != 1:
        raise Rejected(
            f"{path}: {frames} frames of {samples} samples a pixel; expected one grey frame"
        )
    if (syntax := data.file_meta.TransferSyntaxUID).is_encapsulated and syntax != RLELossless:
        inside = _encoded_size(get_frame(data.PixelData, 0, number_of_frames=1))
        if inside not in (None, (rows, columns)):
            raise Rejected(
                f"{path}: the header says {rows} × {columns} pixels and the compressed image "
                f"{inside[0]} × {inside[1]}"
            )  # type: ignore[index]
    stored = _native(data, rows, columns)
    if stored is None:
        stored = data.pixel_array
    if stored.shape != (rows, columns):
        raise Rejected(
            f"{path}: the header says {rows} × {columns} pixels, {stored.shape} were decoded"
        )
    inverted = data.PhotometricInterpretation == "MONOCHROME1"
    if data.get("ModalityLUTSequence"):
        stored, slope, intercept = apply_modality_lut(stored, data), 1.0, 0.0
    else:
        slope, intercept = (
            _number(data, "RescaleSlope", 1.0),
            _number(data, "RescaleIntercept", 0.0),
        )
    function = str(data.get("VOILUTFunction") or "LINEAR")
    windowed = data.get("WindowCenter") not in (None, "") and data.get("WindowWidth") not in (
        None,
        "",
    )
    if data.get("VOILUTSequence") or (windowed and function not in ("LINEAR", "LINEAR_EXACT")):
        if not data.get("ModalityLUTSequence"):  # else it is applied already
            stored = apply_modality_lut(stored, data)
        return _Grey(apply_voi_lut(stored, data).astype(np.float32), None, inverted)
    if not windowed:
        return _Grey(stored, None, inverted != (slope < 0))
    centre, width = _number(data, "WindowCenter", 0), _number(data, "WindowWidth", 1)
    if (
        function == "LINEAR"
    ):  # PS3.3 C.11.2.1.2.1: the centre is of a pixel, the width counts both ends
        centre, width = centre - 0.5, width - 1
    if not width > 0 or slope == 0:
        raise Rejected(
            f"{path}: window width {width:g} and rescale slope {slope:g}; expected a window that "
            f"is not empty"
        )
    low, high = (
        (centre + side * width / 2 - intercept) / slope for side in (-1, 1)
    )  # as stored: spares a pass
    return _Grey(stored, (low, high), inverted)


def _read_picture(path: Path, least: int | None) -> _Grey:
    """`least`: that many pixels a side will do. A JPEG is then decoded at a half, a quarter or an
    eighth.
    """
    with Pillow.open(
        path, formats=("PNG", "JPEG")
    ) as opened:  # others start programs, such as PostScript's
        _check_size(path, opened.height, opened.width)
        if least is not None and opened.format == "JPEG":
            opened.draft(None, (least, least))
        picture = ImageOps.exif_transpose(opened)
        if picture.mode in ("I;16", "I;16B", "I", "F"):
            return _Grey(np.asarray(picture))
        if picture.mode in (
            "RGBA",
            "LA",
            "PA",
        ):  # transparency is not radiology: the grey under it counts
            picture = picture.convert("RGBA").convert("RGB")
        return _Grey(np.asarray(picture.convert("L")), (0.0, 255.0))


def _read(path: Path, least: int | None) -> _Grey:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # of files that bend the standard: what matters is refused or read
            grey = (
                _read_dicom(path)
                if path.suffix.lower() in DICOM_SUFFIXES
                else _read_picture(path, least)
            )
    except (Rejected, KeyboardInterrupt, SystemExit):
        raise
    except FileNotFoundError:
        raise Rejected(f"{path}: the file is missing") from None
    # Decoders raise anything on damaged files; the RLE one panics, which is no Exception.
    except BaseException as error:
        raise Rejected(
            f"{path}: not readable ({type(error).__name__}: {str(error)[:120]})"
        ) from None
    darkest, brightest = _extremes(grey.pixels)
    grey.ends = grey.ends or (darkest, brightest)
    low, high = sorted(grey.ends)
    if not np.isfinite(darkest + brightest) or min(brightest, high) <= max(darkest, low):
        raise Rejected(f"{path}: every pixel has the same value, or some are not numbers")
    grey.beyond = darkest < low or brightest > high
    return grey


def read_radiograph(path: Path) -> np.ndarray:
    """The image of a file, float32 [H,W] in [0,1], air dark and bone bright.

    Raises `Rejected`, naming the file and the reason, for whatever is not one whole grey
    radiograph.
    """
    grey = _read(path, None)
    return grey.scaled(grey.pixels)


def read_sized(path: Path, size: int, fit: Fit = "pad") -> np.ndarray:
    """`resize(read_radiograph(path), size, fit)` to within a grey level or two, and faster: a large
    JPEG is decoded no finer than twice what is wanted, and what is done to each pixel is done to
    the small image. uint8 [size,size].
    """
    grey = _read(path, 2 * size)
    return _framed(grey.scaled(_shrunk(_reduced(grey, 2 * size), size, fit)), size)


def _reduced(grey: _Grey, least: int) -> np.ndarray:
    """Clipped to the window, so that averages do not see what lies beyond it, and reduced to means
    of k × k pixels, for the largest k that divides both sides and leaves `least` pixels of the
    shorter one.

    Whole factors on whole numbers are several times faster than the area resize of floats that
    finishes the work; strips of rows stay in the cache.
    """
    pixels, (low, high) = grey.pixels, sorted(grey.ends or ())
    if pixels.dtype not in SMALL_INTEGERS:
        return pixels.astype(np.float32).clip(low, high)
    kind = np.iinfo(pixels.dtype)  # the window's ends, to the next whole numbers outwards
    lowest, highest = (
        int(min(max(end, kind.min), kind.max)) for end in (np.floor(low), np.ceil(high))
    )
    height, width = pixels.shape
    k = next(
        (k for k in range(min(height, width) // least, 1, -1) if height % k == width % k == 0), 1
    )
    if k == 1 and not grey.beyond:
        return pixels
    out = np.empty((height // k, width // k), pixels.dtype)
    rows = k * max(64 // k, 1)
    for top in range(0, height, rows):
        strip = (
            pixels[top : top + rows].clip(lowest, highest)
            if grey.beyond
            else pixels[top : top + rows]
        )
        small = (width // k, len(strip) // k)
        out[top // k : top // k + small[1]] = cv2.resize(strip, small, interpolation=cv2.INTER_AREA)
    return out


def resize(image: np.ndarray, size: int, fit: Fit = "pad") -> np.ndarray:
    """float [H,W] in [0,1] → uint8 [size,size] by area averaging; the aspect is kept by black
    padding or a centre crop.
    """
    return _framed(_shrunk(image, size, fit), size)


def _shrunk(image: np.ndarray, size: int, fit: Fit) -> np.ndarray:
    """Sized so that the longer side (pad) or the shorter (crop) is `size`."""
    height, width = image.shape
    scale = size / (max if fit == "pad" else min)(height, width)
    tall, wide = max(1, round(height * scale)), max(1, round(width * scale))
    return cv2.resize(
        image, (wide, tall), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    )


def _framed(image: np.ndarray, size: int) -> np.ndarray:
    """In the middle of a black square: uint8 [size,size]; what stands out is cut."""
    tall, wide = image.shape
    out = np.zeros((size, size), np.float32)
    top, left = (size - tall) // 2, (size - wide) // 2
    source = image[max(-top, 0) : max(-top, 0) + size, max(-left, 0) : max(-left, 0) + size]
    out[
        max(top, 0) : max(top, 0) + source.shape[0], max(left, 0) : max(left, 0) + source.shape[1]
    ] = source
    return (out.clip(0, 1) * 255).round().astype(np.uint8)
