"""A grey image as a file stores it, with the values that become black and white."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from mavilt_pl.errors import Rejected

LARGEST_SIDE = 12_000  # pixels; detectors have at most 4,000 to 5,000
# A square of 8,192. Decoding needs up to about 8 bytes a pixel, in every worker.
LARGEST_AREA = 2**26  # pixels
SMALLEST_SIDE = 16
SMALL_INTEGERS = (np.uint8, np.uint16, np.int16)  # OpenCV is several times faster on them


def extremes(pixels: np.ndarray) -> tuple[float, float]:
    """The lowest and the highest value.

    >>> extremes(np.array([[3, 1], [2, 8]], np.uint8))
    (1.0, 8.0)
    """
    if pixels.dtype in SMALL_INTEGERS:
        return cv2.minMaxLoc(pixels)[:2]
    return float(pixels.min()), float(pixels.max())


def check_size(path: Path | str, height: int, width: int) -> None:
    """Refuse an image whose sides cannot be those of a radiograph.

    Raises:
        Rejected: a side is below `SMALLEST_SIDE` or above `LARGEST_SIDE`, or the image has more
            pixels than `LARGEST_AREA`.
    """
    for side in (height, width):
        if not SMALLEST_SIDE <= side <= LARGEST_SIDE:
            raise Rejected(
                f"{path}: {height} × {width} pixels; expected {SMALLEST_SIDE} to {LARGEST_SIDE} a "
                "side"
            )
    if height * width > LARGEST_AREA:
        raise Rejected(
            f"{path}: {height} × {width} pixels; expected at most {LARGEST_AREA:,} in all"
        )


@dataclass(frozen=True)
class GreyImage:
    """Pixels as stored, and how they map to [0, 1] with air dark.

    Args:
        pixels: [H,W] of any number type.
        window: the stored values that become 0 and 1; None for the darkest and brightest pixel.
            The first is the greater one if the rescale slope is negative.
        inverted: bright means air.
        exceeds_window: some pixels lie outside the window.
    """

    pixels: np.ndarray
    window: tuple[float, float] | None = None
    inverted: bool = False
    exceeds_window: bool = False

    def with_window(self, path: Path | str) -> GreyImage:
        """The same image with its window filled in.

        Raises:
            Rejected: the image has a single value, or values that are not finite.
        """
        # Checked on stored values: a constant image, or one that its window makes constant, would
        # divide by zero or carry no information.
        darkest, brightest = extremes(self.pixels)
        window = self.window or (darkest, brightest)
        low, high = sorted(window)
        # One sum for both ends: infinity and NaN survive it.
        finite = np.isfinite(darkest + brightest)
        if not finite or min(brightest, high) <= max(darkest, low):
            raise Rejected(f"{path}: every pixel has the same value, or some are not numbers")
        return replace(self, window=window, exceeds_window=darkest < low or brightest > high)

    def scale(self, pixels: np.ndarray) -> np.ndarray:
        """Map these pixels, or the same ones resized, to float32 in [0, 1] with air dark."""
        assert self.window is not None
        low, high = self.window
        scaled = (pixels.astype(np.float32) - np.float32(low)) / np.float32(high - low)
        if self.inverted:
            scaled = 1 - scaled
        return scaled.clip(0, 1)
