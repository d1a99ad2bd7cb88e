"""Figures by subgroup, against pandas, scikit-learn and rouge-score."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rouge_score.rouge_scorer import RougeScorer
from sklearn.metrics import roc_auc_score
from words import DATA, QUIET, mavilt

from mavilt_pl.cli import main
from mavilt_pl.data.corpus import Corpus
from mavilt_pl.evaluation.subgroups import FEWEST_PATIENTS, subgroups


def simulated_answers(random: np.random.Generator, patients: int, worse: str = "") -> list[dict]:
    """Two questions on one study or two of each patient; on `worse` the answers are noise."""
    records = []
    for patient in range(patients):
        sex = random.choice(["female", "male"])
        for view in ("PA", "AP")[: random.integers(1, 3)]:
            for topic in ("edema", "fracture"):
                truth = random.random() < 0.4
                signal = 0.0 if sex == worse else 1.5
                logit = signal * (truth - 0.5) + random.normal()
                records.append(
                    {
                        "task": "vqa",
                        "source": "here",
                        "study": f"{patient}{view}",
                        "patient": str(patient),
                        "attributes": {"sex": sex, "view": view},
                        "question": f"Is there {topic}?",
                        "topic": topic,
                        "reference": "yes" if truth else "no",
                        "candidates": ["yes", "no"],
                        "probabilities": [
                            1 / (1 + np.exp(-logit)),
                            1 - 1 / (1 + np.exp(-logit)),
                        ],
                    }
                )
    return records


def of_metric(rows: list[dict], attribute: str, metric: str) -> dict[str, dict]:
    return {
        row["group"]: row
        for row in rows
        if row["attribute"] == attribute and row["metric"] == metric
    }


def test_answers_by_group_equal_pandas() -> None:
    records = simulated_answers(np.random.default_rng(0), 120)
    found = subgroups(records, ["edema", "fracture"])
    table = pd.DataFrame(records)
    table["sex"] = table["attributes"].str["sex"]
    table["view"] = table["attributes"].str["view"]
    table["yes"] = table["probabilities"].str[0]
    table["truth"] = table["reference"] == "yes"
    table["right"] = (table["yes"] >= 0.5) == table["truth"]
    for attribute in ("sex", "view"):
        accuracy = of_metric(found["figures"], attribute, "accuracy")
        areas = of_metric(found["figures"], attribute, "auroc/edema")
        groups = table.groupby(attribute)
        assert set(accuracy) == set(groups.groups)
        for name, rows in groups:
            assert accuracy[name]["value"] == pytest.approx(rows["right"].mean(), abs=1e-12)
            assert accuracy[name]["n"] == len(rows)
            assert accuracy[name]["patients"] == rows["patient"].nunique()
            assert accuracy[name]["low"] < accuracy[name]["value"] < accuracy[name]["high"]
            edema = rows[rows["topic"] == "edema"]
            area = roc_auc_score(edema["truth"], edema["yes"])
            assert areas[name]["value"] == pytest.approx(area, abs=1e-12)
            assert areas[name]["positives"] == edema["truth"].sum()
        (gap,) = [
            row
            for row in found["gaps"]
            if (row["attribute"], row["metric"]) == (attribute, "accuracy")
        ]
        means = groups["right"].mean()
        assert gap["gap"] == pytest.approx(means.max() - means.min(), abs=1e-12)
        assert gap["highest"]["group"] == means.idxmax()
        assert gap["lowest"]["group"] == means.idxmin()


def test_reports_by_group_equal_rouge_score() -> None:
    random = np.random.default_rng(1)
    words = ["no", "effusion", "heart", "is", "large", "lungs", "clear"]
    records = []
    for patient in range(40):
        texts = [" ".join(random.choice(words, random.integers(3, 9))) for _ in range(2)]
        records.append(
            {
                "task": "report",
                "source": "here",
                "patient": str(patient),
                "attributes": {"age": ["18 to 39", "60 to 79"][patient % 2]},
                "generated": texts[0],
                "reference": texts[1],
                "labels": {"pleural effusion": ["present", "absent"][patient % 3 > 0]},
            }
        )
    found = subgroups(records, ["pleural effusion"])
    scorer = RougeScorer(["rougeL"], use_stemmer=False)
    table = pd.DataFrame(records)
    table["age"] = table["attributes"].str["age"]
    table["rouge"] = [
        scorer.score(row["reference"], row["generated"])["rougeL"].fmeasure for row in records
    ]
    for name, mean in table.groupby("age")["rouge"].mean().items():
        figure = of_metric(found["figures"], "age", "rouge_l")[name]
        assert figure["value"] == pytest.approx(mean, abs=1e-9)
        assert figure["n"] == figure["patients"] == 20


def test_a_group_of_nine_patients_is_named_and_not_shown() -> None:
    records = simulated_answers(np.random.default_rng(2), 60)
    patients = sorted({record["patient"] for record in records}, key=int)
    for record in records:
        few = int(record["patient"]) < FEWEST_PATIENTS - 1
        record["attributes"] = {"scanner": "old" if few else "new"}
    found = subgroups(records, None)
    assert len(patients) == 60
    assert {row["group"] for row in found["figures"]} == {"new"} and not found["gaps"]
    (hidden,) = found["suppressed"]
    # Not even how many they are.
    assert hidden == {"task": "vqa", "source": "here", "attribute": "scanner", "group": "old"}
    for record in records:
        if record["patient"] == "30":
            record["attributes"] = {"scanner": "old"}
    assert {row["group"] for row in subgroups(records, None)["figures"]} == {"new", "old"}


def test_records_without_attributes_or_with_one_group_have_no_subgroups() -> None:
    records = simulated_answers(np.random.default_rng(3), 30)
    for attributes in (None, "female", {"sex": "female"}, {"view": "UNKNOWN"}):
        same = [{**record, "attributes": attributes} for record in records]
        assert subgroups(same, None)["figures"] == []


def test_a_file_of_somebody_else_is_not_removed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Records without groups leave no subgroups.json, and take none away that is not ours."""
    (tmp_path / "subgroups.json").write_text("mine")
    record = {"patient": "1", "generated": "clear lungs", "reference": "clear lungs"}
    (tmp_path / "mine.jsonl").write_text(json.dumps(record))
    assert main(["score", str(tmp_path / "mine.jsonl"), "--out", str(tmp_path)]) == 1
    assert str(tmp_path / "subgroups.json") in capsys.readouterr().err
    assert (tmp_path / "subgroups.json").read_text() == "mine"


