"""Phantoms in the Open-i layout of the Indiana collection: the real reports, with images rendered from their MeSH
headings. The reports come from the installed torchxrayvision; nothing of them is kept in this package."""

from __future__ import annotations

import importlib.util
import io
import tarfile
import zlib
from pathlib import Path
from xml.etree.ElementTree import Element, tostring

import cv2
import numpy as np
from defusedxml.ElementTree import fromstring
from rich.progress import track

from mavilt_pl.data.study import DataError
from mavilt_pl.phantom.anatomy import draw_body, render
from mavilt_pl.phantom.findings import Finding, make_finding
from mavilt_pl.workers import pool

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
    path = Path(spec.origin).parent / "data" / "NLMCXR_reports.tgz" if spec and spec.origin else None
    if path is None or not path.exists():
        raise DataError(
            "the phantom in the Open-i layout needs the Indiana reports that the package torchxrayvision carries, and "
            "it is not installed: pip install 'mavilt[demo]'"
        )
    return path


def heading_findings(headings: list[str], rng: np.random.Generator) -> list[Finding]:
    """MeSH/major headings such as `Pleural Effusion/left/small` → findings, the first of each kind."""
    found: dict[str, Finding] = {}
    for heading in headings:
        parts = heading.lower().split("/")
        name = HEADINGS.get(parts[0]) or ("hyperinflation" if parts[:2] == ["lung", "hyperdistention"] else None)
        if name is None or name in found:
            continue
        side = next((part for part in parts if part in ("left", "right")), "both" if "bilateral" in parts else "")
        if side == "both" and name != "pleural effusion":
            side = str(rng.choice(["left", "right"]))
        zone = "upper" if any("upper" in p or "apex" in p for p in parts) else "lower" if any("lower" in p or "base" in p for p in parts) else ""  # fmt: skip
        found[name] = make_finding(name, rng, side, zone)
    return list(found.values())


def _write_study(task: tuple[Path, bytes, str, int, int]) -> None:
    root, xml, name, seed, size = task
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    cv2.setNumThreads(1)
    tree: Element = fromstring(xml)
    findings = heading_findings([major.text or "" for major in tree.iter("major")], rng)
    images = list(tree.iter("parentImage"))
    for parent in tree.iter():
        for lateral in [child for child in parent if child.tag == "parentImage" and child is not images[0]]:
            parent.remove(lateral)  # one frontal image a study: what the report names and is not rendered goes
    image = render(draw_body(rng, findings, marker=True), findings, size, rng)
    _, data = cv2.imencode(".png", (image * 255).round().astype(np.uint8))
    (root / "NLMCXR_png" / f"{images[0].attrib['id']}.png").write_bytes(data.tobytes())
    (root / "ecgen-radiology" / name).write_bytes(tostring(tree, encoding="utf-8", xml_declaration=True))


def write_indiana(root: Path, studies: int, size: int = 160, seed: int = 0, workers: int = 1) -> int:
    """Write the first `studies` reports that have FINDINGS, IMPRESSION and an image, each with one rendered image; gives
    how many there were."""
    for folder in ("ecgen-radiology", "NLMCXR_png"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    tasks: list[tuple[Path, bytes, str, int, int]] = []
    with tarfile.open(reports_archive()) as archive:
        members = sorted(
            (m for m in archive.getmembers() if m.name.endswith(".xml")), key=lambda m: int(Path(m.name).stem)
        )
        for member in members:
            if len(tasks) == studies:
                break
            xml = (archive.extractfile(member) or io.BytesIO()).read()
            tree = fromstring(xml)
            texts = {part.attrib.get("Label"): part.text for part in tree.iter("AbstractText")}
            if texts.get("FINDINGS") and texts.get("IMPRESSION") and next(tree.iter("parentImage"), None) is not None:
                tasks.append((root, xml, Path(member.name).name, seed, size))
    with pool(workers) as processes:
        done = processes.map(_write_study, tasks, chunksize=32)
        for _ in track(done, "Phantoms, Open-i", len(tasks)):
            pass
    return len(tasks)
