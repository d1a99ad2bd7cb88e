"""Phantoms in the three layouts of the Indiana collection: Open-i, Kaggle and R2Gen.

The reports are the collection's own, the images are rendered from their MeSH headings. The reports
come from the installed torchxrayvision; nothing of them is kept in this package.
"""

from __future__ import annotations

import importlib.util
import json
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from xml.etree.ElementTree import Element, tostring

import cv2
import numpy as np
from defusedxml.ElementTree import fromstring
from rich.progress import track

from mavilt_pl.errors import UserError
from mavilt_pl.parallel.process_pool import process_pool
from mavilt_pl.phantom.anatomy import Projection, render, sample_body
from mavilt_pl.phantom.files import encode_picture, write_table
from mavilt_pl.phantom.findings import Finding, make_finding
from mavilt_pl.phantom.shapes import Array

Layout = Literal["open-i", "kaggle", "r2gen"]
KAGGLE_SECTIONS = ("indication", "comparison", "findings", "impression")
KAGGLE_REPORTS = ("uid", "MeSH", "Problems", "image", *KAGGLE_SECTIONS)
STUDIES_PER_TASK = 32  # tasks sent to a worker at a time

# What a MeSH heading's parts name, and what is rendered for it.
HEADINGS: dict[str, str] = {
    "cardiomegaly": "cardiomegaly",
    "pleural effusion": "pleural effusion",
    "pneumothorax": "pneumothorax",
    "hydropneumothorax": "pneumothorax",
    "consolidation": "consolidation",
    "infiltrate": "consolidation",
    "airspace disease": "consolidation",
    "pneumonia": "consolidation",
    "pulmonary edema": "edema",
    "pulmonary congestion": "edema",
    "pulmonary atelectasis": "atelectasis",
    "nodule": "lung lesion",
    "mass": "lung lesion",
    "catheters, indwelling": "support devices",
    "implanted medical device": "support devices",
    "medical device": "support devices",
    "emphysema": "hyperinflation",
    "pulmonary disease, chronic obstructive": "hyperinflation",
}


@dataclass(frozen=True)
class IndianaOptions:
    """What to write; the same options give the same bytes.

    Args:
        root: an existing folder.
        studies: number of studies, taken from the first reports with FINDINGS, IMPRESSION and an
            image.
        size: pixels along each side.
        seed: of everything random.
        laterals: of the studies whose report names two images, the share with a lateral.
        layout: R2Gen kept the studies with two images, so that layout takes only those.
    """

    root: Path
    studies: int
    size: int = 160
    seed: int = 0
    laterals: float = 0.0
    layout: Layout = "open-i"


@dataclass(frozen=True)
class StudyTask:
    """One report to write with its images; the XML file's stem is the study's number."""

    options: IndianaOptions
    file_name: str
    xml: bytes


@dataclass(frozen=True)
class RenderedStudy:
    """A report and its images as id, projection and pixels [H,W]."""

    number: str
    tree: Element
    images: list[tuple[str, Projection, Array]]

    def text(self, label: str) -> str:
        """The section of that label; "" if there is none."""
        texts = {}
        for part in self.tree.iter("AbstractText"):
            texts[part.attrib.get("Label")] = (part.text or "").strip()
        return texts.get(label, "")

    def headings(self) -> list[str]:
        """The MeSH headings."""
        return [major.text or "" for major in self.tree.iter("major")]


def write_indiana(options: IndianaOptions, workers: int = 1) -> int:
    """Write a dataset; return the number of studies, which the collection may limit.

    Each study has a frontal image.
    """
    root, layout = options.root, options.layout
    for folder in FOLDERS[layout]:
        (root / folder).mkdir(parents=True, exist_ok=True)
    # R2Gen kept studies with two images only.
    min_images = 2 if layout == "r2gen" else 1
    tasks = []
    # range first: zip then stops before it reads a report too many.
    for _, (name, xml) in zip(range(options.studies), _reports(min_images)):
        tasks.append(StudyTask(options, name, xml))
    with process_pool(workers) as processes:
        results = processes.map(_write_study, tasks, chunksize=STUDIES_PER_TASK)
        written = list(track(results, f"Phantoms, Indiana ({layout})", len(tasks)))
    if layout == "kaggle":
        projections = []
        for study in written:
            projections += study["projections"]
        write_table(root / "indiana_projections.csv", projections)
        reports = [study["report"] for study in written]
        write_table(root / "indiana_reports.csv", reports, KAGGLE_REPORTS)
    elif layout == "r2gen":
        text = json.dumps(_annotation(written, options.seed), ensure_ascii=False)
        (root / "annotation.json").write_text(text, encoding="utf-8")
    return len(tasks)


