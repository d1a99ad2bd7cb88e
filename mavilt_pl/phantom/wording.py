"""Word the report of a phantom from its findings, in the fixed order of a structured report."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mavilt_pl.phantom.findings import Finding

PRESENT: dict[str, tuple[str, ...]] = {
    "cardiomegaly": (
        "The heart is enlarged.",
        "There is {grade} cardiomegaly.",
        "The cardiac silhouette is enlarged.",
    ),
    "edema": ("There is pulmonary edema.", "Perihilar haze is consistent with pulmonary edema."),
    "consolidation": (
        "There is a consolidation in the {side} {zone} lung.",
        "There is consolidation of the {side} {zone} lung.",
    ),
    "lung lesion": (
        "There is a {mm} mm nodule in the {side} {zone} lung.",
        "There is a nodule in the {side} {zone} lung.",
    ),
    "atelectasis": (
        "There is {side} basilar atelectasis with elevation of the {side} hemidiaphragm.",
        "There is {side} lower lobe atelectasis with volume loss.",
    ),
    "hyperinflation": ("The lungs are hyperinflated with flattened diaphragms.",),
    "pleural effusion": ("{amount} {side} pleural effusion.",),
    "pneumothorax": ("{amount} {side} pneumothorax.",),
    "support devices": ("{device}",),
}
ABSENT: dict[str, tuple[str, ...]] = {
    "cardiomegaly": ("Heart size is normal.", "The cardiac silhouette is normal in size."),
    "edema": ("No pulmonary edema.",),
    "consolidation": ("No consolidation.", "No focal consolidation."),
    "lung lesion": ("No nodule.",),
    "atelectasis": ("No atelectasis.",),
    "pleural effusion": ("No pleural effusion.",),
    "pneumothorax": ("No pneumothorax.",),
    "support devices": ("No support devices.",),
}
DEVICE = {
    "pacemaker": "A left chest pacemaker is in place with its lead in the right ventricle.",
    "central line": "A right central venous line ends in the superior vena cava.",
    "endotracheal tube": "An endotracheal tube ends above the carina.",
}
AMOUNTS = ("Small", "Moderate", "Large")
GRADES = ("mild", "moderate", "severe")
LUNG = ("edema", "consolidation", "lung lesion", "atelectasis")
PLEURA = ("pleural effusion", "pneumothorax")


def _side(finding: Finding) -> str:
    return "bilateral" if finding.side == "both" else finding.side


def _describe(finding: Finding, rng: np.random.Generator) -> str:
    """A sentence that says that the finding is present."""
    # Sizes are uniform in [0, 1), so the three words are equally frequent.
    third = min(int(finding.size * 3), 2)
    return str(rng.choice(PRESENT[finding.name])).format(
        side=_side(finding),
        zone=finding.zone,
        amount=AMOUNTS[third],
        grade=GRADES[third],
        # Twice the radius that `Chest.add_nodule` draws.
        mm=round(14 + 15 * finding.size),
        device=DEVICE.get(finding.kind, ""),
    )


def worded_findings(findings: Sequence[Finding]) -> tuple[str, ...]:
    """Names of the findings that the FINDINGS section describes or denies, in its order.

    As radiologists do, it has one normal sentence for the lungs while nothing is in them, and
    denies each finding by itself once one is present.

    >>> worded_findings([])
    ('cardiomegaly', 'pleural effusion', 'pneumothorax', 'support devices')
    """
    present = {finding.name for finding in findings}
    names = ["cardiomegaly"]
    # It is never denied: reports name it only if it is there.
    if "hyperinflation" in present:
        names.append("hyperinflation")
    if present.intersection(LUNG):
        names += LUNG
    return (*names, *PLEURA, "support devices")


def findings_text(findings: Sequence[Finding], rng: np.random.Generator) -> str:
    """The FINDINGS section.

    Args:
        findings: of the study.
        rng: chooses among wordings, in the order of the sentences.
    """
    by_name = {finding.name: finding for finding in findings}
    names = worded_findings(findings)
    # Each sentence below draws its wording in turn: their order is part of what a seed means.
    no_pleura = not any(name in by_name for name in PLEURA)
    sentences = []
    for name in names:
        if name == PLEURA[0] and not any(lung in names for lung in LUNG):
            sentences.append("The lungs are clear.")
        if name in by_name:
            sentences.append(_describe(by_name[name], rng))
        elif name in PLEURA and no_pleura:
            # One sentence denies both.
            if name == PLEURA[0]:
                sentences.append("No pleural effusion or pneumothorax.")
        else:
            # str: rng.choice returns numpy's own text type.
            sentences.append(str(rng.choice(ABSENT[name])))
    return " ".join(sentences)


def impression_text(findings: Sequence[Finding]) -> str:
    """The IMPRESSION section: names what is present.

    >>> impression_text([Finding("pleural effusion", side="both"), Finding("edema")])
    'Bilateral pleural effusion. Edema.'
    """
    sentences = []
    for finding in findings:
        name = finding.name
        if name == "lung lesion":
            name = "lung nodule"
        elif name == "support devices":
            name = finding.kind
        sentences.append(f"{_side(finding)} {name}".strip().capitalize() + ".")
    return " ".join(sentences) or "No acute cardiopulmonary process."
