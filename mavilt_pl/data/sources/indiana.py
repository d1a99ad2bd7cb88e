"""Indiana University collection (IU X-ray, Open-i): the official XML reports with PNG or DICOM images."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from xml.etree.ElementTree import Element

import pandas as pd
from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import ParseError, fromstring

from mavilt_pl.data.sources import Reject, hash_split
from mavilt_pl.data.study import DataError, Image, Label, Split, Study, View

# The first part of a MeSH heading → the finding's name in the label tables of MIMIC-CXR, and a few of its own.
MESH = {
    "cardiomegaly": "cardiomegaly",
    "pleural effusion": "pleural effusion",
    "pneumothorax": "pneumothorax",
    "hydropneumothorax": "pneumothorax",
    "consolidation": "consolidation",
    "infiltrate": "lung opacity",
    "airspace disease": "lung opacity",
    "opacity": "lung opacity",
    "pneumonia": "pneumonia",
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
    "fractures, bone": "fracture",
    "hernia, hiatal": "hernia",
    "normal": "no finding",
}


def _xml_files(root: Path, reports: str | None) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of every report, by number; from `ecgen-radiology/` or a .tgz."""
    place = Path(reports) if reports else root / "ecgen-radiology"
    if place.suffix in (".tgz", ".gz"):
        with tarfile.open(place) as archive:
            members = [m for m in archive.getmembers() if m.isfile() and m.name.endswith(".xml")]
            for member in sorted(members, key=lambda m: (len(Path(m.name).stem), m.name)):
                yield member.name, archive.extractfile(member).read()  # type: ignore[union-attr]
        return
    files = sorted(place.rglob("*.xml"), key=lambda p: (len(p.stem), p.name))
    if not files:
        raise DataError(
            f"{place}: no *.xml found; expected the folder ecgen-radiology of the Open-i download (or --reports NLMCXR_reports.tgz)"
        )
    for path in files:
        yield str(path), path.read_bytes()


def _views(root: Path) -> dict[str, View]:
    path = root / "indiana_projections.csv"
    if not path.exists():
        return {}
    rows = pd.read_csv(path, dtype=str, keep_default_na=False)
    view: dict[str, View] = {"frontal": "FRONTAL", "lateral": "LATERAL"}
    return {
        n.removesuffix(".dcm.png").removesuffix(".png"): view.get(p.lower(), "UNKNOWN")
        for n, p in zip(rows["filename"], rows["projection"])
    }


def _annotation(root: Path) -> dict[str, Split]:
    """R2Gen's splits by the number in the study's id, where its annotation.json lies in the folder."""
    path = root / "annotation.json"
    if not path.exists():
        return {}
    groups = json.loads(path.read_text(encoding="utf-8-sig"))
    return {
        item["id"].split("_")[0].removeprefix("CXR"): split
        for split in ("train", "val", "test")
        for item in groups[split]
    }  # type: ignore[misc]


def mesh_labels(tree: Element) -> dict[str, Label]:
    """MeSH/major headings → labels. What no heading names is absent: the indexers listed what they saw."""
    headings = [(major.text or "").lower().split("/") for major in tree.iter("major")]
    present = {MESH[parts[0].strip()] for parts in headings if parts[0].strip() in MESH}
    if any(parts[0] == "lung" and "hyperdistention" in parts for parts in headings):
        present.add("hyperinflation")
    if not headings:
        return {}
    return {name: "present" if name in present else "absent" for name in sorted(set(MESH.values()))}


def read(root: Path, reject: Reject, reports: str | None = None) -> Iterator[Study]:
    """Studies by number. Images are `NLMCXR_png/<id>.png` or `<n>/<id>.dcm`; `reports` names the XML folder or .tgz.

    Splits: those of an annotation.json in the folder, else 70 / 10 / 20 by patient (each report is one patient)."""
    views, splits = _views(root), _annotation(root)
    seen: set[str] = set()
    for name, data in _xml_files(root, reports):
        number = Path(name).stem
        try:
            tree = fromstring(data)
        except (ParseError, DefusedXmlException, ValueError) as error:
            reject(number, name, "read", f"not readable XML ({type(error).__name__}: {error})")
            continue
        uid = tree.find("uId")
        identity = (uid.attrib.get("id") if uid is not None else None) or f"CXR{number}"
        if identity in seen:
            reject(number, name, "read", f"a second report with uId {identity}; the first is kept")
            continue
        seen.add(identity)
        texts = {part.attrib.get("Label", ""): (part.text or "").strip() for part in tree.iter("AbstractText")}
        images = []
        for image in tree.iter("parentImage"):
            key = image.attrib.get("id", "")
            if not key or "/" in key or ".." in key:
                reject(number, name, "read", f"an image id that is no file name: {key!r}")
                continue
            short = key.split("_", 1)[-1]
            dicom = root / number / f"{number}_{short}.dcm"
            path = dicom if dicom.exists() else root / "NLMCXR_png" / f"{key}.png"
            images.append(Image(path, views.get(f"{number}_{short}", "UNKNOWN"), key))
        yield Study(
            source="indiana",
            patient=identity,
            study=identity,
            split=splits.get(number) or hash_split("indiana", identity),
            images=tuple(images),
            findings=texts.get("FINDINGS", ""),
            impression=texts.get("IMPRESSION", ""),
            labels=mesh_labels(tree),
        )
