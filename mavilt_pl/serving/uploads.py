"""Uploaded files: decoded in a process of their own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mavilt_pl.data.decode_shard import decode_file, decoder_failed
from mavilt_pl.data.radiograph import Fit
from mavilt_pl.errors import UserError
from mavilt_pl.parallel.process_pool import IsolatedMap

LARGEST_UPLOAD = "128mb"  # four detectors' images of 4,300 × 4,300 pixels of 16 bits
TIMEOUT = 60.0  # seconds; the slowest allowed image takes some
PREVIEW = 512  # pixels along each side


@dataclass(frozen=True)
class Upload:
    """A radiograph that somebody uploaded.

    Args:
        name: of the file, without its folder.
        preview: uint8 [512,512], for the eye.
        pixels: uint8 [H,W] of the model's size.
    """

    name: str
    preview: np.ndarray
    pixels: np.ndarray


class UploadReader:
    """Reads uploads one after another, in a process that may die on them; for several threads.

    Args:
        size: pixels along each side of the model's images.
        fit: framing of images.
    """

    def __init__(self, size: int, fit: Fit):
        self.size, self.fit = size, fit
        self.decoder = IsolatedMap(decode_file, decoder_failed, workers=1, timeout=TIMEOUT)

    def close(self) -> None:
        """Stop the decoder."""
        self.decoder.close()

    def __call__(self, path: Path) -> Upload:
        """Read an uploaded file.

        Raises:
            UserError: it is no radiograph; the message names the file without its folder.
        """
        # A decoder that dies or stalls costs this upload, and not the server.
        tasks = [(str(path), size, self.fit, None) for size in (PREVIEW, self.size)]
        images = []
        for decoded in self.decoder(tasks):
            if isinstance(decoded, str):
                # The folder is one of the server's own, and says nothing to whoever uploaded.
                raise UserError(decoded.replace(str(path), path.name))
            images.append(decoded)
        preview, pixels = images
        return Upload(path.name, preview, pixels)
