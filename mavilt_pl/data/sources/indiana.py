"""Indiana University collection (IU X-ray, Open-i): official XML reports, PNG or DICOM images."""

from __future__ import annotations

import re
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from xml.etree.ElementTree import Element

from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import ParseError, fromstring

from mavilt_pl.data.links import check_top_links
from mavilt_pl.data.records import FRONTAL, Image, Label, Split, Study, View
from mavilt_pl.data.sources import Reject
from mavilt_pl.data.sources.fields import hash_split, parse_view, path_inside
from mavilt_pl.data.sources.r2gen import entries
from mavilt_pl.data.sources.report_files import read_bounded, read_report_file
from mavilt_pl.data.sources.tables import find_table, read_table
from mavilt_pl.errors import Rejected, UserError

# The first part of a MeSH heading → the finding's name in the label tables of MIMIC-CXR, with a few
# names of its own.
MESH = {
    "cardiomegaly": "cardiomegaly",
    "pleural effusion": "pleural effusion",
    "pneumothorax": "pneumothorax",
    "hydropneumothorax": "pneumothorax",
    "hemopneumothorax": "pneumothorax",
    "hemothorax": "pleural effusion",
    "consolidation": "consolidation",
    "infiltrate": "lung opacity",
    "airspace disease": "lung opacity",
    "opacity": "lung opacity",
    "pneumonia": "pneumonia",
    "pulmonary edema": "edema",
    "pulmonary congestion": "edema",
    "pulmonary atelectasis": "atelectasis",
    "volume loss": "atelectasis",
    "nodule": "lung lesion",
    "mass": "lung lesion",
    "catheters, indwelling": "support devices",
    "implanted medical device": "support devices",
    "medical device": "support devices",
    "tube, inserted": "support devices",
    "emphysema": "hyperinflation",
    "pulmonary emphysema": "hyperinflation",
    "bullous emphysema": "hyperinflation",
    "pulmonary disease, chronic obstructive": "hyperinflation",
    "fractures, bone": "fracture",
    "hernia, hiatal": "hernia",
    "normal": "no finding",
}
# A heading and what has to stand behind it → finding and label. The indexers write "round" for
# "nodular", and leave open what a blunted angle or a borderline heart is.
MESH_QUALIFIED: tuple[tuple[str, frozenset[str], str, Label], ...] = (
    ("lung", frozenset({"hyperdistention"}), "hyperinflation", "present"),
    ("cardiac shadow", frozenset({"enlarged"}), "cardiomegaly", "present"),
    ("cardiac shadow", frozenset({"borderline"}), "cardiomegaly", "uncertain"),
    ("cardiomegaly", frozenset({"borderline"}), "cardiomegaly", "uncertain"),
    ("density", frozenset({"lung", "round"}), "lung lesion", "present"),
    ("opacity", frozenset({"lung", "round"}), "lung lesion", "present"),
    ("costophrenic angle", frozenset({"blunted"}), "pleural effusion", "uncertain"),
)
NOT_INDEXED = "no indexing"


