"""The phantom: the same bytes for the same seed, reports that say what is there, findings that
change the image.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mavilt_pl.cli import main
from mavilt_pl.metrics.clinical import findings_in
from mavilt_pl.phantom.anatomy import draw_body, render
from mavilt_pl.phantom.findings import FINDINGS, MIMIC_FINDINGS, draw_findings, make_finding
from mavilt_pl.phantom.wording import findings_text


def contents(root: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(root)): p.read_bytes()
        for p in root.rglob("*")
        if p.is_file() and p.suffix != ".gz"
    }


def test_the_same_arguments_give_the_same_bytes_whatever_the_workers(tmp_path: Path) -> None:
    for name, workers in (("a", "1"), ("b", "2")):
        assert (
            main(
                [
                    "phantom",
                    "mimic",
                    str(tmp_path / name),
                    "--studies",
                    "9",
                    "--size",
                    "32",
                    "--workers",
                    workers,
                ]
            )
            == 0
        )
    assert (
        contents(tmp_path / "a") == contents(tmp_path / "b") and len(contents(tmp_path / "a")) == 19
    )


def test_a_folder_of_somebody_else_is_not_touched(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    assert main(["phantom", "mimic", str(tmp_path), "--studies", "2"]) == 1
    assert "choose another folder" in capsys.readouterr().err and (tmp_path / "thesis.tex").exists()


def test_reports_assert_exactly_what_is_there() -> None:
    random = np.random.default_rng(0)
    for _ in range(300):
        findings = draw_findings(random)
        said = findings_in(findings_text(findings, random))
        present = {name for name, label in said.items() if label == "present"}
        assert present & set(MIMIC_FINDINGS) == {finding.name for finding in findings}


@pytest.mark.parametrize("name", FINDINGS)
def test_each_finding_is_visible(name: str) -> None:
    """Same build, same noise, with and without: the image differs by more than its noise somewhere."""
    finding = make_finding(name, np.random.default_rng(3))
    with_it = render(
        draw_body(np.random.default_rng(1), [finding]), [finding], 96, np.random.default_rng(2)
    )
    without = render(draw_body(np.random.default_rng(1), []), [], 96, np.random.default_rng(2))
    assert with_it.min() >= 0 and with_it.max() <= 1 and with_it.dtype == np.float32
    assert np.abs(with_it - without).max() > 0.08


def test_left_is_on_the_image_s_right() -> None:
    for side, right_half in (("left", True), ("right", False)):
        finding = make_finding("consolidation", np.random.default_rng(0), side=side, zone="lower")
        body = draw_body(np.random.default_rng(1), [])
        change = render(body, [finding], 96, np.random.default_rng(2)) - render(
            body, [], 96, np.random.default_rng(2)
        )
        across = np.clip(change - 0.05, 0, None).sum(0)
        assert (np.average(np.arange(96), weights=across) > 48) == right_half


def test_the_indiana_phantom_keeps_the_real_reports(tmp_path: Path) -> None:
    pytest.importorskip("torchxrayvision")
    from mavilt_pl.data.sources import read_source
    from mavilt_pl.phantom.indiana import reports_archive

    assert (
        main(
            [
                "phantom",
                "indiana",
                str(tmp_path / "i"),
                "--studies",
                "12",
                "--size",
                "48",
                "--workers",
                "1",
            ]
        )
        == 0
    )
    written = {s.study: s for s in read_source("indiana", tmp_path / "i", lambda *_: None)}
    real = {
        s.study: s
        for s in read_source("indiana", tmp_path, lambda *_: None, reports=str(reports_archive()))
    }
    assert len(written) == 12
    for name, study in written.items():
        assert (study.findings, study.impression, study.labels) == (
            real[name].findings,
            real[name].impression,
            real[name].labels,
        )
        assert len(study.images) == 1 and study.images[0].path.exists()
