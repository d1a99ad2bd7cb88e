"""A reader study: what the form shows and hides, what readers send, and the figures from it."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import krippendorff
import numpy as np
import pytest
from PIL import Image

from mavilt_pl.cli import main
from mavilt_pl.data.corpus import Corpus
from mavilt_pl.evaluation.predictions import write_predictions
from mavilt_pl.reader_study import scoring
from mavilt_pl.reader_study.agreement import krippendorff_alpha
from mavilt_pl.reader_study.answers import COUNTED, read_answers
from mavilt_pl.reader_study.scoring import score_study

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
# As a reader would: every field, every question, every case; a first Next is refused.
READER = """
<script>
byId("name").value = "R. Reader"; byId("profession").value = "radiologist";
byId("years").value = "9";
byId("start").click();
const refused = [];
for (let n = 0; n < CASES.length; n++) {
  const before = state.at;
  byId("next").click();
  refused.push(state.at === before && document.querySelectorAll(".todo").length > 0);
  for (const field of document.querySelectorAll("#case input[type=number]")) {
    field.value = field.dataset.error === "missed" ? (field.dataset.side === "first" ? 2 : 1) : 0;
    field.dispatchEvent(new Event("input"));
  }
  for (const set of document.querySelectorAll("#case fieldset")) set.querySelector("input").click();
  byId("next").click();
}
const { at, ...sent } = state;
document.body.append(make("pre", { id: "sent", textContent: JSON.stringify([refused, sent]) }));
</script>
"""


@pytest.fixture
def run(corpus_path: Path, tmp_path: Path) -> Path:
    """A tested run: reports that add a finding, and drawings."""
    corpus, folder = Corpus(corpus_path), tmp_path / "run/test"
    (folder / "drawn").mkdir(parents=True)
    records: list[dict[str, Any]] = []
    for number, row in enumerate(corpus.rows("test")):
        study = corpus[int(row)]
        named = {
            "source": corpus.name,
            "study": corpus.hidden_name(study.study),
            "patient": corpus.hidden_name(study.patient),
        }
        text = study.findings or study.impression
        report = {"generated": f"{text} </script><b>Rib fracture.</b>", "reference": text}
        records.append({"task": "report", **named, **report, "labels": {}})
        name = f"drawn/{number}.png"
        Image.fromarray(np.full((20, 30), 200, np.uint8)).save(folder / name)
        drawing = {"generated": "", "reference": text, "image": name}
        records.append({"task": "synthesis", **named, **drawing, "labels": {}})
        # What a test of the tokenizer and one without saved drawings leave is no case.
        records.append({"task": "tokenizer", **named, "scores": {"psnr": 20.0}})
        records.append({"task": "synthesis", **named, "generated": "", "reference": text})
    write_predictions(folder / "predictions.jsonl", records, "notice", {})
    return tmp_path / "run"


def made(run: Path, corpus_path: Path, out: Path, *words: str) -> dict[str, Any]:
    command = ["reader-study", "make", str(run), "--corpus", str(corpus_path), "--out", str(out)]
    assert main([*command, *words]) == 0
    return json.loads((out / "key.json").read_text())


def answers(key: dict[str, Any], name: str, rates: dict[str, float], seed: int) -> dict[str, Any]:
    """A reader who finds errors at these rates in the model's reports and in the references."""
    random = np.random.default_rng(seed)
    given: dict[str, Any] = {}
    for case in key["cases"]:
        other = "second" if case["model"] == "first" else "first"
        if case["kind"] == "report":
            given[case["id"]] = {"better": str(random.choice([case["model"], other, "equal"]))}
            for side, author in ((case["model"], "model"), (other, "reference")):
                counts = dict.fromkeys(COUNTED, 0)
                counts["missed"] = int(random.poisson(rates[author]))
                given[case["id"]][side] = counts
        else:
            found = random.random() < rates["found"]
            given[case["id"]] = {"real": other if found else case["model"], "fits": "equal"}
    return {
        "about": "answers to a reader study of mavilt",
        "study": key["study"],
        "reader": {"name": name, "profession": "radiologist", "years": "9"},
        "answers": given,
    }


def test_alpha_is_that_of_the_package() -> None:
    random = np.random.default_rng(0)
    for _ in range(20):
        readers, units = random.integers(2, 6), random.integers(5, 40)
        table_RU = random.integers(0, 5, (readers, units)).astype(float)
        table_RU[random.random(table_RU.shape) < 0.3] = np.nan
        for level in ("nominal", "ordinal", "interval"):
            expected = krippendorff.alpha(reliability_data=table_RU, level_of_measurement=level)
            assert krippendorff_alpha(table_RU, level) == pytest.approx(expected, abs=1e-9)


