"""`mavilt results --compare` on results of known figures; the intervals against scipy's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from mavilt_pl.cli import main
from mavilt_pl.evaluation.results import write_json
from mavilt_pl.evaluation.tradeoff import tradeoffs

PSNR = {"with": (29.1, 29.6, 28.9), "without": (27.0, 29.0, 27.9)}


def write_test(
    run: Path,
    psnr: float,
    more: dict[str, Any] | None = None,
    corpus: str = "aa",
    judge: str = "j",
    data: dict[str, Any] | None = None,
) -> None:
    figure = {
        "task": "tokenizer",
        "source": "s",
        "metric": "psnr",
        "value": psnr,
        "low": psnr - 1,
        "high": psnr + 2,
        "n": 7,
        "protocol": "range 2",
        "control": None,
        **(more or {}),
    }
    made_by = {"corpus": {"s": corpus}, "judges": {"tokenizer": judge}}
    made_by["config"] = {"data": {"sections": "findings", "seed": psnr, **(data or {})}}
    write_json(run / "vqgan/test/results.json", {"figures": [figure], "made_by": made_by})
    (run / "vqgan/test/pictures").mkdir(parents=True)
    for name in ("o", "r"):
        Image.fromarray(np.full((4, 4), int(psnr), np.uint8)).save(
            run / f"vqgan/test/pictures/{name}.png"
        )
    row = {
        "source": "s",
        "study": "0a1b",
        "original": "pictures/o.png",
        "reconstruction": "pictures/r.png",
    }
    write_json(run / "vqgan/test/samples.json", {"tokenizer": [row]})


@pytest.fixture
def arms(tmp_path: Path) -> Path:
    for arm, values in PSNR.items():
        for seed, value in enumerate(values, start=1):
            write_test(tmp_path / arm / str(seed), value)
    return tmp_path


def test_means_and_intervals_are_those_of_scipy(
    arms: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["results", str(arms), "--compare", "with", "without", "--seeds", "1,2,3"]) == 0
    assert "with − without" in " ".join(capsys.readouterr().out.split())
    content = json.loads((arms / "compare.json").read_text())
    (row,) = content["rows"]
    for cell, values in zip(row["cells"], PSNR.values()):
        assert cell["mean"] == pytest.approx(np.mean(values))
        assert cell["values"] == list(values)
        expected = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
        assert (cell["low"], cell["high"]) == pytest.approx(expected)
    (difference,) = row["differences"]
    expected = stats.ttest_rel(*PSNR.values()).confidence_interval(0.95)
    assert (difference["low"], difference["high"]) == pytest.approx((expected.low, expected.high))
    assert difference["mean"] == pytest.approx(np.mean(PSNR["with"]) - np.mean(PSNR["without"]))
    assert difference["low"] < 0 < difference["mean"]  # three pairs prove little
    page = (arms / "compare.html").read_text()
    assert page.count("data:image/png;base64") == 3
    assert "paired t interval" in page
    assert "range 2" in page
    assert "<b>29.2</b>" in page
    assert "no medical device" in page


def test_one_run_has_its_own_interval_and_unequal_arms_no_interval_of_the_difference(
    arms: Path,
) -> None:
    assert (
        main(["results", str(arms), "--compare", "with/1,with/2", "without/3", "--names", "λ,0"])
        == 0
    )
    (row,) = json.loads((arms / "compare.json").read_text())["rows"]
    assert [cell["arm"] for cell in row["cells"]] == ["λ", "0"]
    assert (row["cells"][1]["low"], row["cells"][1]["high"]) == pytest.approx((26.9, 29.9))
    assert row["differences"] == [
        {"of": "λ − 0", "mean": pytest.approx(1.45), "low": None, "high": None}
    ]
    assert (
        main(["results", str(arms), "--compare", "with/1,with/2,with/3", "without/1,without/2"])
        == 0
    )
    (row,) = json.loads((arms / "compare.json").read_text())["rows"]
    # There is nothing to pair the third run with.
    assert row["cells"][1]["low"] is not None
    assert row["differences"][0]["low"] is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"more": {"n": 8}}, "the number of cases of tokenizer s psnr: 7 and 8"),
        (
            {"more": {"protocol": "range 255"}},
            "the protocol of tokenizer s psnr: range 2 and range 255",
        ),
        ({"corpus": "bb"}, "the fingerprint of corpus s: aa and bb"),
        ({"judge": "k"}, "the fingerprint of judge tokenizer: j and k"),
        (
            {"data": {"sections": "impression"}},
            "the setting vqgan: data.sections of the test: findings and impression",
        ),
    ],
)
def test_what_was_tested_otherwise_is_refused(
    arms: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any], words: str
) -> None:
    write_test(arms / "other", 30.0, **change)
    assert main(["results", str(arms), "--compare", "with/1", "other"]) == 1
    message = capsys.readouterr().err
    for text in ("not comparable", words, "with/1", "other"):
        assert text in message
    assert not (arms / "compare.json").exists()


def test_settings_that_differ_are_shown(arms: Path) -> None:
    """Those of a training; the seed differs on purpose."""
    write_test(arms / "other", 30.0, data={"batch_size": 8})
    assert main(["results", str(arms), "--compare", "with/1", "other"]) == 0
    found = json.loads((arms / "compare.json").read_text())["settings"]
    assert found == [{"setting": "vqgan: data.batch_size", "values": ["–", "8"]}]
    assert "vqgan: data.batch_size" in (arms / "compare.html").read_text()


def test_figures_that_one_run_lacks_are_named_and_mistakes_reported(
    arms: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_test(arms / "other", 30.0, {"metric": "ssim"})
    assert main(["results", str(arms), "--compare", "with/1", "other"]) == 0
    content = json.loads((arms / "compare.json").read_text())
    assert content["rows"] == []
    assert content["left_out"] == ["tokenizer s psnr", "tokenizer s ssim"]
    # Three runs below one folder.
    assert main(["results", str(arms), "--compare", "with", "without"]) == 1
    assert "name the folder of one run" in capsys.readouterr().err
    assert main(["results", str(arms), "--compare", "with/1", "nowhere"]) == 1
    assert main(["results", str(arms), "--compare", "with/1"]) == 1
    assert "two arms" in capsys.readouterr().err


def test_three_arms_get_a_chart_of_what_is_learned_against_what_is_forgotten(
    tmp_path: Path,
) -> None:
    """The marks are at the means: arms with ratios 1, 2, 4 and BLEU 0.1, 0.3, 0.2."""
    for arm, ratio, bleu in (("a", 1.0, 0.1), ("b", 2.0, 0.3), ("c", 4.0, 0.2)):
        figures = [
            {
                "task": task,
                "source": "s",
                "metric": metric,
                "value": value,
                "low": None,
                "high": None,
                "n": 7,
                "protocol": "p",
                "control": None,
            }
            for task, metric, value in (
                ("text", "perplexity_ratio", ratio),
                ("report", "bleu_4", bleu),
            )
        ]
        write_json(tmp_path / arm / "test/results.json", {"figures": figures, "made_by": {}})
    assert main(["results", str(tmp_path), "--compare", "a", "b", "c"]) == 0
    rows = json.loads((tmp_path / "compare.json").read_text())["rows"]
    (chart,) = tradeoffs(rows)
    assert chart["title"] == "report bleu_4, s"
    assert (chart["x"], chart["y"]) == (
        (1.0, 4.0),
        (0.1, 0.3),
    )
    across, up = ([point[key] for point in chart["points"]] for key in ("x", "y"))
    assert (across[1] - across[0]) / (across[2] - across[0]) == pytest.approx(1 / 3, abs=0.01)
    # down the page is less
    assert up[0] > up[2] > up[1]
    assert up[2] == pytest.approx((up[0] + up[1]) / 2, abs=0.1)
    page = (tmp_path / "compare.html").read_text()
    assert page.count("<circle") == 3
    assert "Learned against forgotten" in page
    # Two arms are two numbers: no chart.
    assert main(["results", str(tmp_path), "--compare", "a", "b"]) == 0
    assert "<circle" not in (tmp_path / "compare.html").read_text()