def read(
    root: Path, reject: Reject, reports: str | None = None, follow_links: bool = False
) -> Iterator[Study]:
    """Yield the studies by number; each report is one patient.

    Images are `NLMCXR_png/<id>.png` or `<n>/<n>_IM-….dcm`. Views: see `view_lookup`. Splits are
    those of R2Gen's annotation.json if it lies in the folder (a report that it does not name is
    rejected), else 70 / 10 / 20 by hash.

    Args:
        root: the folder of the download.
        reject: called for everything that is not yielded.
        reports: the XML folder or the .tgz; default: ecgen-radiology in `root`.
        follow_links: read also what links in that folder lead to outside of it.

    Raises:
        UserError: there are no reports, or a table or archive is damaged.
    """
    # Read once: the tables have a row for each image.
    views = view_lookup(root)
    annotation = root / "annotation.json"
    splits = _r2gen_splits(annotation)
    missing = dict.fromkeys(splits)
    for file, data in _xml_files(root, reports, follow_links):
        # Known before the XML is read, so that a damaged report can be named.
        number = Path(file).stem
        try:
            tree = _parse_xml(data)
        except Rejected as reason_:
            reject(number, file, "read", str(reason_))
            continue
        name = _study_name(tree, number)
        # What stays in `missing` has a split and no report.
        missing.pop(name, None)
        if splits and name not in splits:
            reason = f"{annotation} does not name this report: it is in none of R2Gen's splits"
            reject(name, file, "read", reason)
            continue
        texts = _texts(tree)
        images = []
        for parent in tree.iter("parentImage"):
            try:
                images.append(_image(root, number, parent.attrib.get("id", ""), views))
            except Rejected as reason_:
                reject(name, file, "image", str(reason_))
        yield Study(
            source="indiana",
            patient=name,
            study=name,
            # Without R2Gen's file the same split as from Kaggle's tables: both hash `CXR<number>`.
            split=splits.get(name) or hash_split("indiana", name),
            images=tuple(images),
            findings=texts.get("FINDINGS", ""),
            impression=texts.get("IMPRESSION", ""),
            report=join_sections(texts),
            labels=mesh_labels(major.text or "" for major in tree.iter("major")),
        )
    for name in missing:
        reason = "no XML report with this uId; expected every study of the annotation"
        reject(name, str(annotation), "read", reason)


def _parse_xml(data: bytes | Rejected) -> Element:
    """The XML of a report, unless it could not be read.

    Raises:
        Rejected: it could not be read, or is no XML.
    """
    if isinstance(data, Rejected):
        raise data
    try:
        # defusedxml refuses entities, which could expand without end or read local files.
        return fromstring(data)
    except (ParseError, DefusedXmlException, ValueError, LookupError) as error:
        raise Rejected(f"not readable XML ({type(error).__name__}: {error})") from None


def _r2gen_splits(annotation: Path) -> dict[str, Split]:
    """The split of each study that R2Gen's annotation names; empty without the file."""
    if not annotation.exists():
        return {}
    return {str(entry.get("id", "")).split("_")[0]: split for split, entry in entries(annotation)}


def _number_order(name: str) -> tuple[int, str]:
    """Sorting key by number: `2.xml` before `10.xml`."""
    stem = Path(name).stem
    # Numbers of equal length sort as texts.
    return len(stem), stem


def _xml_files(
    root: Path, reports: str | None, follow_links: bool
) -> Iterator[tuple[str, bytes | Rejected]]:
    """Yield name and bytes of every report, by number, or why it cannot be read."""
    # An archive is read as it is, without unpacking it.
    source = Path(reports) if reports else root / "ecgen-radiology"
    if source.suffix in (".tgz", ".gz"):
        yield from _archived_xml_files(source)
        return
    if source.is_dir() and not follow_links:
        check_top_links(source)
    files = sorted(source.rglob("*.xml"), key=lambda path: _number_order(path.name))
    if not files:
        raise UserError(
            f"{source}: no *.xml found; expected the folder ecgen-radiology of the Open-i download "
            "(or --reports NLMCXR_reports.tgz)"
        )
    folder = None if follow_links else source.resolve()
    for path in files:
        try:
            yield str(path), read_report_file(path, folder)
        except Rejected as reason:
            yield str(path), reason


def _archived_xml_files(path: Path) -> Iterator[tuple[str, bytes | Rejected]]:
    try:
        with tarfile.open(path) as archive:
            members = []
            for member in archive.getmembers():
                if member.isfile() and member.name.endswith(".xml"):
                    members.append(member)
            for member in sorted(members, key=lambda member: _number_order(member.name)):
                file = archive.extractfile(member)
                assert file is not None  # it is a regular file
                try:
                    yield member.name, read_bounded(file, f"{path}: {member.name}")
                except Rejected as reason:
                    yield member.name, reason
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise UserError(f"{path} is not a readable archive ({error}): download it again") from None


def _study_name(tree: Element, number: str) -> str:
    uid = tree.find("uId")
    name = uid.attrib.get("id") if uid is not None else None
    return name or f"CXR{number}"


def _texts(tree: Element) -> dict[str, str]:
    """The report's sections by label; several parts of one label are joined."""
    # A dict keeps the order of the report, which `join_sections` relies on.
    texts: dict[str, str] = {}
    for part in tree.iter("AbstractText"):
        label = part.attrib.get("Label", "")
        # With the text of inner elements, such as emphasis.
        text = "".join(part.itertext()).strip()
        texts[label] = f"{texts.get(label, '')} {text}".strip()
    return texts


