"""Radiographs that are in memory already: arrays, Pillow images and pydicom datasets."""

from __future__ import annotations

import copy

import numpy as np
import pydicom
from PIL import Image as Pillow
from PIL import ImageOps

from mavilt_pl.data.dicom import grey_of_dataset
from mavilt_pl.data.grey_image import GreyImage, check_size
from mavilt_pl.errors import Rejected

ImageObject = np.ndarray | Pillow.Image | pydicom.Dataset
DEEP_MODES = ("I;16", "I;16B", "I;16L", "I;16N", "I", "F")  # Pillow's modes of more than 8 bits
CHANNELS = (1, 3, 4)  # grey, RGB, RGBA
EXPECTED = "expected one image: [H,W], or [H,W,C] with 1, 3 or 4 channels of uint8"


def describe(image: ImageObject) -> str:
    """An object's kind and size, for messages.

    >>> describe(np.zeros((4, 6), np.uint8))
    'array of uint8 [4,6]'
    """
    if isinstance(image, np.ndarray):
        return f"array of {image.dtype} [{','.join(map(str, image.shape))}]"
    if isinstance(image, Pillow.Image):
        return f"Pillow image of mode {image.mode}, {image.height} × {image.width}"
    if not isinstance(image, pydicom.Dataset):
        raise Rejected(
            f"found a {type(image).__name__}; expected a path, an array, a Pillow image or a "
            "pydicom dataset"
        )
    return f"DICOM dataset {image.get('SOPInstanceUID', 'without a UID')}"


def grey_of_object(image: ImageObject) -> GreyImage:
    """The grey image of an object, whose window may be unknown.

    Args:
        image: uint8 arrays and 8-bit pictures are 0 for black and 255 for white, floats within
            [0, 1] 0 and 1. Other numbers are stretched from their lowest to their highest.

    Raises:
        Rejected: it is not one grey image.
    """
    if isinstance(image, pydicom.Dataset):
        # Missing tags are filled in, and the caller's dataset must stay as it is.
        return grey_of_dataset(describe(image), copy.copy(image))
    if isinstance(image, Pillow.Image):
        # A lazily opened file is decoded only below.
        check_size(describe(image), image.height, image.width)
        return grey_of_picture(image)
    return _grey_of_array(image)


def grey_of_picture(picture: Pillow.Image) -> GreyImage:
    """The grey image of a Pillow image, turned as its EXIF orientation says."""
    # Photographs of films carry their rotation in EXIF.
    upright = ImageOps.exif_transpose(picture)
    # No window is known, so these are stretched to their own extremes.
    if upright.mode in DEEP_MODES:
        return GreyImage(np.asarray(upright))
    # Transparency is not radiology: the grey under it counts.
    return GreyImage(np.asarray(upright.convert("L")), (0.0, 255.0))


def _grey_of_array(image: np.ndarray) -> GreyImage:
    # Before anything is changed: messages name what the caller gave.
    name = describe(image)
    if image.ndim == 3 and image.shape[2] == 1:
        image = image[..., 0]
    # Colours are weighted as Pillow does for files, so both give the same grey.
    if image.ndim == 3 and image.shape[2] in CHANNELS and image.dtype == np.uint8:
        check_size(name, *image.shape[:2])
        return grey_of_picture(Pillow.fromarray(np.ascontiguousarray(image)))
    # [B,H,W] could be meant as a batch or as channels; guessing would mix patients.
    if image.ndim != 2 or image.dtype.kind not in "uif":
        raise Rejected(f"{name}; {EXPECTED}; several images go into a list")
    check_size(name, *image.shape)
    # OpenCV takes neither negative strides nor the byte order of other machines.
    pixels = np.ascontiguousarray(image, image.dtype.newbyteorder("="))
    # As an 8-bit picture: its black and white are known.
    if pixels.dtype == np.uint8:
        return GreyImage(pixels, (0.0, 255.0))
    if pixels.dtype.kind == "f":
        # OpenCV resizes no float16.
        pixels = pixels.astype(np.float32)
        # The range of images in most libraries; any other has no known black and white.
        if pixels.min() >= 0 and pixels.max() <= 1:
            return GreyImage(pixels, (0.0, 1.0))
    return GreyImage(pixels)
