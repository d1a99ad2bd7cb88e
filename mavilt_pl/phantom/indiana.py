"""Phantoms in the three layouts of the Indiana collection (Open-i, Kaggle, R2Gen): the real
reports, with images rendered from their MeSH headings. The reports come from the installed
torchxrayvision; nothing of them is kept in this package.
"""

from __future__ import annotations

import importlib.util
import io
import json
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple
from xml.etree.ElementTree import Element, tostring

import cv2
import numpy as np
from defusedxml.ElementTree import fromstring
from rich.progress import track

from mavilt_pl.errors import UserError
from mavilt_pl.parallel.process_pool import process_pool
from mavilt_pl.phantom.anatomy import Projection, draw_body, render
from mavilt_pl.phantom.files import picture, write_table
from mavilt_pl.phantom.findings import Finding, make_finding
from mavilt_pl.phantom.shapes import Array

Layout = Literal["open-i", "kaggle", "r2gen"]
KAGGLE_REPORTS = (
    "uid",
    "MeSH",
    "Problems",
    "image",
    "indication",
    "comparison",
    "findings",
    "impression",
)

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


def reports_archive() -> Path:
    """The 3,955 Open-i reports that the package torchxrayvision carries."""
    spec = importlib.util.find_spec("torchxrayvision")
    path = (
        Path(spec.origin).parent / "data" / "NLMCXR_reports.tgz" if spec and spec.origin else None
    )
    if path is None or not path.exists():
        raise UserError(
            "the phantom in the Open-i layout needs the Indiana reports that the package "
            "torchxrayvision carries, and "
            "it is not installed: pip install 'mavilt[demo]'"
        )
    return path


def heading_findings(headings: list[str], rng: np.random.Generator) -> list[Finding]:
    """MeSH/major headings such as `Pleural Effusion/left/small` → findings, the first of each kind."""
    found: dict[str, Finding] = {}
    for heading in headings:
        parts = heading.lower().split("/")
        name = HEADINGS.get(parts[0]) or (
            "hyperinflation" if parts[:2] == ["lung", "hyperdistention"] else None
        )
        if name is None or name in found:
            continue
        side = next(
            (part for part in parts if part in ("left", "right")),
            "both" if "bilateral" in parts else "",
        )
        if side == "both" and name != "pleural effusion":
            side = str(rng.choice(["left", "right"]))
        zone = (
            "upper"
            if any("upper" in p or "apex" in p for p in parts)
            else "lower"
            if any("lower" in p or "base" in p for p in parts)
            else ""
        )
        found[name] = make_finding(name, rng, side, zone)
    return list(found.values())


class Task(NamedTuple):
    root: Path
    xml: bytes
    name: str  # of the XML file: its stem is the study's number
    seed: int
    size: int
    laterals: float
    layout: Layout


class Study(NamedTuple):
    """A real report and the images rendered for it, by the id that the report gives them."""

    number: str
    tree: Element
    images: list[tuple[str, Projection, Array]]

    def text(self, label: str) -> str:
        parts = {
            part.attrib.get("Label"): (part.text or "").strip()
            for part in self.tree.iter("AbstractText")
        }
        return parts.get(label, "")


def _draw(task: Task) -> Study:
    """The frontal image takes the id of the report's first image, a lateral that of its second,
    where it has one. What the report names and is not rendered goes.
    """
    rng, beside = (
        np.random.default_rng([task.seed, zlib.crc32(task.name.encode()), *more])
        for more in ((), (1,))
    )
    tree: Element = fromstring(task.xml)
    findings = heading_findings([major.text or "" for major in tree.iter("major")], rng)
    ids = [parent.attrib["id"] for parent in tree.iter("parentImage")]
    body = draw_body(rng, findings, marker=True)
    images: list[tuple[str, Projection, Array]] = [
        (ids[0], "PA", render(body, findings, task.size, rng))
    ]
    if len(ids) > 1 and beside.random() < task.laterals:
        images.append((ids[1], "LATERAL", render(body, findings, task.size, beside, "LATERAL")))
    kept = {name for name, _, _ in images}
    for parent in tree.iter():
        for child in [c for c in parent if c.tag == "parentImage" and c.attrib["id"] not in kept]:
            parent.remove(child)
    return Study(Path(task.name).stem, tree, images)


def _write_open_i(root: Path, study: Study) -> dict:
    for name, _, image in study.images:
        (root / "NLMCXR_png" / f"{name}.png").write_bytes(picture(image, ".png"))
    data = tostring(study.tree, encoding="utf-8", xml_declaration=True)
    (root / "ecgen-radiology" / f"{study.number}.xml").write_bytes(data)
    return {}


def _series(name: str) -> str:
    """`IM-0001-4001` of an image's id, which is CXR10_IM-0002-1001, or CXR1_1_IM-0001-4001 in the
    first report.
    """
    return name.rsplit("_", 1)[-1]


