"""A phantom as a 12-bit DICOM file, in the varieties that hospitals' detectors and archives make of
one image.

All of them show the same picture once the standard's grey-scale transformations are applied (PS3.3
C.7.6.3.1.2, C.11.1, C.11.2), and a wrong one if any of them is left out.
"""

from __future__ import annotations

import hashlib
import io
from typing import NamedTuple

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

WHITE = 4095  # the highest of 12 bits
SYNTAXES = (ExplicitVRLittleEndian, RLELossless, JPEG2000Lossless, JPEGLSLossless)
GREY = ("window", "rescale and window", "VOI LUT")
DENSITY = 0.7  # exponent of the stored values that a VOI LUT straightens


class Variety(NamedTuple):
    photometric: str  # MONOCHROME1 stores bone dark, MONOCHROME2 bright
    grey: str  # one of GREY
    syntax: UID


def writable() -> tuple[UID, ...]:
    """The transfer syntaxes that the installed encoders can write; JPEG-LS needs the package
    pyjpegls.
    """
    return tuple(s for s in SYNTAXES if s == ExplicitVRLittleEndian or get_encoder(s).is_available)


def variety(number: int) -> Variety:
    """Any eight files in a row hold every photometric interpretation, grey scale and transfer
    syntax, and as many files as there are combinations hold them all.
    """
    syntaxes = writable()
    turn, syntax = divmod(number // 2, len(syntaxes))
    return Variety(
        f"MONOCHROME{1 + number % 2}", GREY[(syntax + turn) % len(GREY)], syntaxes[syntax]
    )


def _uid(*parts: object) -> UID:
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=15).digest()
    return UID(f"2.25.{int.from_bytes(digest, 'big')}")


def _grey(data: Dataset, image: Array, kind: str, inverted: bool) -> Array:
    """Stored values of an image [H,W] in [0, 1], uint16 [H,W]; the elements that turn them back go
    into `data`.
    """
    shown = 1 - image if inverted else image
    if kind == "VOI LUT":
        table = Dataset()
        table.add_new("LUTDescriptor", "US", [WHITE + 1, 0, 16])
        values = (np.arange(WHITE + 1) / WHITE) ** (1 / DENSITY)
        table.add_new("LUTData", "OW", (values * 65535).round().astype("<u2").tobytes())
        table.LUTExplanation = "NORMAL"
        data.VOILUTSequence = Sequence([table])
        return (WHITE * shown**DENSITY).round().astype(np.uint16)
    # The anatomy fills part of the range; a dead and a saturated detector element lie outside the
    # window.
    low, high = 600, 3400
    stored = (low + shown * (high - low)).round().astype(np.uint16)
    low, high = int(stored.min()), int(stored.max())
    stored[0, 0], stored[0, -1] = 0, WHITE
    slope, intercept = (0.5, -100.0) if kind == "rescale and window" else (1.0, 0.0)
    data.RescaleSlope, data.RescaleIntercept, data.RescaleType = str(slope), str(intercept), "US"
    # C.11.2.1.2.1: a window of width w about c runs from c - 0.5 - (w - 1) / 2 to c - 0.5 + (w - 1)
    # / 2.
    bottom, top = low * slope + intercept, high * slope + intercept
    data.WindowCenter, data.WindowWidth = str((bottom + top + 1) / 2), str(top - bottom + 1)
    return stored


def dicom(
    image: Array, kind: Variety, subject: int, study: int, name: str, view: str, date: int
) -> bytes:
    """An image [H,W] in [0, 1] as the bytes of a DICOM file; the same arguments give the same
    bytes.
    """
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = _uid(name)
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = _uid("mavilt", "phantom")
    data = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)  # type: ignore[arg-type]
    data.SOPClassUID, data.SOPInstanceUID = (
        meta.MediaStorageSOPClassUID,
        meta.MediaStorageSOPInstanceUID,
    )
    data.StudyInstanceUID, data.SeriesInstanceUID = _uid(study), _uid(study, "series")
    data.PatientID, data.PatientName, data.StudyID = str(subject), "", str(study)
    data.StudyDate, data.Modality, data.BodyPartExamined = str(date), "DX", "CHEST"
    data.ViewPosition = "LL" if view == "LATERAL" else view
    data.PhotometricInterpretation = kind.photometric
    inverted = kind.photometric == "MONOCHROME1"
    data.PresentationLUTShape = "INVERSE" if inverted else "IDENTITY"
    data.SamplesPerPixel, data.PixelRepresentation = 1, 0
    data.BitsAllocated, data.BitsStored, data.HighBit = 16, 12, 11
    data.Rows, data.Columns = image.shape
    stored = _grey(data, image, kind.grey, inverted)
    data.add_new("PixelData", "OW", stored.astype("<u2").tobytes())
    if kind.syntax != ExplicitVRLittleEndian:
        data.compress(kind.syntax, generate_instance_uid=False)
    out = io.BytesIO()
    data.save_as(out, enforce_file_format=True)
    return out.getvalue()
