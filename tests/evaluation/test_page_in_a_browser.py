"""The page in headless Chromium: what is painted, not what the file says."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mavilt_pl.cli import main
from mavilt_pl.evaluation.predictions import write_predictions
from mavilt_pl.evaluation.results import write_json

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium"),
    pytest.mark.timeout(300),
]
RED = (180, 35, 24)  # of page.css, what is not beaten and what is missed


def browser(page: str, profile: Path, *options: str) -> str:
    """Standard output of a headless Chromium that opened a page."""
    command = [
        *(str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
        *(f"--user-data-dir={profile}", "--virtual-time-budget=3000", *options, page),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    return done.stdout


def painted(page: str, folder: Path, width: int) -> np.ndarray:
    """The page as pixels [H,W,3], of this width."""
    picture = folder / f"{width}.png"
    browser(page, folder, f"--window-size={width},4000", f"--screenshot={picture}")
    return np.asarray(Image.open(picture).convert("RGB"))


def share_of(pixels: np.ndarray, colour: tuple[int, int, int]) -> float:
    """Share of pixels of about a colour."""
    return float((np.abs(pixels.astype(int) - colour).sum(2) < 30).mean())


def figure(metric: str, value: float, low: float | None, control: str | None = None) -> dict:
    high = None if low is None else value + 0.05
    return {
        **{"task": "report", "source": "phantom_x", "metric": metric, "value": value},
        **{"low": low, "high": high, "n": 40, "positives": 7},
        **{"protocol": "raw: texts as they are; p", "control": control},
    }


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A run with a figure that a control beats, an error, answers and a reconstruction."""
    run = tmp_path_factory.mktemp("run")
    test = run / "stage2/test"
    made_by = {
        **{"checkpoint_sha256": "ab", "seed": 1, "commit": None, "versions": {"torch": "2"}},
        "training": {"steps": 1000, "seed": 7},
        "config": {"data": {"sections": "findings", "cleaning": "r2gen-iu"}},
        "decoding": {"text": {"beams": 3}},
    }
    figures = [
        figure("findings_f1_macro", 0.5, 0.45),
        figure("findings_f1_macro", 0.6, 0.55, "retrieved_report"),
        figure("findings_f1/edema", 0.5, 0.4),
    ]
    write_json(test / "results.json", {"figures": figures, "made_by": made_by})
    (test / "pictures").mkdir()
    pictures = {}
    for name, grey in (
        ("image", 200),
        ("original", 90),
        ("reconstruction", 100),
        ("difference", 130),
    ):
        Image.fromarray(np.full((64, 64), grey, np.uint8)).save(test / f"pictures/{name}.png")
        pictures[name] = f"pictures/{name}.png"
    named = {"source": "phantom_x", "study": "0a1b"}
    report = {
        **named,
        "image": pictures.pop("image"),
        "generated": "Small right effusion. <img src=x onerror=alert(1)>",
        "reference": "Small left effusion.",
        "labels": {"pleural effusion": "present", "edema": "present"},
    }
    error = {**report, "error": "edema: missed"}
    samples = {"report": [report, error], "tokenizer": [{**named, **pictures}]}
    write_json(test / "samples.json", samples)
    answers = []
    for number in range(20):
        yes = (number + 0.5) / 20
        answers.append(
            {
                **{
                    "task": "vqa",
                    "source": "phantom_x",
                    "study": str(number),
                    "patient": str(number),
                },
                **{"question": "Is there edema?", "topic": "edema", "candidates": ["yes", "no"]},
                **{"reference": "yes" if number % 2 else "no", "probabilities": [yes, 1 - yes]},
            }
        )
    write_predictions(test / "predictions.jsonl", answers, "notice", made_by)
    assert main(["results", str(run)]) == 0
    return (run / "report.html").as_uri()


def test_what_the_page_says(page: str, tmp_path: Path) -> None:
    shown = browser(page, tmp_path, "--dump-dom")
    for words in (
        "does not beat: nearest training report",
        "pleural effusion: wrong side",
        "edema: missed",
        "7 of 40 positive",
        "1000 steps, seed 7",
        "r2gen-iu",
        "beams",
        "difference",
        "figures.csv",
    ):
        assert words in shown, words
    # Ten bins, each with two answers.
    assert len(re.findall("<circle", shown)) == 10
    # What a model writes is text.
    assert '<img src="x"' not in shown
    assert "onerror=alert(1)&gt;" in shown


def test_what_is_painted(page: str, tmp_path: Path) -> None:
    wide = painted(page, tmp_path, 1300)
    # What is not beaten and what is missed is red.
    assert share_of(wide, RED) > 1e-4
    assert len(np.unique(wide.reshape(-1, 3), axis=0)) > 50
    # A narrow window shows the same colours: nothing is cut off at its side.
    narrow = painted(page, tmp_path, 420)
    assert narrow.shape[1] == 420
    assert share_of(narrow, RED) > 1e-4


def test_an_image_enlarges_when_it_is_chosen(page: str, tmp_path: Path) -> None:
    """The first image is focused by a script that the page itself does not have."""
    script = tmp_path / "focused.html"
    body = Path(page.removeprefix("file://")).read_text()
    focus = "<script>document.querySelector('img[tabindex]').focus({preventScroll: true})</script>"
    script.write_text(body.replace("</body>", focus + "</body>"))
    grey = (200, 200, 200)
    before = share_of(painted(page, tmp_path, 900), grey)
    assert share_of(painted(script.as_uri(), tmp_path, 900), grey) > before + 0.1


def test_the_page_is_one_file(page: str) -> None:
    """It loads nothing: an address in it is a link to a table beside it, or an image of its own."""
    text = Path(page.removeprefix("file://")).read_text()
    addresses = re.findall(r"(?:src|href)=\"([^\"]*)\"", text)
    assert {one for one in addresses if not one.startswith("data:")} == {
        "figures.csv",
        "figures.tex",
    }
