"""The grey scale of a DICOM radiograph, by the transformations of the standard.

Modality LUT or rescale, then VOI LUT or window, as DICOM PS3.3 C.11.1 and C.11.2 say; MONOCHROME1
is inverted. Padding is background, and takes no part in the scale (C.7.5.1.1.2).
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pydicom
from pydicom.multival import MultiValue
from pydicom.pixels import apply_modality_lut, apply_voi_lut

from mavilt_pl.data.grey_image import GreyImage, extremes
from mavilt_pl.errors import Rejected

# A window of which an image takes up less leaves fewer than 8 of the 256 grey levels of a corpus.
LEAST_SHARE = 1 / 32


def apply_grey_scale(path: Path | str, data: pydicom.Dataset, stored: np.ndarray) -> GreyImage:
    """Apply the tables of a file; turn rescale and window into a window of stored values.

    A window that shows nothing of the image is left out: of no width, not a number, outside the
    image's values, or so wide that the image would be flat. Then the next window counts
    (alternatives for display, PS3.3 C.11.2.1.2), or the image's own range.

    Args:
        path: of the file, for messages.
        data: its header.
        stored: [H,W], its decoded pixels.

    Raises:
        Rejected: all pixels are padding.
    """
    # A negative slope turns the grey scale over, and a second inversion turns it back.
    slope = _numbers(data, "RescaleSlope", 1.0)[0]
    is_inverted = data.PhotometricInterpretation == "MONOCHROME1"
    stored = _blacken_padding(path, data, stored, air_is_high=is_inverted != (slope < 0))
    has_modality_lut = bool(data.get("ModalityLUTSequence"))
    if has_modality_lut:
        stored = apply_modality_lut(stored, data)
        slope, intercept = 1.0, 0.0
    else:
        intercept = _numbers(data, "RescaleIntercept", 0.0)[0]
    function = str(data.get("VOILUTFunction") or "LINEAR")
    is_linear = function in ("LINEAR", "LINEAR_EXACT")
    chosen = _choose_window(data, stored, slope, intercept, function)
    if data.get("VOILUTSequence") or (chosen is not None and not is_linear):
        # The VOI transformation applies to the output of the modality's, and pydicom does not
        # combine them.
        values = stored if has_modality_lut else apply_modality_lut(stored, data)
        shown = apply_voi_lut(values, data, index=chosen[0] if chosen else 0)
        return GreyImage(shown.astype(np.float32), None, is_inverted)
    if chosen is None:
        return GreyImage(stored, None, is_inverted != (slope < 0))
    return GreyImage(stored, chosen[1], is_inverted)


def _numbers(data: pydicom.Dataset, name: str, default: float) -> list[float]:
    """The values of a numeric tag; the default alone if it is missing, empty or no number."""
    value = data.get(name)
    values = list(value) if isinstance(value, MultiValue) else [value]
    numbers = []
    for one in values:
        number = math.nan if one in (None, "") else float(one)
        numbers.append(number)
    return numbers if any(map(math.isfinite, numbers)) else [default]


def _choose_window(
    data: pydicom.Dataset, stored: np.ndarray, slope: float, intercept: float, function: str
) -> tuple[int, tuple[float, float]] | None:
    """The first window that shows the image: its number, and its ends in stored values.

    Stored values spare a pass over the pixels.
    """
    if slope == 0 or not math.isfinite(slope * intercept):
        return None
    range_ = extremes(stored)
    centres = _numbers(data, "WindowCenter", math.nan)
    widths = _numbers(data, "WindowWidth", math.nan)
    for number, (centre, width) in enumerate(zip(centres, widths)):
        if function == "LINEAR":
            # PS3.3 C.11.2.1.2.1: the centre is that of a pixel, the width counts both ends.
            centre, width = centre - 0.5, width - 1
        low = (centre - width / 2 - intercept) / slope
        high = (centre + width / 2 - intercept) / slope
        if width > 0 and _shows(sorted((low, high)), range_):
            return number, (low, high)
    return None


def _shows(window: list[float], range_: tuple[float, float]) -> bool:
    """Whether an image of these extremes has a contrast in a window."""
    shown = min(range_[1], window[1]) - max(range_[0], window[0])
    # False for infinite ends and for NaN.
    return shown > 0 and shown / (window[1] - window[0]) >= LEAST_SHARE


def _blacken_padding(
    path: Path | str, data: pydicom.Dataset, stored: np.ndarray, air_is_high: bool
) -> np.ndarray:
    """Give padding the darkest value of the image itself.

    Args:
        path: of the file, for the message.
        data: its header.
        stored: [H,W].
        air_is_high: the highest stored value is black.
    """
    value = data.get("PixelPaddingValue")
    if value in (None, ""):
        return stored
    limit = data.get("PixelPaddingRangeLimit")
    low, high = sorted((int(value), int(value if limit in (None, "") else limit)))
    is_padding = (stored >= low) & (stored <= high)
    if not is_padding.any():
        return stored
    image = stored[~is_padding]
    if not image.size:
        raise Rejected(f"{path}: every pixel is padding (value {value})")
    return np.where(is_padding, image.max() if air_is_high else image.min(), stored)
