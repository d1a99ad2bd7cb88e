"""Mutants of valid files are read, or rejected with their file's name and a reason.

None crashes, hangs, or gives an image that is not one. Native decoders may die on a mutant, so
images are read in processes, as `prepare` reads them.
"""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom.uid import JPEG2000Lossless, RLELossless
from test_radiograph import RAMP, write_dicom

from mavilt_pl.data.decode_shard import decode_file, decoder_failed
from mavilt_pl.data.records import Study
from mavilt_pl.data.report_sections import CLEANING, clean, sections
from mavilt_pl.data.sources import read_source
from mavilt_pl.errors import UserError
from mavilt_pl.parallel.process_pool import IsolatedMap

ROUNDS = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)


@pytest.fixture(scope="module")
def decoder() -> Iterator[IsolatedMap]:
    decoder = IsolatedMap(decode_file, decoder_failed, workers=1, timeout=10.0)
    yield decoder
    decoder.close()


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A valid file of each kind, by name."""
    folder = tmp_path_factory.mktemp("valid")
    texture = np.random.default_rng(0).integers(0, 4096, RAMP.shape).astype(np.uint16)
    pixels = (RAMP + texture) // 2
    plain = write_dicom(folder / "plain.dcm", pixels, WindowCenter=2000, WindowWidth=3000)
    for name, syntax in (("rle.dcm", RLELossless), ("j2k.dcm", JPEG2000Lossless)):
        data = pydicom.dcmread(plain)
        data.compress(syntax)
        data.save_as(folder / name)
    grey = Image.fromarray((texture >> 4).astype(np.uint8))
    grey.save(folder / "grey.png")
    grey.convert("RGBA").save(folder / "colour.png")
    Image.fromarray(texture).save(folder / "deep.png")
    grey.save(folder / "grey.jpg")
    grey.convert("CMYK").save(folder / "cmyk.jpg")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


Change = tuple[str, float, bytes]


@st.composite
def mutations(draw: st.DrawFn) -> list[Change]:
    """Cuts, overwrites, insertions and deletions at positions given as shares of the length."""
    kind = st.sampled_from(["cut", "write", "insert", "delete"])
    position = st.one_of(st.floats(0, 1), st.floats(0, 0.1))  # headers matter most
    change = st.tuples(kind, position, st.binary(min_size=1, max_size=6))
    return draw(st.lists(change, min_size=1, max_size=4))


def mutate(data: bytes, changes: list[Change]) -> bytes:
    for kind, share, piece in changes:
        at = int(share * len(data))
        if kind == "cut":
            data = data[:at]
        elif kind == "write":
            data = data[:at] + piece + data[at + len(piece) :]
        elif kind == "insert":
            data = data[:at] + piece + data[at:]
        else:
            data = data[:at] + data[at + len(piece) :]
    return data


KINDS = "plain.dcm rle.dcm j2k.dcm grey.png deep.png colour.png grey.jpg cmyk.jpg"


@pytest.mark.parametrize("name", KINDS.split())
def test_images(
    name: str, decoder: IsolatedMap, originals: dict[str, bytes], tmp_path: Path
) -> None:
    tasks = []

    @ROUNDS
    @given(mutations())
    def write(changes: list[Change]) -> None:
        path = tmp_path / f"{len(tasks):04d}-{name}"
        path.write_bytes(mutate(originals[name], changes))
        tasks.append((str(path), 32, "pad", None))

    write()
    assert len(tasks) >= 60
    for (path, *_), result in zip(tasks, decoder(tasks), strict=True):
        if isinstance(result, str):
            assert Path(path).name in result
            assert len(result) > len(path) + 5
        else:
            assert result.shape == (32, 32)
            assert result.dtype == np.uint8
            assert result.min() < result.max()


@ROUNDS
@given(mutations())
def test_report_text(changes: list[Change]) -> None:
    whole = (
        "FINAL REPORT\n INDICATION: ___ with cough.\n FINDINGS: Clear lungs.\n"
        "1. IMPRESSION: Normal chest.\n"
    )
    text = mutate(whole.encode(), changes).decode("utf-8", "replace")
    found = sections(text)
    assert set(found) == {"findings", "impression", "whole"}
    for protocol in CLEANING:
        clean(found["whole"], protocol)


def studies_or_reason(name: str, root: Path) -> list[Study]:
    """All studies of a mutated dataset, or none if one message gives the reason."""
    rejects: list[tuple[str, ...]] = []
    try:
        studies = list(read_source(name, root, lambda *why: rejects.append(why)))
    except UserError as reason:
        assert len(str(reason)) > 20
        return []
    assert all(len(why) == 4 and why[3] for why in rejects)
    for study in studies:
        for image in study.images:
            assert root.resolve() in image.path.resolve().parents, (
                "an image outside the dataset's folder"
            )
    return studies


TABLES = [
    "mimic-cxr-2.0.0-split.csv.gz",
    "mimic-cxr-2.0.0-metadata.csv.gz",
    "mimic-cxr-2.0.0-chexpert.csv.gz",
]


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("compressed", [True, False])
def test_tables(table: str, compressed: bool, mimic_root: Path, tmp_path: Path) -> None:
    for path in mimic_root.glob("*.csv.gz"):
        shutil.copy(path, tmp_path / path.name)
    whole = (mimic_root / table).read_bytes()

    @ROUNDS
    @given(mutations())
    def check(changes: list[Change]) -> None:
        if compressed:
            (tmp_path / table).write_bytes(mutate(whole, changes))
        else:
            (tmp_path / table).write_bytes(gzip.compress(mutate(gzip.decompress(whole), changes)))
        studies_or_reason("mimic-cxr-jpg", tmp_path)

    check()


def test_xml(tmp_path: Path) -> None:
    folder = tmp_path / "ecgen-radiology"
    folder.mkdir()
    whole = (
        b'<?xml version="1.0" encoding="utf-8"?><eCitation><uId id="CXR1"/>'
        b"<MeSH><major>normal</major></MeSH><Abstract>"
        b'<AbstractText Label="FINDINGS">Clear.</AbstractText></Abstract>'
        b'<parentImage id="CXR1_1_IM-0001-3001"/></eCitation>'
    )

    @ROUNDS
    @given(mutations())
    def check(changes: list[Change]) -> None:
        (folder / "1.xml").write_bytes(mutate(whole, changes))
        studies_or_reason("indiana", tmp_path)

    check()


def test_json(tmp_path: Path) -> None:
    item = {"id": "CXR1_IM-0001", "report": "Clear.", "image_path": ["CXR1_IM-0001/0.png"]}
    whole = json.dumps({"train": [item], "val": [], "test": []}).encode()

    @ROUNDS
    @given(mutations())
    def check(changes: list[Change]) -> None:
        (tmp_path / "annotation.json").write_bytes(mutate(whole, changes))
        studies_or_reason("r2gen", tmp_path)

    check()