def _write_kaggle(root: Path, study: Study) -> dict:
    """The images; their rows in the projections table and the study's in the reports table come
    back.
    """
    projections = []
    for name, view, image in study.images:
        file = f"{study.number}_{_series(name)}.dcm.png"
        (root / "images" / "images_normalized" / file).write_bytes(picture(image, ".png"))
        side = "Lateral" if view == "LATERAL" else "Frontal"
        projections.append({"uid": study.number, "filename": file, "projection": side})
    headings = [major.text or "" for major in study.tree.iter("major")]
    captions = [caption.text or "" for caption in study.tree.iter("caption")]
    row = {name: study.text(name.upper()) for name in KAGGLE_REPORTS[4:]}
    row |= {
        "uid": study.number,
        "MeSH": ";".join(headings),
        "image": captions[0] if captions else "",
    }
    row["Problems"] = ";".join(dict.fromkeys(heading.split("/")[0] for heading in headings))
    return {"report": row, "projections": projections}


def _write_r2gen(root: Path, study: Study) -> dict:
    """The images as `images/<id>/0.png`, `1.png`; the study's entry in annotation.json comes back."""
    name = f"CXR{study.number}_" + "-".join(_series(study.images[0][0]).split("-")[:2])
    (root / "images" / name).mkdir(parents=True, exist_ok=True)
    for index, (_, _, image) in enumerate(study.images):
        (root / "images" / name / f"{index}.png").write_bytes(picture(image, ".png"))
    paths = [f"{name}/{index}.png" for index in range(len(study.images))]
    return {"id": name, "report": study.text("FINDINGS"), "image_path": paths}


WRITERS = {"open-i": _write_open_i, "kaggle": _write_kaggle, "r2gen": _write_r2gen}
FOLDERS = {
    "open-i": ("ecgen-radiology", "NLMCXR_png"),
    "kaggle": ("images/images_normalized",),
    "r2gen": ("images",),
}


def _write_study(task: Task) -> dict:
    cv2.setNumThreads(1)
    return WRITERS[task.layout](task.root, _draw(task))


def _reports(images: int) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of the reports that have FINDINGS, IMPRESSION and at least so many images, by
    number.
    """
    with tarfile.open(reports_archive()) as archive:
        members = [m for m in archive.getmembers() if m.name.endswith(".xml")]
        for member in sorted(members, key=lambda m: int(Path(m.name).stem)):
            xml = (archive.extractfile(member) or io.BytesIO()).read()
            tree = fromstring(xml)
            texts = {part.attrib.get("Label"): part.text for part in tree.iter("AbstractText")}
            if (
                texts.get("FINDINGS")
                and texts.get("IMPRESSION")
                and len(list(tree.iter("parentImage"))) >= images
            ):
                yield Path(member.name).name, xml


def _annotation(entries: list[dict], seed: int) -> dict[str, list[dict]]:
    """R2Gen's shares, 70 / 10 / 20, of the studies in a random order."""
    order = np.random.default_rng([seed, 2**32 - 1]).permutation(len(entries))
    first, second = round(0.7 * len(entries)), round(0.8 * len(entries))
    parts = {"train": order[:first], "val": order[first:second], "test": order[second:]}
    return {
        split: [entries[i] | {"split": split} for i in sorted(chosen)]
        for split, chosen in parts.items()
    }


def write_indiana(
    root: Path,
    studies: int,
    size: int = 160,
    seed: int = 0,
    workers: int = 1,
    laterals: float = 0.0,
    layout: Layout = "open-i",
) -> int:
    """Write the first `studies` reports that have FINDINGS, IMPRESSION and an image; gives how many
    there were.

    Each has a frontal image, and of those whose report names two images the share `laterals` a
    lateral. R2Gen kept the studies with two images, so that layout is drawn from those only.
    """
    for folder in FOLDERS[layout]:
        (root / folder).mkdir(parents=True, exist_ok=True)
    chosen = zip(range(studies), _reports(2 if layout == "r2gen" else 1))
    tasks = [Task(root, xml, name, seed, size, laterals, layout) for _, (name, xml) in chosen]
    with process_pool(workers) as processes:
        done = list(
            track(
                processes.map(_write_study, tasks, chunksize=32),
                f"Phantoms, Indiana ({layout})",
                len(tasks),
            )
        )
    if layout == "kaggle":
        write_table(
            root / "indiana_projections.csv",
            [row for study in done for row in study["projections"]],
        )
        write_table(
            root / "indiana_reports.csv", [study["report"] for study in done], KAGGLE_REPORTS
        )
    elif layout == "r2gen":
        text = json.dumps(_annotation(done, seed), ensure_ascii=False)
        (root / "annotation.json").write_text(text, encoding="utf-8")
    return len(tasks)