def test_the_form_hides_who_is_the_model(run: Path, corpus_path: Path, tmp_path: Path) -> None:
    key = made(run, corpus_path, tmp_path / "study", "--reports", "8", "--drawings", "3")
    form = (tmp_path / "study/form.html").read_text()
    assert [case["kind"] for case in key["cases"]] == ["report"] * 8 + ["drawing"] * 3
    # Neither names nor the key, and a text cannot end the script that holds it.
    for case in key["cases"]:
        assert case["study"] not in form and case["patient"] not in form
    assert "</script><b>" not in form and "generated" not in form.replace('name="generator"', "")
    # All images have the size of the corpus, so that size does not tell.
    sizes = set()
    pictures = re.findall(r"data:image/png;base64,([A-Za-z0-9+/=]+)", form)
    assert len(pictures) == 8 + 2 * 3
    for data in pictures:
        sizes.add(Image.open(io.BytesIO(base64.b64decode(data))).size)
    assert sizes == {(32, 32)}
    # The sides are drawn by the seed.
    assert {case["model"] for case in key["cases"]} == {"first", "second"}
    other = made(run, corpus_path, tmp_path / "other", "--seed", "1")
    assert len(other["cases"]) == 22 and other["study"] != key["study"]


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
@pytest.mark.timeout(300)
def test_a_reader_fills_the_form_in_a_browser(
    run: Path, corpus_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = made(run, corpus_path, tmp_path / "study", "--reports", "4", "--drawings", "2")
    form = (tmp_path / "study/form.html").read_text()
    page = tmp_path / "filled.html"
    page.write_text(form.replace("</body>", READER + "</body>"))
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    command += [
        f"--user-data-dir={tmp_path}/profile",
        "--virtual-time-budget=5000",
        f"file://{page}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    (shown,) = re.findall(r'<pre id="sent">(.*?)</pre>', done.stdout, re.DOTALL)
    refused, sent = json.loads(shown)
    # An unanswered case cannot be left forwards.
    assert refused == [True] * 6
    sent_path = tmp_path / "answers.json"
    sent_path.write_text(json.dumps(sent))
    (reader,) = read_answers([sent_path], key)
    assert reader.name == "R. Reader" and reader.missing == 0
    capsys.readouterr()
    assert main(["reader-study", "score", str(tmp_path / "study"), str(sent_path)]) == 0
    assert "R. Reader (radiologist, 9 years): 6 cases" in capsys.readouterr().out
    results = json.loads((tmp_path / "study/reader_study.json").read_text())
    by_name = {figure["metric"]: figure for figure in results["figures"]}
    first = np.mean([case["model"] == "first" for case in key["cases"] if case["kind"] == "report"])
    assert by_name["errors_missed_model"]["value"] == pytest.approx(1 + first)
    assert by_name["errors_missed_model"]["n"] == 4


def test_known_error_rates_are_recovered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Forty pairs, two readers: the intervals of at least 95 of 100 studies hold the truth."""
    monkeypatch.setattr(scoring, "RESAMPLES", 200)
    monkeypatch.setattr(scoring, "krippendorff_alpha", lambda *_: float("nan"))
    rates = {"model": 1.5, "reference": 0.5, "found": 0.7}
    held = {"errors_all_model": 0, "errors_all_difference": 0, "real_found": 0}
    truth = {"errors_all_model": 1.5, "errors_all_difference": 1.0, "real_found": 0.7}
    for seed in range(100):
        key = {"study": "s", "cases": []}
        for number in range(80):
            kind = "report" if number < 40 else "drawing"
            side = "first" if (number * 7 + seed) % 2 else "second"
            known = {"source": "x", "patient": str(number), "generated": "", "reference": ""}
            key["cases"].append({"id": f"c{number}", "kind": kind, "model": side, **known})
        paths = []
        for reader in range(2):
            path = tmp_path / f"{reader}.json"
            path.write_text(json.dumps(answers(key, f"r{reader}", rates, 1000 * reader + seed)))
            paths.append(path)
        for figure in score_study(key, read_answers(paths, key)):
            if figure["metric"] in held:
                inside = figure["low"] <= truth[figure["metric"]] <= figure["high"]
                held[figure["metric"]] += inside
    assert min(held.values()) >= 95, held


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"study": "other"}, "answers study other, and the key is of"),
        ({"reader": {}}, "is no file of answers"),
        ({"about": "x"}, "is no file of answers"),
        ({"answers": {"report-999": {}}}, "report-999 is no case of the study"),
        (
            {"answers": {"report-001": {"better": "both"}}},
            "better is 'both'; expected one of first",
        ),
        (
            {"answers": {"report-001": {"first": {"missed": -1}}}},
            "first.missed is -1; expected a whole number from 0 to 99",
        ),
        ({"answers": {"report-001": {"first": {"lost": 1}}}}, "first.lost is 1; expected"),
        ({"answers": {"report-001": []}}, "found '[]'; expected an object"),
        ({"answers": {}}, "no case has a complete answer"),
    ],
)
def test_what_cannot_be_scored_is_one_message(
    change: dict[str, Any],
    message: str,
    run: Path,
    corpus_path: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    study = tmp_path / "study"
    key = made(run, corpus_path, study)
    path = tmp_path / "a.json"
    rates = {"model": 1.0, "reference": 1.0, "found": 0.5}
    path.write_text(json.dumps({**answers(key, "a", rates, 0), **change}))
    assert main(["reader-study", "score", str(study), str(path)]) == 1
    assert message in capsys.readouterr().err
    assert not (study / "reader_study.json").exists()


def test_what_cannot_be_made_is_one_message(
    run: Path, corpus_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make = ["reader-study", "make", str(run), "--corpus", str(corpus_path), "--out"]
    made(run, corpus_path, tmp_path / "study")
    for words, message in (
        ([*make, str(tmp_path / "study")], "holds a reader study"),
        ([*make, str(tmp_path / "new"), "--reports", "-1"], "expected 0 or more of each"),
        ([*make, str(tmp_path / "new"), "--reports", "0", "--drawings", "0"], "no report and no"),
        (
            ["reader-study", "make", str(tmp_path), "--out", "x"],
            "reader-study make without --corpus",
        ),
        (["reader-study", "score", str(tmp_path), "x.json"], "is no key of a reader study"),
    ):
        capsys.readouterr()
        assert main(words) == 1
        assert message in capsys.readouterr().err
    # A reader named twice would count twice.
    key = json.loads((tmp_path / "study/key.json").read_text())
    path = tmp_path / "a.json"
    path.write_text(json.dumps(answers(key, "a", {"model": 1, "reference": 1, "found": 1}, 0)))
    assert main(["reader-study", "score", str(tmp_path / "study"), str(path), str(path)]) == 1
    assert "answers of a are there already" in capsys.readouterr().err
