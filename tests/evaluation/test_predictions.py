"""predictions.jsonl: complete and equal on any number of processes, and scored without a model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from words import DATA, QUIET

from mavilt_pl.cli import main
from mavilt_pl.errors import UserError
from mavilt_pl.evaluation.predictions import read_predictions, write_predictions
from mavilt_pl.evaluation.results import write_json
from mavilt_pl.evaluation.scoring import score
from mavilt_pl.metrics.text import rouge_l_coco
from tests.trainer.tiny_runs import ended, started

STUDIES = 7  # prime to two and three processes


def command(chain: Path, corpus: Path, out: Path) -> list[str]:
    return [
        "test",
        "--config=demo/stage2.yaml",
        *QUIET,
        DATA,
        f"--data.corpora=[{corpus}]",
        "--data.weights=null",
        f"--data.tokens=[{chain}/tokens]",
        "--data.eval_batch_size=2",
        f"--data.limit_test={STUDIES}",
        f"--model.init_args.tokens={chain}/tokens",
        f"--model.init_args.backbone={chain}/backbone/backbone",
        f"--ckpt_path={chain}/stage2/checkpoints/last.ckpt",
        f"--trainer.default_root_dir={out}",
        "--trainer.callbacks+=mavilt_pl.callbacks.ReportMetrics",
        "--trainer.callbacks+=mavilt_pl.callbacks.VQAMetrics",
        "--trainer.callbacks+=mavilt_pl.evaluation.ResultsWriter",
    ]


@pytest.fixture(scope="module")
def tested(chain: Path, corpus_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tested")
    assert main(command(chain, corpus_path, out)) == 0
    return out / "test"


def figures(path: Path) -> dict[tuple[str, str, str | None], float]:
    found = {}
    for figure in json.loads(path.read_text())["figures"]:
        found[figure["task"], figure["metric"], figure["control"]] = figure["value"]
    return found


def test_every_study_is_there_with_its_answers(tested: Path) -> None:
    about = json.loads((tested / "predictions.jsonl").read_text().splitlines()[0])
    assert about["about"] == "predictions of mavilt" and "share them only" in about["notice"]
    records = read_predictions(tested / "predictions.jsonl")
    reports = [record for record in records if record["task"] == "report"]
    assert len({record["study"] for record in reports}) == len(reports) == STUDIES
    assert all(record["reference"] and "cardiomegaly" in record["labels"] for record in reports)
    for record in records:
        if record["task"] == "vqa":
            assert sum(record["probabilities"]) == pytest.approx(1)
            assert record["reference"] in record["candidates"]


def test_the_scores_are_those_of_the_test(tested: Path, tmp_path: Path) -> None:
    file = str(tested / "predictions.jsonl")
    assert main(["score", file, "--out", str(tmp_path)]) == 0
    of_test, scored = figures(tested / "results.json"), figures(tmp_path / "results.json")
    own = {key: value for key, value in of_test.items() if key[2] is None}
    assert {key[1] for key in own} >= {"bleu_4", "cider", "accuracy", "findings_f1_macro_chance"}
    for key, value in own.items():
        assert scored[key] == pytest.approx(value, rel=1e-9), key


@pytest.mark.parametrize("processes", [2, 3])
def test_equal_on_any_number_of_processes(
    processes: int, tested: Path, chain: Path, corpus_path: Path, tmp_path: Path
) -> None:
    words = command(chain, corpus_path, tmp_path)
    ended(started([*words, f"--trainer.devices={processes}", "--trainer.strategy=ddp"]))
    expected = read_predictions(tested / "predictions.jsonl")
    found = read_predictions(tmp_path / "test/predictions.jsonl")
    for one, other in zip(expected, found, strict=True):
        shares = one.pop("probabilities", []), other.pop("probabilities", [])
        assert shares[0] == pytest.approx(shares[1], rel=1e-4)
        assert one == other
    samples = [json.loads((tested / "samples.json").read_text())]
    samples.append(json.loads((tmp_path / "test/samples.json").read_text()))
    for task in ("report", "vqa"):
        studies = [[row["study"] for row in one[task]] for one in samples]
        # One card a study, however many questions it has.
        assert studies[0] == studies[1] and len({*studies[0]}) == STUDIES
    of_one, of_several = figures(tested / "results.json"), figures(tmp_path / "test/results.json")
    assert of_one.keys() == of_several.keys()
    for key, value in of_one.items():
        assert of_several[key] == pytest.approx(value, rel=1e-4), key


def test_controls_and_the_ceiling(tested: Path) -> None:
    found = figures(tested / "results.json")
    # One report for all: the same words, whatever the image shows.
    assert found["report", "bleu_1", "constant_report"] > 0
    assert ("report", "cider", "constant_report") in found
    # The phantom's labels are what its reports say.
    assert found["report", "findings_f1_macro", "reference_report"] == 1
    assert ("report", "bleu_1", "reference_report") not in found
    # A constant answer ranks nothing, and is right as often as its answer is.
    assert found["vqa", "auroc_macro", "majority_answer"] == 0.5
    assert 0 < found["vqa", "accuracy", "majority_answer"] < 1


def test_files_of_other_programs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "theirs.csv"
    rows = ["study,prediction,ground_truth", "1,No effusion.,No effusion.", "2,Edema.,Edema."]
    table.write_text("\n".join(rows))
    assert main(["score", str(table), "--out", str(tmp_path / "out")]) == 0
    found = figures(tmp_path / "out/results.json")
    assert found["report", "bleu_1", None] == found["report", "texts_f1_macro", None] == 1
    lines = tmp_path / "theirs.jsonl"
    for text, message in (
        ('{"generated": "a"}', "line 1: none of reference, ground_truth"),
        ('{"generated": 3, "reference": "b"}', "generated is '3'; expected a text"),
        ("[1]", "line 1: a list; expected an object"),
        ("{", "line 1: no JSON"),
        ("", "holds no predictions"),
    ):
        lines.write_text(text)
        capsys.readouterr()
        assert main(["score", str(lines)]) == 1
        assert message in capsys.readouterr().err
    assert main(["score", str(tmp_path / "absent.jsonl")]) == 1


def arm(folder: Path, texts: list[str], references: list[str]) -> None:
    """A test's files for given reports of 40 patients, one study each."""
    records = []
    for number, (text, reference) in enumerate(zip(texts, references)):
        names = {"source": "s", "study": f"s{number}", "patient": f"p{number}"}
        records.append({"task": "report", **names, "generated": text, "reference": reference})
    write_predictions(folder / "test/predictions.jsonl", records, "", {})
    made_by = {"corpus": {"s": "aa"}, "judges": {}}
    content = {"figures": score(records), "made_by": made_by}
    write_json(folder / "test/results.json", content)


