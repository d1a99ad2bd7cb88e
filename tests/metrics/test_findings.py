"""What a report asserts: wrapped lines, scope of negation, doubt, history, look-alikes."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from mavilt_pl.data.sources import read_source
from mavilt_pl.metrics.clinical import findings_in
from tests.metrics.report_sentences import NOT_READ, SENTENCES

PRESENT, ABSENT, UNCERTAIN = "present", "absent", "uncertain"
CARDIOMEGALY, EFFUSION, PNEUMOTHORAX = "cardiomegaly", "pleural effusion", "pneumothorax"
DEVICES, PNEUMONIA, LESION = "support devices", "pneumonia", "lung lesion"

READINGS: list[tuple[str, dict[str, str]]] = [
    ("There is no\n pneumothorax.", {PNEUMOTHORAX: ABSENT}),
    ("The heart is not enlarged.", {CARDIOMEGALY: ABSENT}),
    ("No pneumothorax, small left pleural effusion.", {PNEUMOTHORAX: ABSENT, EFFUSION: PRESENT}),
    (
        "No pneumothorax, pleural effusion or consolidation.",
        {PNEUMOTHORAX: ABSENT, EFFUSION: ABSENT, "consolidation": ABSENT},
    ),
    (
        "No pneumothorax, pleural effusion, or consolidation.",
        {PNEUMOTHORAX: ABSENT, EFFUSION: ABSENT, "consolidation": ABSENT},
    ),
    ("No pneumothorax, pleural effusion.", {PNEUMOTHORAX: ABSENT, EFFUSION: ABSENT}),
    ("No pneumothorax and small left effusion.", {PNEUMOTHORAX: ABSENT, EFFUSION: PRESENT}),
    ("No pneumothorax and pleural effusion.", {PNEUMOTHORAX: ABSENT, EFFUSION: ABSENT}),
    ("No pneumothorax and pleural effusion are seen.", {PNEUMOTHORAX: ABSENT, EFFUSION: ABSENT}),
    (
        "No pneumothorax, large effusion, or consolidation.",
        {PNEUMOTHORAX: ABSENT, EFFUSION: ABSENT, "consolidation": ABSENT},
    ),
    ("Normal heart size and moderate pulmonary edema.", {"edema": PRESENT}),
    ("Heart size is normal, small left pleural effusion.", {EFFUSION: PRESENT}),
    ("No significant change in bilateral pleural effusions.", {EFFUSION: PRESENT}),
    ("No change in the moderate left pneumothorax.", {PNEUMOTHORAX: PRESENT}),
    ("No significant interval change in the left pneumothorax.", {PNEUMOTHORAX: PRESENT}),
    ("Without significant change in the effusion.", {EFFUSION: PRESENT}),
    ("The effusion is not significantly changed.", {EFFUSION: PRESENT}),
    ("Pleural effusion has not changed.", {EFFUSION: PRESENT}),
    ("No increase in the effusion.", {EFFUSION: PRESENT}),
    ("Status post removal of PICC.", {DEVICES: ABSENT}),
    ("The PICC has been removed.", {DEVICES: ABSENT}),
    ("Interval removal of the endotracheal tube.", {DEVICES: ABSENT}),
    ("Chest tube removed.", {DEVICES: ABSENT}),
    (
        "Interval removal of the endotracheal tube, left chest tube remains in place.",
        {DEVICES: PRESENT},
    ),
    ("History of pneumonia.", {}),
    ("Indication: rule out pneumonia.", {}),
    ("INDICATION: Cough. Pneumonia.\n\nFINDINGS: Small effusion.", {EFFUSION: PRESENT}),
    ("Evaluate for pneumothorax.", {}),
    ("H/o pneumonia, now with small effusion.", {EFFUSION: PRESENT}),
    ("Findings concerning for pneumonia.", {PNEUMONIA: UNCERTAIN}),
    ("Pneumonia is possible.", {PNEUMONIA: UNCERTAIN}),
    ("Pneumonia cannot be excluded.", {PNEUMONIA: UNCERTAIN}),
    ("Opacity may represent pneumonia.", {PNEUMONIA: UNCERTAIN, "lung opacity": PRESENT}),
    ("Suggestive of pneumonia.", {PNEUMONIA: UNCERTAIN}),
    ("Cannot exclude pneumonia.", {PNEUMONIA: UNCERTAIN}),
    ("Pneumonia is not excluded.", {PNEUMONIA: UNCERTAIN}),
    ("Pneumonia could be present.", {PNEUMONIA: UNCERTAIN}),
    ("? pneumonia", {PNEUMONIA: UNCERTAIN}),
    ("Pneumonia?", {PNEUMONIA: UNCERTAIN}),
    ("Atelectasis versus pneumonia.", {PNEUMONIA: UNCERTAIN, "atelectasis": UNCERTAIN}),
    ("Likely atelectasis.", {"atelectasis": UNCERTAIN}),
    (
        "Opacity, possibly atelectasis, pneumonia, or edema.",
        {
            "lung opacity": PRESENT,
            "atelectasis": UNCERTAIN,
            PNEUMONIA: UNCERTAIN,
            "edema": UNCERTAIN,
        },
    ),
    ("Pneumothorax: none.", {PNEUMOTHORAX: ABSENT}),
    ("Pneumothorax is no longer seen.", {PNEUMOTHORAX: ABSENT}),
    ("Pneumothorax: None\nEffusion: small", {PNEUMOTHORAX: ABSENT, EFFUSION: PRESENT}),
    ("PNEUMOTHORAX: NONE.", {PNEUMOTHORAX: ABSENT}),
    ("Pneumothorax - none.", {PNEUMOTHORAX: ABSENT}),
    ("The left pneumothorax has resolved.", {PNEUMOTHORAX: ABSENT}),
    ("Resolved pneumothorax.", {PNEUMOTHORAX: ABSENT}),
    ("Interval resolution of the effusion.", {EFFUSION: ABSENT}),
    ("The effusion has nearly resolved.", {EFFUSION: PRESENT}),
    ("There is no longer a pneumothorax.", {PNEUMOTHORAX: ABSENT}),
    ("Effusion and pneumothorax are not seen.", {EFFUSION: ABSENT, PNEUMOTHORAX: ABSENT}),
    ("Effusion is small and pneumothorax is not seen.", {EFFUSION: PRESENT, PNEUMOTHORAX: ABSENT}),
    ("Moderate pericardial effusion.", {}),
    ("Subcutaneous emphysema.", {}),
    ("Collapse of the T12 vertebral body.", {}),
    ("Lytic lesion of the left sixth rib.", {}),
    ("Collapse of the left lower lobe.", {"atelectasis": PRESENT}),
    ("Pericardial and pleural effusions.", {EFFUSION: PRESENT}),
    ("No pleural or pericardial effusion.", {EFFUSION: ABSENT}),
    ("Sclerotic rib lesion.", {}),
    ("Left breast mass.", {}),
    ("Mass in the left lower lobe.", {LESION: PRESENT}),
    ("Mass in the left upper lobe, rib fracture.", {LESION: PRESENT, "fracture": PRESENT}),
    ("Hydropneumothorax.", {PNEUMOTHORAX: PRESENT}),
    ("Tiny apical PTX.", {PNEUMOTHORAX: PRESENT}),
    ("Interstitial oedema.", {"edema": PRESENT}),
    ("Mild cardiac enlargement.", {CARDIOMEGALY: PRESENT}),
    ("Enlarged cardiac silhouette.", {CARDIOMEGALY: PRESENT}),
    ("Heart size is mildly enlarged.", {CARDIOMEGALY: PRESENT}),
    ("The heart does not appear enlarged.", {CARDIOMEGALY: ABSENT}),
    ("Cardiac silhouette is not significantly enlarged", {CARDIOMEGALY: ABSENT}),
    ("The heart is no longer enlarged.", {CARDIOMEGALY: ABSENT}),
    ("Heart size is normal with prominent aorta.", {}),
    (
        "No pneumothorax\nSmall effusion\nCardiomegaly",
        {PNEUMOTHORAX: ABSENT, EFFUSION: PRESENT, CARDIOMEGALY: PRESENT},
    ),
    ("NO EVIDENCE OF\nPNEUMOTHORAX.", {PNEUMOTHORAX: ABSENT}),
    (
        "There is no focal consolidation, pleural effusion, or pneumothorax; heart is enlarged.",
        {EFFUSION: ABSENT, PNEUMOTHORAX: ABSENT, CARDIOMEGALY: PRESENT, "consolidation": ABSENT},
    ),
    ("No pneumothorax, effusion is small.", {PNEUMOTHORAX: ABSENT, EFFUSION: PRESENT}),
    ("No pneumothorax and the heart is enlarged.", {PNEUMOTHORAX: ABSENT, CARDIOMEGALY: PRESENT}),
    ("No pneumothorax with small effusion.", {PNEUMOTHORAX: ABSENT, EFFUSION: PRESENT}),
    ("No effusion, pacemaker in place.", {EFFUSION: ABSENT, DEVICES: PRESENT}),
    ("Pneumothorax is unlikely.", {PNEUMOTHORAX: ABSENT}),
    ("The left hemidiaphragm is not seen due to pleural effusion.", {EFFUSION: PRESENT}),
    (
        "Lungs are clear without consolidation, effusion, or pneumothorax, and heart is enlarged.",
        {EFFUSION: ABSENT, PNEUMOTHORAX: ABSENT, CARDIOMEGALY: PRESENT, "consolidation": ABSENT},
    ),
    ("Neither pneumothorax nor effusion.", {PNEUMOTHORAX: ABSENT, EFFUSION: ABSENT}),
    ("Heart not enlarged.", {CARDIOMEGALY: ABSENT}),
    ("No cardiomegaly. Pneumothorax (none).", {CARDIOMEGALY: ABSENT, PNEUMOTHORAX: ABSENT}),
    ("Pneumothorax, pleural effusion: none.", {PNEUMOTHORAX: ABSENT, EFFUSION: ABSENT}),
    (
        "There is no pneumothorax\n\nSmall pleural effusion",
        {PNEUMOTHORAX: ABSENT, EFFUSION: PRESENT},
    ),
    ("Unremarkable pacemaker.", {DEVICES: PRESENT}),
    ("Comparison: None. Small effusion.", {EFFUSION: PRESENT}),
    ("The previously seen effusion has resolved.", {EFFUSION: ABSENT}),
    ("Previously noted effusion is no longer visualized.", {EFFUSION: ABSENT}),
    ("Effusion, now resolved.", {EFFUSION: ABSENT}),
    ("No new consolidation.", {"consolidation": ABSENT}),
    ("Pneumothorax is not present.", {PNEUMOTHORAX: ABSENT}),
    ("Cardiomegaly is not seen.", {CARDIOMEGALY: ABSENT}),
    ("No large effusion.", {EFFUSION: ABSENT}),
    ("Bilateral effusions without pneumothorax.", {EFFUSION: PRESENT, PNEUMOTHORAX: ABSENT}),
    ("Emphysema of the chest wall.", {}),
    ("Subcutaneous and mediastinal emphysema.", {}),
    ("Pleural and pericardial effusions.", {EFFUSION: PRESENT}),
    ("Joint effusion.", {}),
    ("Pulmonary emphysema.", {"hyperinflation": PRESENT}),
    ("No lytic lesion of the ribs.", {}),
    ("Vertebral body collapse.", {}),
    ("T12 collapse.", {}),
    (
        "No focal consolidation, small pleural effusion, mild edema.",
        {"consolidation": ABSENT, EFFUSION: PRESENT, "edema": PRESENT},
    ),
    ("Heart is enlarged without edema.", {CARDIOMEGALY: PRESENT, "edema": ABSENT}),
    ("Cardiomegaly with no edema.", {CARDIOMEGALY: PRESENT, "edema": ABSENT}),
    ("Extubated. Endotracheal tube is no longer seen.", {DEVICES: ABSENT}),
    ("Raises the possibility of pneumonia.", {PNEUMONIA: UNCERTAIN}),
    ("Worrisome for pneumothorax.", {PNEUMOTHORAX: UNCERTAIN}),
    ("Pneumothorax not excluded.", {PNEUMOTHORAX: UNCERTAIN}),
    (
        "No pneumothorax, but pneumonia is not excluded.",
        {PNEUMOTHORAX: ABSENT, PNEUMONIA: UNCERTAIN},
    ),
    ("No effusion, pneumonia cannot be excluded.", {EFFUSION: ABSENT, PNEUMONIA: UNCERTAIN}),
    ("Prior history of pneumonia.", {}),
    ("Clinical history: pneumonia.", {}),
    ("Assess for effusion.", {}),
    ("To exclude pneumonia.", {}),
    ("Patient with history of pneumothorax and effusion.", {}),
    ("Please note that fractures may not be demonstrated.", {}),
    ("No acute, displaced fractures are demonstrated.", {"fracture": ABSENT}),
    ("This may be due to edema.", {"edema": UNCERTAIN}),
    (
        "No significant change in pneumothorax or right pleural fluid.",
        {PNEUMOTHORAX: PRESENT, EFFUSION: PRESENT},
    ),
]


@pytest.mark.parametrize(("text", "found"), READINGS, ids=[row[0] for row in READINGS])
def test_what_a_text_asserts(text: str, found: dict[str, str]) -> None:
    assert findings_in(text) == found


@pytest.mark.parametrize(("sentence", "meant"), SENTENCES.items())
def test_sentences_written_before_the_labeller_saw_them(sentence: str, meant: str) -> None:
    assert ", ".join(f"{name} {label}" for name, label in findings_in(sentence).items()) == (
        ", ".join(sorted(meant.split(", ")))
    )


@pytest.mark.parametrize(("sentence", "meant"), NOT_READ.items())
def test_known_limits_of_the_labeller(sentence: str, meant: str) -> None:
    """They claim nothing false. Once one is read, it belongs to the others."""
    assert findings_in(sentence) == {}, meant


@pytest.mark.parametrize("width", [80, 60, 40])
def test_wrapping_the_real_indiana_reports_changes_no_finding(width: int) -> None:
    pytest.importorskip("torchxrayvision")
    from mavilt_pl.phantom.indiana import reports_archive

    studies = list(
        read_source("indiana", Path("."), lambda *why: None, reports=str(reports_archive()))
    )
    wrong = []
    for study in studies[::8]:
        text = f"{study.findings} {study.impression}"
        wrapped = textwrap.fill(text, width, break_on_hyphens=False)
        if findings_in(wrapped) != findings_in(text):
            wrong.append(study.study)
    assert wrong == []


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "text",
    [
        "no pneumothorax, " * 10_000,
        "effusion and " * 10_000,
        "effusion/" * 10_000,
        "rib " * 100_000,
        " x\n" * 100_000,
    ],
)
def test_no_text_takes_long(text: str) -> None:
    """What grows with the square of the length would take hours."""
    findings_in(text)
