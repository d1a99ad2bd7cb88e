"""How fast radiographs become batches, and in how much memory. Every figure is a ratio within one
run.

python benchmarks/data.py decode     # DICOM → 256² pixels, against the bare decoder (pydicom's
pixel_array) python benchmarks/data.py prepare    # the whole command on all cores, against the bare
decoder on as many python benchmarks/data.py loader     # 256² batches from a corpus, against the
same from DICOM python benchmarks/data.py memory     # peak memory of prepare and of a loader at
1,000 and at 10,000 studies
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
from mavilt_pl.phantom.anatomy import draw_body, render

SYNTAXES = {
    "explicit little endian": ExplicitVRLittleEndian,
    "RLE": RLELossless,
    "JPEG 2000": JPEG2000Lossless,
    "JPEG baseline": JPEGBaseline8Bit,
}
SIDES = (1024, 1760, 2500)


def write_dicom(path: Path, side: int, syntax: str, seed: int = 0) -> None:
    """A phantom of side² pixels, 12 bits with a window, or 8 bits where the syntax has no more."""
    small = render(draw_body(np.random.default_rng(seed), []), [], 256, np.random.default_rng(seed))
    image = cv2.resize(small, (side, side), interpolation=cv2.INTER_CUBIC).clip(0, 1)
    image = (image + np.random.default_rng(seed).normal(0, 0.01, image.shape)).clip(0, 1)
    eight = syntax == "JPEG baseline"
    data = pydicom.Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = SYNTAXES[syntax] if eight else ExplicitVRLittleEndian
    data.SOPClassUID, data.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1", "1.2.3"
    data.Rows = data.Columns = side
    data.SamplesPerPixel, data.PhotometricInterpretation, data.PixelRepresentation = (
        1,
        "MONOCHROME2",
        0,
    )
    data.BitsAllocated, data.BitsStored, data.HighBit = (8, 8, 7) if eight else (16, 12, 11)
    if eight:
        out = io.BytesIO()
        Image.fromarray((image * 255).astype(np.uint8)).save(out, "JPEG", quality=90)
        data.PixelData = encapsulate([out.getvalue()])
    else:
        data.PixelData = (image * 4095).astype(np.uint16).tobytes()
        data.WindowCenter, data.WindowWidth = 2048, 3600
        if syntax != "explicit little endian":
            data.compress(SYNTAXES[syntax])
    data.save_as(path, enforce_file_format=True)


def bare(path: Path) -> np.ndarray:
    return pydicom.dcmread(path).pixel_array


def ours(path: Path) -> np.ndarray:
    return read_sized(path, 256)


def seconds(work: Callable[[Path], object], path: Path) -> float:
    start = time.perf_counter()
    work(path)
    return time.perf_counter() - start


def decode(folder: Path) -> None:
    cv2.setNumThreads(1)
    print(
        "| syntax | pixels | bare decoder, ms | to 256², ms | rate, × bare |\n| --- | --- | --- | "
        "--- | --- |"
    )
    ratios = []
    for syntax in SYNTAXES:
        for side in SIDES:
            path = folder / "a.dcm"
            write_dicom(path, side, syntax)
            bare(path), ours(path)
            pairs = [(seconds(bare, path), seconds(ours, path)) for _ in range(9)]
            plain, made = (statistics.median(column) for column in zip(*pairs))
            ratios.append(statistics.median(b / o for b, o in pairs))
            print(
                f"| {syntax} | {side}² | {1000 * plain:.0f} | {1000 * made:.0f} | {ratios[-1]:.2f} "
                f"|"
            )
    print(f"\nGeometric mean {statistics.geometric_mean(ratios):.2f}, lowest {min(ratios):.2f}.")


def dicom_dataset(root: Path, per_kind: int) -> list[Path]:
    """The Open-i layout with DICOM images, one study an image."""
    (root / "ecgen-radiology").mkdir(parents=True)
    files = []
    kinds = [(syntax, side) for syntax in SYNTAXES for side in SIDES]
    for number in range(per_kind * len(kinds)):
        syntax, side = kinds[number % len(kinds)]
        path = root / str(number) / f"{number}_IM-0001-1001.dcm"
        path.parent.mkdir()
        if number < len(kinds):
            write_dicom(path, side, syntax)
        else:
            path.write_bytes(files[number % len(kinds)].read_bytes())
        files.append(path)
        xml = f'<eCitation><uId id="CXR{number}"/><AbstractText Label="FINDINGS">Clear.</AbstractText><parentImage id="CXR{number}_IM-0001-1001"/></eCitation>'
        (root / "ecgen-radiology" / f"{number}.xml").write_text(xml)
    return files


def prepare(folder: Path) -> None:
    files = dicom_dataset(folder / "raw", 40)
    cores = os.cpu_count() or 1
    rows = []
    for attempt in range(2):
        with ProcessPoolExecutor(cores) as pool:
            list(pool.map(bare_only, files[:cores]))  # processes are up
            start = time.perf_counter()
            list(pool.map(bare_only, files, chunksize=4))
            plain = time.perf_counter() - start
        start = time.perf_counter()
        mavilt(
            [
                "prepare",
                "indiana",
                str(folder / "raw"),
                "--out",
                str(folder / f"out{attempt}"),
                "--workers",
                str(cores),
            ]
        )
        rows.append((plain, time.perf_counter() - start))
    ratio = statistics.median(b / o for b, o in rows)
    print(
        f"{len(files)} DICOM files of four syntaxes and three sizes on {cores} cores, the whole "
        f"command, its start included."
    )
    print(
        f"Bare decoder {statistics.median(r[0] for r in rows):.1f} s, prepare "
        f"{statistics.median(r[1] for r in rows):.1f} s: {ratio:.2f} × its rate."
    )


def bare_only(path: Path) -> int:
    return bare(path).size


class FromDicom:
    """What a loader without a prepared corpus does: decode, scale and resize each time."""

    def __init__(self, files: list[Path]):
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, number: int) -> object:
        import torch

        pixels = bare(self.files[number]).astype(np.float32)
        small = cv2.resize(pixels, (256, 256), interpolation=cv2.INTER_AREA)
        return torch.from_numpy((small - small.min()) / (np.ptp(small) + 1e-6) * 2 - 1)[None]


def loader(folder: Path) -> None:
    import torch

    from mavilt_pl.data.datamodule import CXRDataModule

    files = dicom_dataset(folder / "raw", 20)
    mavilt(["prepare", "indiana", str(folder / "raw"), "--out", str(folder / "corpus")])
    module = CXRDataModule([str(folder / "corpus")], batch_size=16, num_workers=2)
    module.setup("fit")

    def rate(batches: torch.utils.data.DataLoader) -> float:
        count, start = 0, 0.0
        for epoch in range(4):
            for _ in batches:
                if epoch and start == 0.0:
                    start = time.perf_counter()  # the first epoch warms up
                elif epoch:
                    count += 16
        return count / (time.perf_counter() - start)

    prepared = rate(module.train_dataloader())
    raw = torch.utils.data.DataLoader(
        FromDicom(files), 16, num_workers=2, drop_last=True, persistent_workers=True
    )  # type: ignore[arg-type,var-annotated]
    plain = rate(raw)
    print(
        f"From DICOM {plain:.0f} images/s, from the corpus {prepared:.0f} images/s, two loader "
        f"processes each: {prepared / plain:.0f} ×"
    )


def _peak(*argv: str) -> int:
    """Peak memory in MB of a command and of its largest process."""
    code = f"import resource, sys; from benchmarks.data import {argv[0]}; {argv[0]}({', '.join(map(repr, argv[1:]))}); print(max(resource.getrusage(w).ru_maxrss for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) // 1024)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[1],
    )
    return int(done.stdout.splitlines()[-1])


def prepare_only(root: str, out: str) -> None:
    mavilt(["prepare", "mimic-cxr-jpg", root, "--out", out, "--size", "64", "--workers", "2"])


def load_only(corpus: str) -> None:
    from mavilt_pl.data.datamodule import CXRDataModule

    module = CXRDataModule([corpus], batch_size=32)
    module.setup("fit")
    for _ in module.train_dataloader():
        pass


def memory(folder: Path) -> None:
    print("| studies | prepare, MB | loader, one epoch, MB |\n| --- | --- | --- |")
    for studies in (1_000, 10_000):
        raw, corpus = str(folder / f"raw{studies}"), str(folder / f"corpus{studies}")
        mavilt(["phantom", "mimic", raw, "--studies", str(studies), "--size", "48"])
        print(
            f"| {studies:,} | {_peak('prepare_only', raw, corpus)} | {_peak('load_only', corpus)} |"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["decode", "prepare", "loader", "memory"])
    with tempfile.TemporaryDirectory() as made:
        globals()[parser.parse_args().what](Path(made))
