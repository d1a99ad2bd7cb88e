"""Indiana University collection (IU X-ray, Open-i): the official XML reports with PNG or DICOM
images.
"""

from __future__ import annotations

import re
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import ParseError, fromstring

from mavilt_pl.data.records import FRONTAL, Image, Label, Split, Study, View
from mavilt_pl.data.sources import Reject, find_table, hash_split, inside, read_table, view
from mavilt_pl.data.sources.r2gen import entries
from mavilt_pl.errors import Rejected, UserError

# The first part of a MeSH heading → the finding's name in the label tables of MIMIC-CXR, and a few
# of its own.
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


def by_number(name: str) -> tuple[int, str]:
    """`2.xml` before `10.xml`."""
    return len(Path(name).stem), Path(name).stem


def _xml_files(root: Path, reports: str | None) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of every report, by number; from `ecgen-radiology/` or a .tgz."""
    place = Path(reports) if reports else root / "ecgen-radiology"
    if place.suffix in (".tgz", ".gz"):
        try:
            with tarfile.open(place) as archive:
                members = [
                    m for m in archive.getmembers() if m.isfile() and m.name.endswith(".xml")
                ]
                for member in sorted(members, key=lambda m: by_number(m.name)):
                    yield member.name, archive.extractfile(member).read()  # type: ignore[union-attr]
        except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
            raise UserError(
                f"{place} is not a readable archive ({error}): download it again"
            ) from None
        return
    files = sorted(place.rglob("*.xml"), key=lambda p: by_number(p.name))
    if not files:
        raise UserError(
            f"{place}: no *.xml found; expected the folder ecgen-radiology of the Open-i download "
            f"(or --reports "
            "NLMCXR_reports.tgz)"
        )
    for path in files:
        yield str(path), path.read_bytes()


def stem(name: str) -> str:
    """`CXR1_1_IM-0001-3001` of the XML and `1_IM-0001-3001.dcm.png` of the other layouts →
    `1_IM-0001-3001`.
    """
    return re.sub(r"^CXR(\d+)_(?:\1_)?", r"\1_", name.removesuffix(".png").removesuffix(".dcm"))


def view_lookup(root: Path) -> dict[str, View]:
    """Views by `stem`, of indiana_projections and nlmcxr_dicom_metadata where these lie in `root`.

    The projections were set by people, the headers by machines: a header's PA or AP refines a
    frontal projection, and counts alone where no projection is known.
    """
    views: dict[str, View] = {}
    if path := find_table(root, "nlmcxr_dicom_metadata"):
        rows = read_table(path, ("imageid", "View Position"), key=("imageid",))
        views = {
            stem(name): view(code) for name, code in zip(rows["imageid"], rows["View Position"])
        }
    if path := find_table(root, "indiana_projections"):
        rows = read_table(path, ("uid", "filename", "projection"), key=("filename",))
        for name, projection in zip(map(stem, rows["filename"]), map(view, rows["projection"])):
            if not (projection == "FRONTAL" and views.get(name) in FRONTAL):
                views[name] = projection
    return views


def mesh_labels(headings: Iterable[str]) -> dict[str, Label]:
    """MeSH/major headings such as `Pleural Effusion/left` → labels. What no heading names is
    absent: the indexers listed what they saw. No heading at all is no label.
    """
    parts = [
        [part.strip() for part in heading.lower().split("/")]
        for heading in headings
        if heading.strip()
    ]
    if not parts:
        return {}
    present = {MESH[first] for first, *_ in parts if first in MESH}
    if any(first == "lung" and "hyperdistention" in rest for first, *rest in parts):
        present.add("hyperinflation")
    return {name: "present" if name in present else "absent" for name in sorted(set(MESH.values()))}


def whole(texts: Mapping[str, str]) -> str:
    """A report's sections in their order, each under its heading."""
    return " ".join(f"{heading.upper()}: {text}" for heading, text in texts.items() if text)


def read(root: Path, reject: Reject, reports: str | None = None) -> Iterator[Study]:
    """Studies by number. Images are `NLMCXR_png/<id>.png` or `<n>/<n>_IM-….dcm`; `reports` is the
    XML folder or .tgz.

    Splits: those of R2Gen's annotation.json where it lies in the folder (a report that it leaves
    out is rejected), else 70 / 10 / 20 by patient (each report is one patient). Views: see
    `view_lookup`.
    """
    views = view_lookup(root)
    annotation = root / "annotation.json"
    splits: dict[str, Split] = {}
    if annotation.exists():
        splits = {
            str(entry.get("id", "")).split("_")[0]: split for split, entry in entries(annotation)
        }
    unread = dict.fromkeys(splits)
    for name, data in _xml_files(root, reports):
        number = Path(name).stem
        try:
            tree = fromstring(data)
        except (ParseError, DefusedXmlException, ValueError, LookupError) as error:
            reject(number, name, "read", f"not readable XML ({type(error).__name__}: {error})")
            continue
        uid = tree.find("uId")
        identity = (uid.attrib.get("id") if uid is not None else None) or f"CXR{number}"
        unread.pop(identity, None)
        if splits and identity not in splits:
            reject(
                identity,
                name,
                "read",
                f"{annotation} does not name this report: it is in none of R2Gen's splits",
            )
            continue
        texts: dict[str, str] = {}
        for part in tree.iter("AbstractText"):
            label = part.attrib.get("Label", "")
            texts[label] = f"{texts.get(label, '')} {''.join(part.itertext()).strip()}".strip()
        images = []
        for key in (image.attrib.get("id", "") for image in tree.iter("parentImage")):
            try:
                if not key or "/" in key:
                    raise Rejected(
                        f"parentImage id {key!r} is no file name; expected one such as "
                        f"CXR1_1_IM-0001-3001"
                    )
                dicom, png = (
                    inside(root, f"{number}/{stem(key)}.dcm"),
                    inside(root / "NLMCXR_png", f"{key}.png"),
                )
            except Rejected as reason:
                reject(identity, name, "image", str(reason))
                continue
            images.append(
                Image(dicom if dicom.exists() else png, views.get(stem(key), "UNKNOWN"), key)
            )
        yield Study(
            source="indiana",
            patient=identity,
            study=identity,
            split=splits.get(identity) or hash_split("indiana", identity),
            images=tuple(images),
            findings=texts.get("FINDINGS", ""),
            impression=texts.get("IMPRESSION", ""),
            report=whole(texts),
            labels=mesh_labels(major.text or "" for major in tree.iter("major")),
        )
    for identity in unread:
        reject(
            identity,
            str(annotation),
            "read",
            "no XML report with this uId; expected every study of the annotation",
        )
