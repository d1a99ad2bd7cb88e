"""How fast radiographs become batches, and in how much memory.

Every figure is a ratio within one run.

    python benchmarks/data.py decode    # DICOM → 256² pixels, against pydicom's pixel_array alone
    python benchmarks/data.py prepare   # the whole command on all cores, against pixel_array there
    python benchmarks/data.py loader    # 256² batches from a corpus, against the same from DICOM
    python benchmarks/data.py memory    # peak memory of prepare and of a loader, by corpus size
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import cv2
import numpy as np
import pydicom
from PIL import Image
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, JPEGBaseline8Bit, RLELossless

from mavilt_pl.cli import main as mavilt
from mavilt_pl.data.radiograph import read_sized
from mavilt_pl.phantom.anatomy import render, sample_body

SYNTAXES = {
    "explicit little endian": ExplicitVRLittleEndian,
    "RLE": RLELossless,
    "JPEG 2000": JPEG2000Lossless,
    "JPEG baseline": JPEGBaseline8Bit,
}
SIDES = (1024, 1760, 2500)
KINDS = [(syntax, side) for syntax in SYNTAXES for side in SIDES]
REPORT = (
    '<eCitation><uId id="CXR{0}"/><AbstractText Label="FINDINGS">Clear.</AbstractText>'
    '<parentImage id="CXR{0}_IM-0001-1001"/></eCitation>'
)


def write_dicom(path: Path, side: int, syntax: str, seed: int = 0) -> None:
    """Write a phantom of side² pixels: 12 bits with a window, or 8 bits in JPEG baseline."""
    body = sample_body(np.random.default_rng(seed), [])
    small = render(body, [], 256, np.random.default_rng(seed))
    image = cv2.resize(small, (side, side), interpolation=cv2.INTER_CUBIC).clip(0, 1)
    image = (image + np.random.default_rng(seed).normal(0, 0.01, image.shape)).clip(0, 1)
    is_8_bit = syntax == "JPEG baseline"
    data = pydicom.Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = SYNTAXES[syntax] if is_8_bit else ExplicitVRLittleEndian
    data.SOPClassUID, data.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1", "1.2.3"
    data.Rows = data.Columns = side
    data.SamplesPerPixel, data.PixelRepresentation = 1, 0
    data.PhotometricInterpretation = "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit = (8, 8, 7) if is_8_bit else (16, 12, 11)
    if is_8_bit:
        out = io.BytesIO()
        Image.fromarray((image * 255).astype(np.uint8)).save(out, "JPEG", quality=90)
        data.PixelData = encapsulate([out.getvalue()])
    else:
        data.PixelData = (image * 4095).astype(np.uint16).tobytes()
        data.WindowCenter, data.WindowWidth = 2048, 3600
        if syntax != "explicit little endian":
            data.compress(SYNTAXES[syntax])
    data.save_as(path, enforce_file_format=True)


def decode_only(path: Path) -> np.ndarray:
    """The baseline: pydicom's decoder without anything else."""
    return pydicom.dcmread(path).pixel_array


def decode_and_resize(path: Path) -> np.ndarray:
    """What `prepare` does to a file."""
    return read_sized(path, 256)


def seconds(work: Callable[[Path], object], path: Path) -> float:
    """How long one call takes."""
    start = time.perf_counter()
    work(path)
    return time.perf_counter() - start


def decode(folder: Path) -> None:
    """Compare both decoders, by transfer syntax and size."""
    cv2.setNumThreads(1)
    print("| syntax | pixels | bare decoder, ms | to 256², ms | rate, × bare |")
    print("| --- | --- | --- | --- | --- |")
    ratios = []
    for syntax, side in KINDS:
        path = folder / "a.dcm"
        write_dicom(path, side, syntax)
        decode_only(path)
        decode_and_resize(path)
        bare, ours = [], []
        for _ in range(9):
            bare.append(seconds(decode_only, path))
            ours.append(seconds(decode_and_resize, path))
        ratios.append(statistics.median(b / o for b, o in zip(bare, ours)))
        print(
            f"| {syntax} | {side}² | {1000 * statistics.median(bare):.0f} | "
            f"{1000 * statistics.median(ours):.0f} | {ratios[-1]:.2f} |"
        )
    print(f"\nGeometric mean {statistics.geometric_mean(ratios):.2f}, lowest {min(ratios):.2f}.")


def write_dicom_dataset(root: Path, per_kind: int) -> list[Path]:
    """Write the Open-i layout with DICOM images, one study an image; return the images."""
    (root / "ecgen-radiology").mkdir(parents=True)
    files: list[Path] = []
    for number in range(per_kind * len(KINDS)):
        path = root / str(number) / f"{number}_IM-0001-1001.dcm"
        path.parent.mkdir()
        if number < len(KINDS):
            syntax, side = KINDS[number]
            write_dicom(path, side, syntax)
        else:
            path.write_bytes(files[number % len(KINDS)].read_bytes())
        files.append(path)
        (root / "ecgen-radiology" / f"{number}.xml").write_text(REPORT.format(number))
    return files


