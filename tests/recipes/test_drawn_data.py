"""`mavilt draw --corpus` and `mavilt run drawn-data`: are drawings of use for training?"""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score
from words import mavilt

from mavilt_pl.cli import main
from mavilt_pl.data.corpus import Corpus


@pytest.mark.timeout(300)
def test_classifiers_of_drawings_stand_next_to_those_of_real_images(
    chain: Path, corpus_path: Path, tmp_path: Path
) -> None:
    sets = {
        **{"corpus": corpus_path, "model": chain / "stage2", "size": 32, "steps": 2},
        **{"seeds": 1, "number": 16, "half": 8},
        "encoder": "demo/encoder.yaml --data.batch_size 8 --model.init_args.image_size 32",
    }
    words = [part for key, value in sets.items() for part in ("--set", f"{key}={value}")]
    out = tmp_path / "out"
    assert main(["run", "drawn-data", "--out", str(out), *words]) == 0
    drawn, real = Corpus(out / "corpora/drawn"), Corpus(corpus_path)
    assert len(drawn) == len(drawn.rows("train")) == 16
    # Each drawing has the labels of the study whose text it was drawn from.
    labels = {
        real.hidden_name(real.text(row).study): real[row].labels for row in real.rows("train")
    }
    for study in drawn:
        assert dict(study.labels) == dict(labels[study.study])
    compared = json.loads((out / "compare.json").read_text())
    arms = ["real images", "drawings", "half of each", "all of both"]
    assert [*compared["arms"]] == arms
    # The figure is scikit-learn's, of the predictions that the test wrote.
    test = out / "half/1/test"
    figures = json.loads((test / "results.json").read_text())["figures"]
    records = [
        json.loads(line) for line in (test / "predictions.jsonl").read_text().splitlines()[1:]
    ]
    assert len(records) == len(real.rows("test"))
    scored = 0
    for figure in figures:
        _, slash, finding = figure["metric"].partition("/")
        if slash:
            known = [record for record in records if finding in record["truths"]]
            truths = [record["truths"][finding] for record in known]
            logits = [record["logits"]["classifier"][finding] for record in known]
            assert figure["value"] == pytest.approx(roc_auc_score(truths, logits), abs=1e-9)
            scored += 1
    assert scored >= 3


def test_a_drawn_dataset_continues_and_names_nobody(
    chain: Path, corpus_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--corpus", corpus_path, "--model", chain / "stage2", "--limit", "6"]
    mavilt("draw", *words, "--out", tmp_path / "whole")
    rows = list(csv.DictReader((tmp_path / "whole/studies.csv").open(encoding="utf-8")))
    assert len(rows) == 6 and all(row["split"] == "train" for row in rows)
    files = sorted((tmp_path / "whole/images").glob("*.png"))
    assert all("Synthetic" in Image.open(file).info["Comment"] for file in files)
    text = "".join(path.read_text() for path in (tmp_path / "whole").glob("*.*"))
    corpus = Corpus(corpus_path)
    for study in corpus:
        assert study.patient not in text and study.study not in text
    # As if it had been killed after four images: the others are the same as in one go.
    before = {file.name: np.asarray(Image.open(file)) for file in files}
    (tmp_path / "whole/studies.csv").unlink()
    for file in files[4:]:
        file.unlink()
    mavilt("draw", *words, "--out", tmp_path / "whole")
    for file in files:
        assert np.array_equal(np.asarray(Image.open(file)), before[file.name])
    assert (tmp_path / "whole/studies.csv").exists()
    capsys.readouterr()
    for more, message in (
        (["--seed", "1"], "drawn with other settings"),
        (["--best-of", "2", "--judge", chain / "encoder"], "--corpus draws one PNG"),
        (["a text"], "found both"),
    ):
        command = ["draw", *words, "--out", tmp_path / "whole", *more]
        if more == ["a text"]:
            command = ["draw", "a text", *command[1:-1]]
        assert main([*map(str, command)]) == 1
        assert message in capsys.readouterr().err
    (tmp_path / "other").mkdir()
    (tmp_path / "other/mine.txt").write_text("mine")
    assert main([*map(str, ["draw", *words, "--out", tmp_path / "other"])]) == 1
    assert "is not empty" in capsys.readouterr().err
    assert main(["draw", "--out", str(tmp_path / "none")]) == 1
    assert "neither" in capsys.readouterr().err
