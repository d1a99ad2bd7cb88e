"""One radiograph file as one float image: the only code that decodes pixels.

DICOM through pydicom (rescale or modality LUT, window or VOI LUT, MONOCHROME1 inverted), PNG and JPEG through Pillow.
Sizes are read from the header and refused before anything is decoded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import pydicom
from PIL import Image as Pillow
from PIL import ImageOps
from pydicom.pixels import apply_modality_lut, apply_voi_lut

from mavilt_pl.data.study import Rejected

LARGEST = 12_000  # pixels a side; detectors make at most 4,000 to 5,000
SMALLEST = 16
Fit = Literal["pad", "crop"]


def _check_size(path: Path, height: int, width: int) -> None:
    if not (SMALLEST <= height <= LARGEST and SMALLEST <= width <= LARGEST):
        raise Rejected(f"{path}: {height} × {width} pixels; expected {SMALLEST} to {LARGEST} a side")


def _read_dicom(path: Path) -> np.ndarray:
    data = pydicom.dcmread(path)
    if "PixelData" not in data:
        raise Rejected(f"{path}: the DICOM file holds no pixel data")
    _check_size(path, int(data.Rows), int(data.Columns))
    frames, samples = int(data.get("NumberOfFrames", 1) or 1), int(data.get("SamplesPerPixel", 1))
    if frames != 1 or samples != 1:
        raise Rejected(f"{path}: {frames} frames of {samples} samples a pixel; expected one grey frame")
    pixels = apply_voi_lut(apply_modality_lut(data.pixel_array, data), data).astype(np.float32)
    return -pixels if data.PhotometricInterpretation == "MONOCHROME1" else pixels


def _read_picture(path: Path) -> np.ndarray:
    with Pillow.open(path) as opened:
        _check_size(path, opened.height, opened.width)
        picture = ImageOps.exif_transpose(opened)
        if picture.mode in ("I;16", "I;16B", "I", "F"):
            return np.asarray(picture, dtype=np.float32)
        if picture.mode in ("RGBA", "LA", "PA"):  # transparency is not radiology: the grey under it counts
            picture = picture.convert("RGBA").convert("RGB")
        return np.asarray(picture.convert("L"), dtype=np.float32)


def read_radiograph(path: Path) -> np.ndarray:
    """The image of a file, float32 [H,W] in [0,1], air dark and bone bright.

    Raises `Rejected`, naming the file and the reason, for whatever is not one whole grey radiograph.
    """
    try:
        pixels = _read_dicom(path) if path.suffix.lower() in (".dcm", ".dicom", "") else _read_picture(path)
    except Rejected:
        raise
    except FileNotFoundError:
        raise Rejected(f"{path}: the file is missing") from None
    except Exception as error:  # decoders raise anything on damaged files
        raise Rejected(f"{path}: not readable ({type(error).__name__}: {str(error)[:120]})") from None
    low, high = float(np.nanmin(pixels)), float(np.nanmax(pixels))
    if not np.isfinite(low + high) or high <= low:
        raise Rejected(f"{path}: every pixel has the same value, or some are not numbers")
    return (pixels - low) / (high - low)


def resize(image: np.ndarray, size: int, fit: Fit = "pad") -> np.ndarray:
    """float [H,W] in [0,1] → uint8 [size,size] by area averaging; the aspect is kept by black padding or a centre crop."""
    height, width = image.shape
    scale = size / (max if fit == "pad" else min)(height, width)
    tall, wide = max(1, round(height * scale)), max(1, round(width * scale))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    sized = cv2.resize(image, (wide, tall), interpolation=method)
    out = np.zeros((size, size), np.float32)
    top, left = (size - tall) // 2, (size - wide) // 2
    source = sized[max(-top, 0) : max(-top, 0) + size, max(-left, 0) : max(-left, 0) + size]
    out[max(top, 0) : max(top, 0) + source.shape[0], max(left, 0) : max(left, 0) + source.shape[1]] = source
    return (out.clip(0, 1) * 255).round().astype(np.uint8)