def count_pixels(path: Path) -> int:
    """Decode in a worker without sending the pixels back."""
    return decode_only(path).size


def prepare(folder: Path) -> None:
    """Compare the whole command with the bare decoder on the same number of cores."""
    raw = folder / "raw"
    files = write_dicom_dataset(raw, 40)
    cores = os.cpu_count() or 1
    bare, ours = [], []
    for attempt in range(2):
        with ProcessPoolExecutor(cores) as pool:
            list(pool.map(count_pixels, files[:cores]))  # starts the processes
            start = time.perf_counter()
            list(pool.map(count_pixels, files, chunksize=4))
            bare.append(time.perf_counter() - start)
        out = str(folder / f"out{attempt}")
        start = time.perf_counter()
        mavilt(["prepare", "indiana", str(raw), "--out", out, "--workers", str(cores)])
        ours.append(time.perf_counter() - start)
    ratio = statistics.median(b / o for b, o in zip(bare, ours))
    print(
        f"{len(files)} DICOM files of four syntaxes and three sizes on {cores} cores, the whole "
        "command, its start included."
    )
    print(
        f"Bare decoder {statistics.median(bare):.1f} s, prepare {statistics.median(ours):.1f} s: "
        f"{ratio:.2f} × its rate."
    )


class FromDicom:
    """A dataset without a prepared corpus: it decodes, scales and resizes each time."""

    def __init__(self, files: list[Path]):
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, number: int) -> object:
        import torch

        pixels = decode_only(self.files[number]).astype(np.float32)
        small = cv2.resize(pixels, (256, 256), interpolation=cv2.INTER_AREA)
        return torch.from_numpy((small - small.min()) / (np.ptp(small) + 1e-6) * 2 - 1)[None]


def loader(folder: Path) -> None:
    """Compare a loader of a corpus with one of DICOM files."""
    import torch

    from mavilt_pl.data.datamodule import CXRDataModule

    batch_size = 16
    files = write_dicom_dataset(folder / "raw", 20)
    mavilt(["prepare", "indiana", str(folder / "raw"), "--out", str(folder / "corpus")])
    module = CXRDataModule([str(folder / "corpus")], batch_size=batch_size, num_workers=2)
    module.setup("fit")

    def images_per_second(batches: torch.utils.data.DataLoader) -> float:
        count, start = 0, 0.0
        for epoch in range(4):
            for _ in batches:
                if epoch == 0:  # it warms up
                    continue
                if start == 0.0:
                    start = time.perf_counter()
                else:
                    count += batch_size
        return count / (time.perf_counter() - start)

    prepared = images_per_second(module.train_dataloader())
    dataset: torch.utils.data.Dataset = FromDicom(files)  # type: ignore[assignment]
    from_dicom = images_per_second(
        torch.utils.data.DataLoader(
            dataset, batch_size, num_workers=2, drop_last=True, persistent_workers=True
        )
    )
    print(
        f"From DICOM {from_dicom:.0f} images/s, from the corpus {prepared:.0f} images/s, two "
        f"loader processes each: {prepared / from_dicom:.0f} ×"
    )


MEASURE_PEAK = """
import resource
from benchmarks.data import {function}

{function}({arguments})
usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
print(max(usage.ru_maxrss for usage in usages) // 1024)
"""


def peak_memory(function: str, *arguments: str) -> int:
    """Peak memory in MB of a function of this file in a process of its own, workers included."""
    code = MEASURE_PEAK.format(function=function, arguments=", ".join(map(repr, arguments)))
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[1],
    )
    return int(done.stdout.splitlines()[-1])


def prepare_once(root: str, out: str) -> None:
    """Prepare a phantom dataset."""
    mavilt(["prepare", "mimic-cxr-jpg", root, "--out", out, "--size", "64", "--workers", "2"])


def load_once(corpus: str) -> None:
    """Load one epoch of a corpus."""
    from mavilt_pl.data.datamodule import CXRDataModule

    module = CXRDataModule([corpus], batch_size=32)
    module.setup("fit")
    for _ in module.train_dataloader():
        pass


def memory(folder: Path) -> None:
    """Measure the peak memory at two sizes of a corpus."""
    print("| studies | prepare, MB | loader, one epoch, MB |")
    print("| --- | --- | --- |")
    for studies in (1_000, 10_000):
        raw, corpus = str(folder / f"raw{studies}"), str(folder / f"corpus{studies}")
        mavilt(["phantom", "mimic", raw, "--studies", str(studies), "--size", "48"])
        prepare_mb = peak_memory("prepare_once", raw, corpus)
        loader_mb = peak_memory("load_once", corpus)
        print(f"| {studies:,} | {prepare_mb} | {loader_mb} |")


BENCHMARKS = {"decode": decode, "prepare": prepare, "loader": loader, "memory": memory}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("benchmark", choices=list(BENCHMARKS))
    with tempfile.TemporaryDirectory() as temporary:
        BENCHMARKS[parser.parse_args().benchmark](Path(temporary))
