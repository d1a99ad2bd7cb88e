"""F1 of findings as the field counts it; the references are scikit-learn and real label tables."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import f1_score

from mavilt_pl.data.sources.fields import parse_labels
from mavilt_pl.errors import MaviltWarning
from mavilt_pl.metrics.finding_phrases import TERM
from mavilt_pl.metrics.findings_f1 import FindingsF1

NAMES = ["cardiomegaly", "pleural effusion"]
WRITTEN = [
    "The heart is enlarged.",
    "Small effusion.",
    "No effusion.",
    "The heart is enlarged. Large effusion.",
]
CLAIMED = [(1, 0), (0, 1), (0, 0), (1, 1)]


def figures(
    findings: list[str], texts: list[str], labels: list[dict[str, str]]
) -> dict[str, float]:
    metric = FindingsF1(findings)
    metric.update(texts, labels, [str(number) for number in range(len(texts))])
    return {name: figure.value for name, figure in metric.compute().items()}


def test_against_sklearn() -> None:
    truth = [(1, 0), (0, 1), (0, 1), (0, 1)]
    # A blank label and a denied one count alike.
    labels = [
        {"cardiomegaly": "present"},
        {"pleural effusion": "present", "cardiomegaly": "absent"},
        {"pleural effusion": "present"},
        {"pleural effusion": "present", "cardiomegaly": "absent"},
    ]
    found = figures(NAMES, WRITTEN, labels)
    for average in ("macro", "micro"):
        expected = f1_score(truth, CLAIMED, average=average)
        assert found[f"findings_f1_{average}"] == pytest.approx(expected)
    # Chance: the expectation over all ways of dealing the four reports to the four patients.
    dealt = []
    for order in itertools.permutations(range(4)):
        dealt.append([CLAIMED[number] for number in order])
    macro = [f1_score(truth, claims, average="macro") for claims in dealt]
    assert found["findings_f1_macro_chance"] == pytest.approx(np.mean(macro), abs=0.02)
    micro = [f1_score(truth, claims, average="micro") for claims in dealt]
    assert found["findings_f1_micro_chance"] == pytest.approx(np.mean(micro), abs=0.02)


def test_uncertain_counts_both_ways() -> None:
    labels = [
        {"cardiomegaly": "uncertain"},
        {"cardiomegaly": "present"},
        {"cardiomegaly": "absent"},
    ]
    texts = ["Possible cardiomegaly.", "The heart is enlarged.", "The heart is enlarged."]
    found = figures(["cardiomegaly"], texts, labels)
    assert found["findings_f1_macro"] == pytest.approx(f1_score([0, 1, 0], [0, 1, 1]))
    assert found["findings_f1_macro_uncertain"] == pytest.approx(f1_score([1, 1, 0], [1, 1, 1]))


def test_a_study_without_labels_is_left_out() -> None:
    labels = [{"cardiomegaly": "present"}, {}]
    found = figures(["cardiomegaly"], ["The heart is enlarged."] * 2, labels)
    assert found["findings_f1_macro"] == 1
    assert figures(["cardiomegaly"], WRITTEN[:1], [{}]) == {}


def test_the_five_findings_of_the_competition() -> None:
    five = ["atelectasis", "cardiomegaly", "consolidation", "edema", "pleural effusion"]
    label = dict.fromkeys([*five, "fracture"], "present")
    texts = ["Atelectasis. Cardiomegaly. Edema. Fracture."]
    found = figures([*five, "fracture"], texts, [label])
    assert found["findings_f1_macro_5"] == pytest.approx(3 / 5)
    assert found["findings_f1_macro"] == pytest.approx(4 / 6)
    assert "findings_f1_macro_5" not in figures(five[1:], texts, [label])


def test_a_finding_without_words_is_left_out_by_name() -> None:
    with pytest.warns(MaviltWarning, match=r"no words for enlarged cardiomediastinum, hernia"):
        metric = FindingsF1(["enlarged cardiomediastinum", "edema", "hernia"])
    assert metric.findings == ("edema",)


@pytest.mark.parametrize("text", ["everything", "nothing"])
def test_a_constant_report_is_at_chance_on_a_real_table(text: str) -> None:
    """The labels of 20,000 real studies of CheXpert, of which most cells are blank."""
    tables = Path(pytest.importorskip("torchxrayvision").__file__).parent / "data"
    rows = pd.read_csv(
        tables / "chexpert_train.csv.gz", nrows=20_000, dtype=str, keep_default_na=False
    )
    columns = list(rows.columns[5:])
    labels = [parse_labels(row, columns) for row in rows[columns].to_dict("records")]
    findings = [name.lower() for name in columns if name.lower() in TERM]
    words = ". ".join(name.capitalize() for name in findings)
    report = f"{words}. A nodule. An opacity. A pacemaker." if text == "everything" else "Normal."
    metric = FindingsF1(findings)
    metric.update([report] * len(labels), labels, [str(number) for number in range(len(labels))])
    found = {name: figure.value for name, figure in metric.compute().items()}
    for average in ("macro", "micro"):
        chance = found[f"findings_f1_{average}_chance"]
        assert found[f"findings_f1_{average}"] <= chance + 1e-9
    if text == "everything":
        # .750 when blank labels were dropped.
        assert 0.2 < found["findings_f1_macro"] < 0.4
    else:
        assert found["findings_f1_macro"] == 0