def test_a_test_without_predictions_leaves_no_file(tmp_path: Path) -> None:
    path = tmp_path / "test/predictions.jsonl"
    write_predictions(path, [{"generated": "a", "reference": "b"}], "", {})
    assert path.exists()
    write_predictions(path, [], "", {})
    assert not path.exists()
    path.write_text("mine")
    with pytest.raises(UserError, match="was not written by this command"):
        write_predictions(path, [], "", {})


def test_two_single_runs_are_compared_by_patient(tmp_path: Path) -> None:
    """The difference of means against scipy's bootstrap of the paired differences."""
    random = np.random.default_rng(0)
    words = np.array(
        ["the", "heart", "is", "normal", "no", "effusion", "small", "left", "lung", "clear"]
    )
    references = [" ".join(random.choice(words, 8)) for _ in range(40)]
    arms = {}
    for name, share in (("better", 0.3), ("worse", 0.6)):
        texts = []
        for reference in references:
            kept = np.array(reference.split())
            changed = random.random(8) < share
            kept[changed] = random.choice(words, int(changed.sum()))
            texts.append(" ".join(kept))
        arms[name] = texts
        arm(tmp_path / name, texts, references)
    assert main(["results", str(tmp_path), "--compare", "better", "worse"]) == 0
    rows = json.loads((tmp_path / "compare.json").read_text())["rows"]
    (row,) = [row for row in rows if row["metric"] == "rouge_l_coco"]
    (difference,) = row["differences"]
    gaps = []
    for better, worse, reference in zip(arms["better"], arms["worse"], references):
        gaps.append(rouge_l_coco(better, reference) - rouge_l_coco(worse, reference))
    assert difference["mean"] == pytest.approx(np.mean(gaps))
    expected = stats.bootstrap((gaps,), np.mean, method="percentile", random_state=1)
    low, high = expected.confidence_interval
    width = high - low
    assert difference["low"] == pytest.approx(low, abs=0.15 * width)
    assert difference["high"] == pytest.approx(high, abs=0.15 * width)
    # Of other patients nothing is paired.
    lines = (tmp_path / "worse/test/predictions.jsonl").read_text()
    (tmp_path / "worse/test/predictions.jsonl").write_text(lines.replace('"s0"', '"s99"'))
    assert main(["results", str(tmp_path), "--compare", "better", "worse"]) == 0
    rows = json.loads((tmp_path / "compare.json").read_text())["rows"]
    assert all(one["low"] is None for row in rows for one in row["differences"])
