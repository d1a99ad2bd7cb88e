"""Generated radiographs as files that say, wherever they go, that they are synthetic."""

from __future__ import annotations

import datetime
from pathlib import Path

import numpy as np
import pydicom
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

from mavilt_pl import __version__
from mavilt_pl.errors import UserError
from mavilt_pl.parallel.atomic_write import atomic_open

BANNER = "SYNTHETIC"
SHARE = 0.9  # of the image's width that the banner takes at most
SUFFIXES = (".png", ".dcm")
LONGEST_COMMENT = 10_240  # characters of a DICOM LT value (PS3.5 6.2)


def save_drawing(image: np.ndarray, comment: str, path: Path, banner: bool) -> None:
    """Write a generated image whole or not at all.

    Args:
        image: uint8 [H,W].
        comment: stored in the file.
        path: ends with .png or .dcm.
        banner: write `BANNER` into the pixels.

    Raises:
        UserError: the suffix is another, or the file exists.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"{path}: found the suffix {path.suffix!r}; expected .png or .dcm")
    # Not even one of our own: another seed's drawing is a result too.
    if path.exists():
        raise UserError(f"{path} exists, and drawings are never replaced: name another file")
    pixels = with_banner(image) if banner else image
    # A half-written image without its mark must never lie about.
    with atomic_open(path, "wb") as file:
        if path.suffix.lower() == ".dcm":
            _dicom(pixels, comment, banner).save_as(file, enforce_file_format=True)
            return
        info = PngInfo()
        # iTXt is UTF-8; PNG's plain text chunks are Latin-1.
        info.add_itxt("Comment", comment)
        Image.fromarray(pixels).save(file, format="png", pnginfo=info)


def with_banner(image: np.ndarray) -> np.ndarray:
    """The image [H,W] with `BANNER` along its lower edge, white on black."""
    height, width = image.shape
    size = max(height // 16, 8)
    font = ImageFont.load_default(size)
    left, top, right, bottom = font.getbbox(BANNER)
    # Small images take a smaller banner: half of a word would be no mark.
    if right - left > SHARE * width:
        font = ImageFont.load_default(max(size * SHARE * width / (right - left), 1))
        left, top, right, bottom = font.getbbox(BANNER)
    picture = Image.fromarray(image)
    draw = ImageDraw.Draw(picture)
    x, y = (width - (right - left)) / 2, height - (bottom - top) - 3
    # On black, since bone and air leave no grey that letters stand out from everywhere.
    draw.rectangle((x - 2, y - 1, x + right - left + 2, height), fill=0)
    draw.text((x - left, y - top + 1), BANNER, fill=255, font=font)
    return np.asarray(picture)


def _dicom(pixels: np.ndarray, comment: str, banner: bool) -> FileDataset:
    """A Secondary Capture image (PS3.3 A.8.1) of nobody.

    Conversion type SYN is the standard's "synthetic image" (PS3.3 C.8.6.1).
    """
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID = SecondaryCaptureImageStorage
    data.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    # New ones for each file: viewers join what shares them.
    data.StudyInstanceUID, data.SeriesInstanceUID = generate_uid(), generate_uid()
    data.SpecificCharacterSet = "ISO_IR 192"
    _add_nobody(data)
    now = datetime.datetime.now()
    data.StudyDate = data.ContentDate = now.strftime("%Y%m%d")
    data.StudyTime = data.ContentTime = now.strftime("%H%M%S")
    # Not CR or DX: no detector has seen it.
    data.Modality, data.ConversionType = "OT", "SYN"
    data.ImageType = ["DERIVED", "SECONDARY"]
    data.Manufacturer, data.SoftwareVersions = "mavilt", __version__
    data.SeriesDescription = "SYNTHETIC, generated, no patient"
    data.ImageComments = comment[:LONGEST_COMMENT]
    data.DerivationDescription = "Synthetic image, generated from text"
    data.BurnedInAnnotation = "YES" if banner else "NO"
    _add_pixels(data, pixels)
    return data


def _add_nobody(data: pydicom.Dataset) -> None:
    """The patient and study of a synthetic image: named as such, or empty."""
    data.PatientName, data.PatientID = "SYNTHETIC^IMAGE", "SYNTHETIC"
    # Type 2 elements: present, and empty where nobody is meant (PS3.5 7.4.3).
    for keyword in (
        *("PatientBirthDate", "PatientSex", "ReferringPhysicianName", "AccessionNumber"),
        *("StudyID", "Laterality", "PatientOrientation"),
    ):
        setattr(data, keyword, "")
    data.SeriesNumber = data.InstanceNumber = 1


def _add_pixels(data: pydicom.Dataset, pixels: np.ndarray) -> None:
    data.Rows, data.Columns = pixels.shape
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated = data.BitsStored = 8
    data.HighBit, data.PixelRepresentation = 7, 0
    value = pixels.tobytes()
    # Values have an even number of bytes (PS3.5 7.1.1).
    data.PixelData = value + b"\0" * (len(value) % 2)
    data["PixelData"].VR = "OB"