def _image(root: Path, number: str, key: str, views: Mapping[str, View]) -> Image:
    """The image that a report names: a DICOM file if it is there, else a PNG."""
    if not key or "/" in key:
        raise Rejected(
            f"parentImage id {key!r} is no file name; expected one such as CXR1_1_IM-0001-3001"
        )
    dicom = path_inside(root, f"{number}/{image_stem(key)}.dcm")
    png = path_inside(root / "NLMCXR_png", f"{key}.png")
    # DICOM first: it has the full depth, the PNG eight bits.
    path = dicom if dicom.exists() else png
    return Image(path, views.get(image_stem(key), "UNKNOWN"), key)


def image_stem(name: str) -> str:
    """An image's name as all layouts share it.

    >>> image_stem("CXR1_1_IM-0001-3001"), image_stem("1_IM-0001-3001.dcm.png")
    ('1_IM-0001-3001', '1_IM-0001-3001')
    """
    # Open-i repeats the study's number in some names, and Kaggle drops the "CXR".
    return re.sub(r"^CXR(\d+)_(?:\1_)?", r"\1_", name.removesuffix(".png").removesuffix(".dcm"))


def view_lookup(root: Path) -> dict[str, View]:
    """Views by `image_stem`, of indiana_projections and nlmcxr_dicom_metadata if they are there.

    The projections were set by people, the headers by machines. So a header's PA or AP refines a
    frontal projection, and counts alone only if no projection is known.
    """
    views: dict[str, View] = {}
    headers = find_table(root, "nlmcxr_dicom_metadata")
    if headers is not None:
        rows = read_table(headers, ("imageid", "View Position"), key=("imageid",))
        for name, code in zip(rows["imageid"], rows["View Position"]):
            views[image_stem(name)] = parse_view(code)
    projections = find_table(root, "indiana_projections")
    if projections is not None:
        rows = read_table(projections, ("uid", "filename", "projection"), key=("filename",))
        for name, code in zip(rows["filename"], rows["projection"]):
            stem, projection = image_stem(name), parse_view(code)
            refined = projection == "FRONTAL" and views.get(stem) in FRONTAL
            if not refined:
                views[stem] = projection
    return views


def mesh_labels(headings: Iterable[str]) -> dict[str, Label]:
    """Labels of MeSH/major headings such as `Pleural Effusion/left`.

    What no heading names is absent, because the indexers listed what they saw. There are no labels
    without any heading, or where the only one says that the report was not indexed.

    >>> mesh_labels(["Cardiomegaly/mild"])["cardiomegaly"], mesh_labels(["No Indexing"])
    ('present', {})
    """
    # What is certain outweighs what is not, whatever comes first.
    found: dict[str, Label] = {}
    doubtful: set[str] = set()
    any_heading = False
    for heading in headings:
        # Separated by slashes: the heading, then where and how.
        first, *rest = (part.strip() for part in heading.lower().split("/"))
        any_heading |= first not in ("", NOT_INDEXED)
        qualified = [rule for rule in MESH_QUALIFIED if rule[0] == first and rule[1] <= set(rest)]
        labels = [(name, label) for _, _, name, label in qualified]
        # A rule on the same finding replaces the plain heading: "cardiomegaly/borderline".
        plain = MESH.get(first)
        if plain is not None and plain not in dict(labels):
            labels.append((plain, "present"))
        for name, label in labels:
            if label == "present":
                found[name] = label
            else:
                doubtful.add(name)
    if not any_heading:
        return {}
    for name in doubtful:
        found.setdefault(name, "uncertain")
    return {name: found.get(name, "absent") for name in sorted(set(MESH.values()))}


def join_sections(texts: Mapping[str, str]) -> str:
    """A report's sections in their order, each under its heading.

    >>> join_sections({"findings": "Clear.", "impression": ""})
    'FINDINGS: Clear.'
    """
    return " ".join(f"{heading.upper()}: {text}" for heading, text in texts.items() if text)