def reports_archive() -> Path:
    """The 3,955 Open-i reports that the package torchxrayvision carries.

    Raises:
        UserError: the package is not installed.
    """
    spec = importlib.util.find_spec("torchxrayvision")
    if spec is not None and spec.origin:
        path = Path(spec.origin).parent / "data" / "NLMCXR_reports.tgz"
        if path.exists():
            return path
    raise UserError(
        "the phantom in the Open-i layout needs the Indiana reports that the package "
        "torchxrayvision carries, and it is not installed: pip install 'mavilt[demo]'"
    )


def _reports(min_images: int) -> Iterator[tuple[str, bytes]]:
    """Yield the reports with FINDINGS, IMPRESSION and enough images, by number: name and bytes."""
    with tarfile.open(reports_archive()) as archive:
        members = []
        for member in archive.getmembers():
            if member.name.endswith(".xml"):
                members.append(member)
        # By number, since the archive's order is that of whoever packed it.
        for member in sorted(members, key=lambda member: int(Path(member.name).stem)):
            file = archive.extractfile(member)
            xml = file.read() if file is not None else b""
            tree = fromstring(xml)
            texts = {}
            for part in tree.iter("AbstractText"):
                texts[part.attrib.get("Label")] = part.text
            if not texts.get("FINDINGS") or not texts.get("IMPRESSION"):
                continue
            num_images = len(list(tree.iter("parentImage")))
            if num_images >= min_images:
                yield Path(member.name).name, xml


def heading_findings(headings: list[str], rng: np.random.Generator) -> list[Finding]:
    """Findings of MeSH/major headings such as `Pleural Effusion/left/small`, the first of a kind.

    Args:
        headings: of one report.
        rng: for what the headings do not say.
    """
    found: dict[str, Finding] = {}
    for heading in headings:
        parts = heading.lower().split("/")
        name = _finding_name(parts)
        # A report names the same finding under several headings.
        if name is None or name in found:
            continue
        side = _side(parts)
        # Only effusions are drawn on both sides; of another bilateral finding one side is drawn.
        if side == "both" and name != "pleural effusion":
            side = str(rng.choice(["left", "right"]))
        found[name] = make_finding(name, rng, side, _zone(parts))
    return list(found.values())


def _finding_name(parts: list[str]) -> str | None:
    if parts[:2] == ["lung", "hyperdistention"]:
        return "hyperinflation"
    return HEADINGS.get(parts[0])


def _side(parts: list[str]) -> str:
    for part in parts:
        if part in ("left", "right"):
            return part
    return "both" if "bilateral" in parts else ""


def _zone(parts: list[str]) -> str:
    if any("upper" in part or "apex" in part for part in parts):
        return "upper"
    if any("lower" in part or "base" in part for part in parts):
        return "lower"
    return ""


def render_study(task: StudyTask) -> RenderedStudy:
    """Render the images of a report.

    The frontal image takes the id of the report's first image, a lateral that of the second. Ids of
    images that are not rendered are removed from the report.
    """
    options = task.options
    # A report's images depend on its name alone, so any number of studies gives the same ones.
    key = [options.seed, zlib.crc32(task.file_name.encode())]
    # Laterals have a stream of their own, so frontal images are the same with and without them.
    rng = np.random.default_rng(key)
    lateral_rng = np.random.default_rng([*key, 1])
    tree: Element = fromstring(task.xml)
    headings = [major.text or "" for major in tree.iter("major")]
    findings = heading_findings(headings, rng)
    ids = [parent.attrib["id"] for parent in tree.iter("parentImage")]
    body = sample_body(rng, findings, marker=True)
    frontal = render(body, findings, options.size, rng)
    images: list[tuple[str, Projection, Array]] = [(ids[0], "PA", frontal)]
    if len(ids) > 1 and lateral_rng.random() < options.laterals:
        lateral = render(body, findings, options.size, lateral_rng, "LATERAL")
        images.append((ids[1], "LATERAL", lateral))
    # A report must not name an image that is not there: readers count those as missing files.
    _remove_images(tree, kept={name for name, _, _ in images})
    return RenderedStudy(Path(task.file_name).stem, tree, images)


