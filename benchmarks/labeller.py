"""The rule-based labeller against the MeSH headings of the Indiana reports.

python benchmarks/labeller.py NLMCXR_reports.tgz
python benchmarks/labeller.py NLMCXR_reports.tgz --disagreements 100   # lines to read
python benchmarks/labeller.py NLMCXR_reports.tgz --peers               # needs medspacy, negspacy

Text: findings and impression of every report that has one. A finding counts as claimed where it is
present, not where it is uncertain: the indexers of "opacity, possibly atelectasis" named the
opacity. `certain` leaves those reports out, finding by finding. The peers get our terms, and judge
negation, doubt and history by themselves.
"""

from __future__ import annotations

import argparse
import importlib
import random
import re
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mavilt_pl.data.sources import indiana
from mavilt_pl.metrics.clinical import findings_in
from mavilt_pl.metrics.finding_phrases import LOOK_ALIKES, TERM

WIDTHS = (40, 60, 80)  # columns of the wrapped copies
Labels = dict[str, str]
Labeller = Callable[[str], Labels]


def read_reports(archive: Path) -> list[tuple[str, str, Labels]]:
    """Name, text and MeSH labels of every report with findings or an impression."""
    reports = []
    for study in indiana.read(Path(), lambda *_: None, reports=str(archive)):
        text = "\n\n".join(part for part in (study.findings, study.impression) if part)
        if text:
            reports.append((study.study, text, dict(study.labels)))
    return reports


def figures(
    found: list[Labels], labels: list[Labels], name: str
) -> tuple[int, float, float, float]:
    """Positives, precision, recall and F1 of a finding."""
    right = positive = claimed = 0
    for text, mesh in zip(found, labels):
        in_text, in_mesh = text.get(name) == "present", mesh.get(name) == "present"
        right += in_text and in_mesh
        positive += in_mesh
        claimed += in_text
    f1 = 2 * right / max(claimed + positive, 1)
    return positive, right / max(claimed, 1), right / max(positive, 1), f1


def certain_f1(found: list[Labels], labels: list[Labels], name: str) -> float:
    """F1 of a finding over the reports that do not leave it open."""
    kept = [i for i, text in enumerate(found) if text.get(name) != "uncertain"]
    return figures([found[i] for i in kept], [labels[i] for i in kept], name)[3]


def _terms(text: str) -> Iterator[tuple[str, int, int]]:
    """Name, begin and end of our terms in a text."""
    hidden = [match.span() for match in LOOK_ALIKES.finditer(text)]
    for name, pattern in TERM.items():
        for match in pattern.finditer(text):
            start, end = match.span()
            # "The heart is not enlarged" is one term of ours. A peer that finds cues outside of
            # terms only would count it.
            denied = re.search(r"\b(?:not|no longer)\b", match.group(), re.IGNORECASE)
            if not denied and not any(first <= start and end <= last for first, last in hidden):
                yield name, start, end


def _mark_terms(document: Any) -> None:
    """Make our terms the document's entities; the longest wins where two overlap."""
    spacy_util = importlib.import_module("spacy.util")
    spans = []
    for name, start, end in _terms(document.text):
        spans.append(document.char_span(start, end, label=name, alignment_mode="expand"))
    document.ents = spacy_util.filter_spans(spans)


def context_labeller() -> Labeller:
    """Our terms with medspaCy's sentences and ConText."""
    medspacy = importlib.import_module("medspacy")
    importlib.import_module("loguru").logger.remove()  # PyRuSH logs every token
    pipeline = medspacy.load(enable=["medspacy_pyrush", "medspacy_context"])

    def label(text: str) -> Labels:
        document = pipeline.get_pipe("medspacy_pyrush")(pipeline.make_doc(" ".join(text.split())))
        _mark_terms(document)
        document = pipeline.get_pipe("medspacy_context")(document)
        found: Labels = {}
        for entity in document.ents:
            context = entity._
            if context.is_negated or context.is_historical or context.is_hypothetical:
                continue
            if not context.is_uncertain:
                found[entity.label_] = "present"
            else:
                found.setdefault(entity.label_, "uncertain")
        return found

    return label


def negspacy_labeller() -> Labeller:
    """Our terms with spaCy's rule-based sentences and negspaCy's NegEx."""
    spacy = importlib.import_module("spacy")
    importlib.import_module("negspacy.negation")  # registers "negex"
    pipeline = spacy.blank("en")
    pipeline.add_pipe("sentencizer")
    negex = pipeline.add_pipe("negex")

    def label(text: str) -> Labels:
        document = pipeline.get_pipe("sentencizer")(pipeline.make_doc(" ".join(text.split())))
        _mark_terms(document)
        found: Labels = {}
        for entity in negex(document).ents:
            if not entity._.negex:
                found[entity.label_] = "present"
        return found

    return label


def print_table(labellers: dict[str, list[Labels]], labels: list[Labels]) -> None:
    """F1 by finding for each labeller, the rest for ours."""
    ours = labellers["ours"]
    names = "".join(f"{name:>10}" for name in labellers)
    print(f"{'finding':18}{'n':>5}{'precision':>11}{'recall':>8}{'certain':>9}{names}")
    totals = [0.0] * (1 + len(labellers))
    for name in TERM:
        count, precision, recall, _ = figures(ours, labels, name)
        row = [certain_f1(ours, labels, name)]
        row += [figures(found, labels, name)[3] for found in labellers.values()]
        totals = [total + value / len(TERM) for total, value in zip(totals, row)]
        others = "".join(f"{value:10.3f}" for value in row[1:])
        print(f"{name:18}{count:5}{precision:11.3f}{recall:8.3f}{row[0]:9.3f}{others}")
    others = "".join(f"{value:10.3f}" for value in totals[1:])
    print(f"{'macro':42}{totals[0]:9.3f}{others}")


def main() -> None:
    """Print the table, the wrapped copies and, if wanted, disagreements."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("archive", type=Path)
    parser.add_argument("--disagreements", type=int, default=0)
    parser.add_argument("--peers", action="store_true")
    args = parser.parse_args()

    reports = read_reports(args.archive)
    texts = [text for _, text, _ in reports]
    labels = [label for _, _, label in reports]
    labellers = {"ours": [findings_in(text) for text in texts]}
    if args.peers:
        for peer, make in (("medspaCy", context_labeller), ("negspaCy", negspacy_labeller)):
            label = make()
            labellers[peer] = [label(text) for text in texts]
    print(f"{len(reports)} reports")
    print_table(labellers, labels)

    for width in WIDTHS:
        same = 0
        for text, found in zip(texts, labellers["ours"]):
            # Line by line, so that the paragraphs of the original stay apart.
            lines = [textwrap.fill(line, width) for line in text.splitlines()]
            same += findings_in("\n".join(lines)) == found
        print(f"wrapped at {width}: the same findings in {same} of {len(texts)}")

    different = []
    for (study, text, mesh), found in zip(reports, labellers["ours"]):
        for name in TERM:
            if (mesh.get(name) == "present") != (found.get(name) == "present"):
                where = f"text {found.get(name)}, MeSH {mesh.get(name)}"
                different.append(f"{study} {name}, {where}: {' '.join(text.split())}")
    print(f"{len(different)} disagreements")
    for line in random.Random(0).sample(different, min(args.disagreements, len(different))):
        print("-", line)


if __name__ == "__main__":
    main()
