"""Read one radiograph as one float image: the only code that decodes pixels.

DICOM through pydicom (see `mavilt_pl.data.dicom`), PNG and JPEG through Pillow, and what is in
memory already (see `mavilt_pl.data.image_objects`). Sizes are checked before anything is decoded.

The grey scale: a window says what is black and white; an 8-bit picture has 0 and 255; everything
else is stretched from its darkest to its brightest pixel.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from PIL import Image as Pillow

from mavilt_pl.data.dicom import read_dicom
from mavilt_pl.data.grey_image import LARGEST_SIDE, SMALL_INTEGERS, GreyImage, check_size
from mavilt_pl.data.image_objects import ImageObject, describe, grey_of_object, grey_of_picture
from mavilt_pl.errors import Rejected

DICOM_SUFFIXES = (".dcm", ".dicom", "")
# 64 rows of 4,000 pixels of 16 bits are half a megabyte.
STRIP_ROWS = 64  # rows reduced at a time, so that they stay in the processor's cache
# A detector's 4,300 × 4,300 pixels of 16 bits are 37 MB.
LARGEST_FILE = 2**29  # bytes
Fit = Literal["pad", "crop"]
Pillow.MAX_IMAGE_PIXELS = LARGEST_SIDE**2


def read_radiograph(source: Path | ImageObject) -> np.ndarray:
    """The image of a file or an object, float32 [H,W] in [0, 1], air dark and bone bright.

    Raises:
        Rejected: it is not one whole grey radiograph; the message names it and the reason.
    """
    grey = _read(source)
    return grey.scale(grey.pixels)


def read_sized(source: Path | ImageObject, size: int, fit: Fit = "pad") -> np.ndarray:
    """The image of a file or an object, uint8 [size,size].

    It is `resize(read_radiograph(source), size, fit)` to within a grey level or two, and faster: a
    large JPEG is decoded at no more than twice the size, and the grey scale is applied to the small
    image.

    Raises:
        Rejected: it is not one whole grey radiograph; the message names it and the reason.
    """
    # Twice the size leaves the area resize enough pixels to average.
    grey = _read(source, 2 * size)
    return _frame(grey.scale(_resize(_reduce(grey, 2 * size), size, fit)), size)


def resize(image: np.ndarray, size: int, fit: Fit = "pad") -> np.ndarray:
    """Resize by area averaging, with black padding or a centre crop.

    Args:
        image: float [H,W] in [0, 1].
        size: pixels along each side of the result.
        fit: what keeps the aspect.

    Returns:
        uint8 [size,size].

    >>> resize(np.ones((4, 8), np.float32), 4).tolist()[0], resize(np.ones((4, 8)), 4, "crop").min()
    ([0, 0, 0, 0], np.uint8(255))
    """
    return _frame(_resize(image, size, fit), size)


def _read(source: Path | ImageObject, min_side: int | None = None) -> GreyImage:
    """Decode a file, or take what is decoded already.

    Args:
        source: path of a DICOM, PNG or JPEG file, or an object.
        min_side: pixels along the shorter side that are enough; None for the full size.
    """
    name = source if isinstance(source, Path) else describe(source)
    try:
        # Warnings are of files that bend the standard: what matters is refused or read.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if isinstance(source, Path):
                grey = _read_file(source, min_side)
            else:
                grey = grey_of_object(source)
    except (Rejected, KeyboardInterrupt, SystemExit):
        raise
    except FileNotFoundError:
        raise Rejected(f"{name}: the file is missing") from None
    # Decoders raise anything on damaged files; the RLE one panics, which is no Exception.
    except BaseException as error:
        raise Rejected(
            f"{name}: not readable ({type(error).__name__}: {str(error)[:120]})"
        ) from None
    return grey.with_window(name)


def _read_file(path: Path, min_side: int | None) -> GreyImage:
    # A pipe would keep the reader waiting, and a device never ends.
    if path.exists() and not path.is_file():
        kind = "a folder" if path.is_dir() else "no regular file"
        raise Rejected(f"{path} is {kind}; expected a DICOM, PNG or JPEG file")
    num_bytes = path.stat().st_size
    if num_bytes > LARGEST_FILE:
        raise Rejected(f"{path}: {num_bytes:,} bytes; expected at most {LARGEST_FILE:,}")
    if _is_dicom(path):
        return read_dicom(path)
    return _read_picture(path, min_side)


def _is_dicom(path: Path) -> bool:
    """Whether a file is DICOM by its name, or by the four letters after its preamble."""
    if path.suffix.lower() in DICOM_SUFFIXES:
        return True
    # Scanners also write .ima and .dic, and the last part of a UID looks like a suffix.
    with path.open("rb") as file:
        file.seek(128)
        return file.read(4) == b"DICM"


def _read_picture(path: Path, min_side: int | None) -> GreyImage:
    """Decode a PNG or JPEG; a large JPEG at a half, a quarter or an eighth."""
    # Pillow's readers of other formats start programs, such as a PostScript interpreter.
    with Pillow.open(path, formats=("PNG", "JPEG")) as opened:
        check_size(path, opened.height, opened.width)
        if min_side is not None and opened.format == "JPEG":
            # The JPEG decoder itself reduces by 2, 4 or 8, which skips most of the inverse
            # transform.
            opened.draft(None, (min_side, min_side))
        return grey_of_picture(opened)


def _reduction_factor(height: int, width: int, min_side: int) -> int:
    """The largest factor that divides both sides and leaves `min_side` pixels of the shorter.

    >>> _reduction_factor(1024, 1536, 256), _reduction_factor(1025, 1536, 256)
    (4, 1)
    """
    for factor in range(min(height, width) // min_side, 1, -1):
        if height % factor == 0 and width % factor == 0:
            return factor
    return 1


def _reduce(grey: GreyImage, min_side: int) -> np.ndarray:
    """Clip to the window and average k × k pixels, for the largest whole k that fits.

    Clipping comes first, so that averages do not contain what lies outside the window. Whole
    factors on whole numbers are several times faster than the area resize of floats that follows.
    """
    pixels = grey.pixels
    assert grey.window is not None
    low, high = sorted(grey.window)
    if pixels.dtype not in SMALL_INTEGERS:
        return pixels.astype(np.float32).clip(low, high)
    height, width = pixels.shape
    factor = _reduction_factor(height, width, min_side)
    if factor == 1 and not grey.exceeds_window:
        return pixels
    # The window's ends go to the next whole numbers outwards that the pixels' type can hold.
    limits = np.iinfo(pixels.dtype)
    lowest = int(min(max(np.floor(low), limits.min), limits.max))
    highest = int(min(max(np.ceil(high), limits.min), limits.max))
    reduced = np.empty((height // factor, width // factor), pixels.dtype)
    # Whole blocks of k rows, so that the strips together equal one reduction of the image.
    strip_rows = factor * max(STRIP_ROWS // factor, 1)
    for top in range(0, height, strip_rows):
        strip = pixels[top : top + strip_rows]
        if grey.exceeds_window:
            strip = strip.clip(lowest, highest)
        first, count = top // factor, len(strip) // factor
        reduced[first : first + count] = cv2.resize(
            strip, (width // factor, count), interpolation=cv2.INTER_AREA
        )
    return reduced


def _resize(image: np.ndarray, size: int, fit: Fit) -> np.ndarray:
    """Resize so that the longer side (pad) or the shorter (crop) is `size`."""
    height, width = image.shape
    side = max(height, width) if fit == "pad" else min(height, width)
    scale = size / side
    new_height, new_width = max(1, round(height * scale)), max(1, round(width * scale))
    # Area averaging does not alias when an image shrinks; when it grows it would show blocks.
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return cv2.resize(image, (new_width, new_height), interpolation=interpolation)


def _frame(image: np.ndarray, size: int) -> np.ndarray:
    """Centre an image on a black square, uint8 [size,size]; crop what exceeds it."""
    height, width = image.shape
    framed = np.zeros((size, size), np.float32)
    top, left = (size - height) // 2, (size - width) // 2  # negative if the image exceeds it
    first_row, first_column = max(-top, 0), max(-left, 0)
    source = image[first_row : first_row + size, first_column : first_column + size]
    rows, columns = source.shape
    top, left = max(top, 0), max(left, 0)
    framed[top : top + rows, left : left + columns] = source
    return (framed.clip(0, 1) * 255).round().astype(np.uint8)
