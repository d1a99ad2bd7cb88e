from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mavilt_pl.cli import main
from mavilt_pl.errors import UserError
from mavilt_pl.evaluation.results import read_results, write_json

FIGURE = {
    "task": "vqa",
    "source": "s",
    "metric": "auroc_macro",
    "value": 0.9,
    "low": 0.8,
    "high": 0.95,
    "n": 7,
    "protocol": "p",
    "control": None,
}


def write_run(folder: Path, figures: list[dict], generated: str = "The heart is enlarged.") -> None:
    made_by = {"checkpoint_sha256": "ab", "seed": 0, "commit": None, "versions": {"torch": "2"}}
    write_json(folder / "stage2/test/results.json", {"figures": figures, "made_by": made_by})
    picture = "pictures/a.png"
    (folder / "stage2/test/pictures").mkdir(parents=True)
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(folder / "stage2/test" / picture)
    labels = {"cardiomegaly": "present", "edema": "present", "pneumothorax": "absent"}
    report = {
        "source": "s",
        "study": "0a1b",
        "image": picture,
        "generated": generated,
        "reference": "Edema.",
        "labels": labels,
    }
    write_json(folder / "stage2/test/samples.json", {"report": [report]})


def test_gather_merges_and_shows(tmp_path: Path) -> None:
    control = FIGURE | {"control": "shuffled_images", "value": 0.5, "low": None, "high": None}
    write_run(
        tmp_path,
        [FIGURE, control],
        "The heart is enlarged. Small pneumothorax. <script>alert(1)</script>",
    )
    assert main(["results", str(tmp_path)]) == 0
    merged = json.loads((tmp_path / "results.json").read_text())
    assert merged["figures"] == [FIGURE, control]
    assert "stage2" in merged["made_by"]
    page = (tmp_path / "report.html").read_text()
    assert "Holds patients' data" in page and "studies in s." in page
    for words in (
        "0.900",
        "0.500",
        "cardiomegaly: right",
        "edema: missed",
        "pneumothorax: invented",
        "not comparable",
    ):
        assert words in page
    assert "<script" not in page  # what a model writes is text, never markup
    assert main(["results", str(tmp_path)]) == 0  # its own results.json is not gathered again
    assert json.loads((tmp_path / "results.json").read_text())["figures"] == [FIGURE, control]


def test_a_number_without_its_protocol_is_refused(tmp_path: Path) -> None:
    for wrong in (
        FIGURE | {"protocol": ""},
        {k: v for k, v in FIGURE.items() if k != "n"},
        FIGURE | {"task": "chess"},
    ):
        path = tmp_path / "results.json"
        path.write_text(json.dumps({"figures": [wrong], "made_by": {}}))
        with pytest.raises(UserError, match="auroc_macro"):
            read_results(path)
    path.write_text("{")
    with pytest.raises(UserError, match="not a results file"):
        read_results(path)
    with pytest.raises(ValueError):
        write_json(tmp_path / "new/results.json", {"value": float("nan")})


def test_nothing_to_gather(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["results", str(tmp_path)]) == 1
    assert "mavilt test" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name",
    [
        "pictures/../../../secret.png",
        "pictures/link.png",
        "/etc/passwd",
        "pictures//etc/passwd.png",
        "http://example.org/x.png",
        "pictures/text.png",
        "pictures/nosuch.png",
        "pictures/.png",
        5,
        None,
    ],
)
def test_the_page_shows_no_other_file(
    name: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run may come from somebody else; its page is sent to others."""
    write_run(tmp_path / "run", [FIGURE])
    secret = tmp_path / "secret.png"
    Image.fromarray(np.ones((8, 8), np.uint8)).save(secret)
    folder = tmp_path / "run/stage2/test"
    (folder / "pictures/link.png").symlink_to(secret)
    (folder / "pictures/text.png").write_text("text")
    samples = json.loads((folder / "samples.json").read_text())
    samples["report"][0]["image"] = name
    (folder / "samples.json").write_text(json.dumps(samples))
    assert main(["results", str(tmp_path / "run")]) == 1
    assert f"picture {name!r}" in capsys.readouterr().err
    assert not (tmp_path / "run/report.html").exists()


@pytest.mark.parametrize("content", ["", "[]x", "5", '{"report": 5}', '{"report": [5]}', "null"])
def test_a_damaged_file_of_samples(
    content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path, [FIGURE])
    (tmp_path / "stage2/test/samples.json").write_text(content)
    assert main(["results", str(tmp_path)]) == 1
    assert "samples.json is not a file of samples" in capsys.readouterr().err