def _remove_images(tree: Element, kept: set[str]) -> None:
    for parent in tree.iter():
        for child in list(parent):
            if child.tag == "parentImage" and child.attrib["id"] not in kept:
                parent.remove(child)


def _series(name: str) -> str:
    """The last part of an image's id.

    >>> _series("CXR10_IM-0002-1001"), _series("CXR1_1_IM-0001-4001")
    ('IM-0002-1001', 'IM-0001-4001')
    """
    return name.rsplit("_", 1)[-1]


def _write_open_i(root: Path, study: RenderedStudy) -> dict[str, Any]:
    for name, _, image in study.images:
        (root / "NLMCXR_png" / f"{name}.png").write_bytes(encode_picture(image, ".png"))
    data = tostring(study.tree, encoding="utf-8", xml_declaration=True)
    (root / "ecgen-radiology" / f"{study.number}.xml").write_bytes(data)
    return {}


def _write_kaggle(root: Path, study: RenderedStudy) -> dict[str, Any]:
    """Write the images; return their rows in the projections table and that of the report."""
    projections = []
    for name, view, image in study.images:
        file = f"{study.number}_{_series(name)}.dcm.png"
        path = root / "images" / "images_normalized" / file
        path.write_bytes(encode_picture(image, ".png"))
        side = "Lateral" if view == "LATERAL" else "Frontal"
        projections.append({"uid": study.number, "filename": file, "projection": side})
    headings = study.headings()
    # Each once, in the order of the headings.
    problems = dict.fromkeys(heading.split("/")[0] for heading in headings)
    # The first image's caption stands for the study, as in Kaggle's table.
    captions = [caption.text or "" for caption in study.tree.iter("caption")]
    report = {
        "uid": study.number,
        "MeSH": ";".join(headings),
        "Problems": ";".join(problems),
        "image": captions[0] if captions else "",
    }
    for section in KAGGLE_SECTIONS:
        report[section] = study.text(section.upper())
    return {"report": report, "projections": projections}


def _write_r2gen(root: Path, study: RenderedStudy) -> dict[str, Any]:
    """Write the images as `images/<id>/0.png`, `1.png`; return the entry in annotation.json."""
    # R2Gen names a study by its first image without the image's number: CXR10_IM-0002.
    first_image = study.images[0][0]
    name = f"CXR{study.number}_" + "-".join(_series(first_image).split("-")[:2])
    (root / "images" / name).mkdir(parents=True, exist_ok=True)
    paths = []
    for index, (_, _, image) in enumerate(study.images):
        paths.append(f"{name}/{index}.png")
        (root / "images" / paths[-1]).write_bytes(encode_picture(image, ".png"))
    return {"id": name, "report": study.text("FINDINGS"), "image_path": paths}


WRITERS = {"open-i": _write_open_i, "kaggle": _write_kaggle, "r2gen": _write_r2gen}
FOLDERS = {
    "open-i": ("ecgen-radiology", "NLMCXR_png"),
    "kaggle": ("images/images_normalized",),
    "r2gen": ("images",),
}


def _write_study(task: StudyTask) -> dict[str, Any]:
    cv2.setNumThreads(1)  # one process runs on each core
    return WRITERS[task.options.layout](task.options.root, render_study(task))


def _annotation(entries: list[dict[str, Any]], seed: int) -> dict[str, list[dict[str, Any]]]:
    """Entries in R2Gen's shares, 70 / 10 / 20, split in a random order."""
    # A stream that no report's checksum is likely to reach.
    order = np.random.default_rng([seed, 2**32 - 1]).permutation(len(entries))
    first, second = round(0.7 * len(entries)), round(0.8 * len(entries))
    parts = {"train": order[:first], "val": order[first:second], "test": order[second:]}
    annotation = {}
    for split, chosen in parts.items():
        annotation[split] = [entries[index] | {"split": split} for index in sorted(chosen)]
    return annotation
