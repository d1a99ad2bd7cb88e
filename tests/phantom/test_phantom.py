"""The phantom: fixed bytes for a seed, true reports, findings that change the image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mavilt_pl.cli import main
from mavilt_pl.metrics.clinical import findings_in
from mavilt_pl.phantom.anatomy import render, sample_body
from mavilt_pl.phantom.findings import FINDINGS, MIMIC_FINDINGS, make_finding, sample_findings
from mavilt_pl.phantom.wording import findings_text


def contents(root: Path) -> dict[str, bytes]:
    files = {}
    for path in root.rglob("*"):
        if path.is_file() and path.suffix != ".gz":
            files[str(path.relative_to(root))] = path.read_bytes()
    return files


def test_the_same_arguments_give_the_same_bytes_for_any_number_of_workers(tmp_path: Path) -> None:
    for workers in ("1", "2"):
        out = str(tmp_path / workers)
        options = ["--studies", "9", "--size", "32", "--workers", workers]
        assert main(["phantom", "mimic", out, *options]) == 0
    one, two = contents(tmp_path / "1"), contents(tmp_path / "2")
    assert one == two
    assert len(one) == 19


def test_a_folder_of_other_files_is_refused_and_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    assert main(["phantom", "mimic", str(tmp_path), "--studies", "2"]) == 1
    assert "choose another folder" in capsys.readouterr().err
    assert (tmp_path / "thesis.tex").exists()


def test_reports_assert_exactly_the_findings() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        findings = sample_findings(rng)
        labels = findings_in(findings_text(findings, rng))
        present = {name for name, label in labels.items() if label == "present"}
        assert present & set(MIMIC_FINDINGS) == {finding.name for finding in findings}


@pytest.mark.parametrize("name", FINDINGS)
def test_each_finding_is_visible(name: str) -> None:
    """Same build, same noise, with and without the finding: the images differ beyond the noise."""
    finding = make_finding(name, np.random.default_rng(3))
    body = sample_body(np.random.default_rng(1), [finding])
    image = render(body, [finding], 96, np.random.default_rng(2))
    normal_body = sample_body(np.random.default_rng(1), [])
    without = render(normal_body, [], 96, np.random.default_rng(2))
    assert image.dtype == np.float32
    assert image.min() >= 0
    assert image.max() <= 1
    assert np.abs(image - without).max() > 0.08


@pytest.mark.parametrize(("side", "in_right_half"), [("left", True), ("right", False)])
def test_left_is_on_the_image_s_right(side: str, in_right_half: bool) -> None:
    finding = make_finding("consolidation", np.random.default_rng(0), side=side, zone="lower")
    body = sample_body(np.random.default_rng(1), [])
    image = render(body, [finding], 96, np.random.default_rng(2))
    without = render(body, [], 96, np.random.default_rng(2))
    across = np.clip(image - without - 0.05, 0, None).sum(0)
    assert (np.average(np.arange(96), weights=across) > 48) == in_right_half


def test_the_indiana_phantom_keeps_the_real_reports(tmp_path: Path) -> None:
    pytest.importorskip("torchxrayvision")
    from mavilt_pl.data.sources import read_source
    from mavilt_pl.phantom.indiana import reports_archive

    out = tmp_path / "i"
    options = ["--studies", "12", "--size", "48", "--workers", "1"]
    assert main(["phantom", "indiana", str(out), *options]) == 0

    def read(root: Path, **options: str) -> dict:
        return {s.study: s for s in read_source("indiana", root, lambda *_: None, **options)}

    written, real = read(out), read(tmp_path, reports=str(reports_archive()))
    assert len(written) == 12
    for name, study in written.items():
        assert study.findings == real[name].findings
        assert study.impression == real[name].impression
        assert study.labels == real[name].labels
        assert len(study.images) == 1
        assert study.images[0].path.exists()