def test_chance_explains_gaps_where_there_is_none_and_no_real_one() -> None:
    """Of tests without a difference, 5 % have a gap above what chance allows."""
    random = np.random.default_rng(4)

    def exceeds(worse: str) -> bool:
        found = subgroups(simulated_answers(random, 150, worse), ["edema", "fracture"])
        (gap,) = [
            row
            for row in found["gaps"]
            if (row["attribute"], row["metric"]) == ("sex", "auroc_macro")
        ]
        assert gap["low"] <= gap["gap"] <= gap["high"] and gap["findings"] == ["edema", "fracture"]
        return gap["gap"] > gap["chance"]

    # With 5 % each, more than 4 of 20 come once in 400 times.
    assert sum(exceeds("") for _ in range(20)) <= 4
    assert sum(exceeds("male") for _ in range(5)) >= 4


def test_attributes_come_from_mimic_iv(mimic_root: Path, tmp_path: Path) -> None:
    out = tmp_path / "corpus"
    words = ["--patients", mimic_root / "mimic-iv", "--out", out]
    mavilt("prepare mimic-cxr-jpg --size 32 --workers 2", mimic_root, *words)
    hosp = mimic_root / "mimic-iv/hosp"
    patients = pd.read_csv(hosp / "patients.csv.gz", dtype=str).set_index("subject_id")
    races = pd.read_csv(hosp / "admissions.csv.gz", dtype=str).set_index("subject_id")["race"]
    found = {study.patient: dict(study.attributes) for study in Corpus(out)}
    assert len(found) == len(patients)
    for subject, attributes in found.items():
        row = patients.loc[subject]
        assert attributes["sex"] == {"F": "female", "M": "male"}[row["gender"]]
        # All phantom studies are of the anchor year.
        names = ["under 18", "18 to 39", "40 to 59", "60 to 79", "80 and over"]
        assert attributes["age"] == names[np.digitize(int(row["anchor_age"]), [18, 40, 60, 80])]
        race = races[subject]
        if race == "UNKNOWN":
            assert "ethnicity" not in attributes
        else:
            assert race.lower().startswith(attributes["ethnicity"])


