"""Write a phantom as a 12-bit DICOM file, in the varieties that detectors and archives produce.

All varieties show the same picture once the standard's grey-scale transformations are applied
(PS3.3 C.7.6.3.1.2, C.11.1, C.11.2), and a wrong one if any of them is omitted.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.pixels import get_encoder
from pydicom.sequence import Sequence
from pydicom.uid import (
    UID,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from mavilt_pl.phantom.shapes import Array

WHITE = 4095  # the highest value of 12 bits
SYNTAXES = (ExplicitVRLittleEndian, RLELossless, JPEG2000Lossless, JPEGLSLossless)
GREY = ("window", "rescale and window", "VOI LUT")
# Far enough from 1 that a reader who ignores the table gets a visibly wrong picture.
DENSITY = 0.7  # exponent of the stored values that a VOI LUT straightens
LOW, HIGH = 600, 3400  # stored values between which the anatomy lies


@dataclass(frozen=True)
class Variety:
    """How a file stores an image.

    Args:
        photometric: MONOCHROME1 stores bone dark, MONOCHROME2 bright.
        grey: one of `GREY`, the transformation to apply.
        syntax: the transfer syntax.
    """

    photometric: str
    grey: str
    syntax: UID


def writable_syntaxes() -> tuple[UID, ...]:
    """Transfer syntaxes that the installed encoders write; JPEG-LS needs the package pyjpegls."""
    syntaxes = []
    for syntax in SYNTAXES:
        if syntax == ExplicitVRLittleEndian or get_encoder(syntax).is_available:
            syntaxes.append(syntax)
    return tuple(syntaxes)


def variety(number: int) -> Variety:
    """The variety of file `number`.

    Any eight files in a row hold every photometric interpretation, grey scale and transfer syntax.
    As many files as there are combinations hold all of them.
    """
    # Photometric interpretation alternates; the grey scale shifts by one at each turn of syntaxes.
    # JPEG-LS drops out without its package; the rotation then has three syntaxes instead of four.
    syntaxes = writable_syntaxes()
    turn, index = divmod(number // 2, len(syntaxes))
    photometric = f"MONOCHROME{1 + number % 2}"
    return Variety(photometric, GREY[(index + turn) % len(GREY)], syntaxes[index])


def encode_dicom(
    image: Array, kind: Variety, subject: int, study: int, name: str, view: str, date: int
) -> bytes:
    """An image as the bytes of a DICOM file; the same arguments give the same bytes.

    Args:
        image: [H,W] in [0, 1].
        kind: how to store it.
        subject: identifier of the patient.
        study: identifier of the study.
        name: of the image.
        view: PA, AP or LATERAL.
        date: of the study, such as 21000101.
    """
    data = _header(subject, study, name, view, date)
    data.PhotometricInterpretation = kind.photometric
    inverted = kind.photometric == "MONOCHROME1"
    data.PresentationLUTShape = "INVERSE" if inverted else "IDENTITY"
    data.SamplesPerPixel, data.PixelRepresentation = 1, 0
    data.BitsAllocated, data.BitsStored, data.HighBit = 16, 12, 11
    data.Rows, data.Columns = image.shape
    stored = _store(data, 1 - image if inverted else image, kind.grey)
    data.add_new("PixelData", "OW", stored.astype("<u2").tobytes())
    # The UID stays: a new one would be random, and the bytes would differ from run to run.
    if kind.syntax != ExplicitVRLittleEndian:
        data.compress(kind.syntax, generate_instance_uid=False)
    out = io.BytesIO()
    data.save_as(out, enforce_file_format=True)
    return out.getvalue()


def _uid(*parts: object) -> UID:
    # Derived from names, not random: the same arguments give the same bytes.
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=15).digest()
    return UID(f"2.25.{int.from_bytes(digest, 'big')}")


def _header(subject: int, study: int, name: str, view: str, date: int) -> FileDataset:
    """A data set with everything but the pixels."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = _uid(name)
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = _uid("mavilt", "phantom")
    data = FileDataset(io.BytesIO(), {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID = meta.MediaStorageSOPClassUID
    data.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    data.StudyInstanceUID, data.SeriesInstanceUID = _uid(study), _uid(study, "series")
    data.PatientID, data.PatientName, data.StudyID = str(subject), "", str(study)
    data.StudyDate, data.Modality, data.BodyPartExamined = str(date), "DX", "CHEST"
    # As MIMIC-CXR's headers spell it; its readers map LL to LATERAL.
    data.ViewPosition = "LL" if view == "LATERAL" else view
    return data


def _store(data: Dataset, image: Array, grey: str) -> Array:
    """Stored values of an image, uint16 [H,W]; the elements that undo them go into `data`.

    Args:
        data: of the file.
        image: [H,W] in [0, 1].
        grey: one of `GREY`.
    """
    if grey == "VOI LUT":
        return _store_with_lut(data, image)
    stored = (LOW + image * (HIGH - LOW)).round().astype(np.uint16)
    darkest, brightest = int(stored.min()), int(stored.max())
    # A dead and a saturated detector element lie outside the window.
    stored[0, 0], stored[0, -1] = 0, WHITE
    # A reader that omits the rescale applies the window to values twice as large.
    slope, intercept = (0.5, -100.0) if grey == "rescale and window" else (1.0, 0.0)
    data.RescaleSlope, data.RescaleIntercept, data.RescaleType = str(slope), str(intercept), "US"
    # C.11.2.1.2.1: a window of width w about c runs from c - 0.5 - (w - 1) / 2 to
    # c - 0.5 + (w - 1) / 2.
    bottom, top = darkest * slope + intercept, brightest * slope + intercept
    data.WindowCenter, data.WindowWidth = str((bottom + top + 1) / 2), str(top - bottom + 1)
    return stored


def _store_with_lut(data: Dataset, image: Array) -> Array:
    """Store a power of the image, and the table that straightens it."""
    table = Dataset()
    table.add_new("LUTDescriptor", "US", [WHITE + 1, 0, 16])
    # The inverse of the power that the pixels are stored with.
    values = (np.arange(WHITE + 1) / WHITE) ** (1 / DENSITY)
    table.add_new("LUTData", "OW", (values * 65535).round().astype("<u2").tobytes())
    table.LUTExplanation = "NORMAL"
    data.VOILUTSequence = Sequence([table])
    return (WHITE * image**DENSITY).round().astype(np.uint16)