def test_patients_that_are_not_there(
    mimic_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["prepare", "mimic-cxr-jpg", str(mimic_root), "--patients", str(tmp_path)]
    assert main([*words, "--out", str(tmp_path / "corpus")]) == 1
    message = capsys.readouterr().err
    assert "option patients" in message and "patients.csv.gz" in message and "hosp" in message


@pytest.mark.slow
def test_a_test_writes_subgroups_and_the_page_shows_them(chain: Path, tmp_path: Path) -> None:
    """PSNR by view through the front door, against the mean of the test's own predictions."""
    corpus = tmp_path / "corpus"
    mavilt(
        "phantom mimic --studies 80 --validate 4 --test 72 --size 48 --workers 2", tmp_path / "raw"
    )
    words = ["--patients", tmp_path / "raw/mimic-iv/hosp", "--out", corpus]
    mavilt("prepare mimic-cxr-jpg --size 32 --name phantom", tmp_path / "raw", *words)
    run = tmp_path / "run"
    mavilt(
        "test --config demo/vqgan.yaml",
        *QUIET,
        DATA,
        f"--data.corpora=[{corpus}]",
        "--data.weights=null",
        "--model.init_args.autoencoder.image_size=32",
        "--model.init_args.autoencoder.channels=8",
        "--model.init_args.quantizer.codebook_size=32",
        f"--model.init_args.encoder={chain}/encoder/checkpoints/last.ckpt",
        "--trainer.callbacks+=mavilt_pl.callbacks.ReconstructionMetrics",
        f"--trainer.callbacks.judge={chain}/encoder/checkpoints/last.ckpt",
        f"--ckpt_path={chain}/vqgan/checkpoints/last.ckpt",
        f"--trainer.default_root_dir={run}",
    )
    lines = (run / "test/predictions.jsonl").read_text().splitlines()[1:]
    table = pd.DataFrame([json.loads(line) for line in lines])
    table["psnr"] = table["scores"].str["psnr"]
    content = json.loads((run / "test/subgroups.json").read_text())
    for attribute in ("sex", "age", "view"):
        table[attribute] = table["attributes"].str[attribute]
        for name, rows in table.groupby(attribute):
            shown = of_metric(content["figures"], attribute, "psnr")
            if rows["patient"].nunique() < FEWEST_PATIENTS:
                assert name not in shown
            else:
                assert shown[name]["value"] == pytest.approx(rows["psnr"].mean(), abs=1e-9)
                assert shown[name]["n"] == len(rows)
    # The whole test's figures can be computed from the same file.
    figures = json.loads((run / "test/results.json").read_text())["figures"]
    (whole,) = [row for row in figures if row["metric"] == "psnr"]
    assert whole["value"] == pytest.approx(table["psnr"].mean(), abs=1e-9)
    mavilt("score", run / "test/predictions.jsonl", "--out", tmp_path / "scored")
    scored = json.loads((tmp_path / "scored/results.json").read_text())["figures"]
    by_name = {row["metric"]: row["value"] for row in figures}
    for figure in scored:
        assert figure["value"] == pytest.approx(by_name[figure["metric"]], abs=1e-9)
    assert (tmp_path / "scored/subgroups.json").read_bytes() == (
        run / "test/subgroups.json"
    ).read_bytes()
    mavilt("results", run)
    page = (run / "report.html").read_text()
    assert "by sex" in page and "largest gap" in page
    rows = list(csv.DictReader((run / "subgroups.csv").open(encoding="utf-8")))
    assert len(rows) == len(content["figures"])
    (run / "test/subgroups.json").write_text("[]")
    assert main(["results", str(run)]) == 1
