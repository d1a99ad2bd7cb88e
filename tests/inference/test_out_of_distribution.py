"""Images unlike the training images are flagged, wherever a model is used."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.covariance import LedoitWolf
from words import mavilt

from mavilt_pl.cli import main
from mavilt_pl.data.corpus import Corpus
from mavilt_pl.data.ood_reference import (
    Measured,
    OODReference,
    conformal_limit,
    lowest_scores,
    shrunk_covariance,
)
from mavilt_pl.data.token_cache import TokenCache
from mavilt_pl.inference.mavilt import MAViLT


def gaussian(rng: np.random.Generator, count: int, shift: float = 0.0) -> np.ndarray:
    """Features [B,5] with very different scales and a strong correlation."""
    features = rng.normal(shift, 1, (count, 5))
    features[:, 1] += features[:, 0] * 3
    return features * np.array([1, 10, 0.1, 100, 1])


def test_the_covariance_is_ledoit_and_wolf_s() -> None:
    rng = np.random.default_rng(0)
    for count, width in ((20, 40), (200, 12), (1000, 3)):
        features = rng.normal(size=(count, width)) @ rng.normal(size=(width, width))
        features -= features.mean(0)
        expected = LedoitWolf(assume_centered=True).fit(features).covariance_
        np.testing.assert_allclose(shrunk_covariance(features), expected, rtol=1e-9)


def test_distances_are_mahalanobis() -> None:
    """With many images the shrinkage vanishes, and squared distances are χ² distributed."""
    rng = np.random.default_rng(1)
    features = gaussian(rng, 20_000)
    reference = OODReference.fit("frontal", features, gaussian(rng, 500), np.ones(500))
    differences = gaussian(rng, 2000) - reference.mean.numpy()
    squared = (differences @ reference.whitening.numpy()) ** 2
    assert stats.kstest(squared.sum(1), stats.chi2(5).cdf).pvalue > 0.01


def test_false_alarms_are_as_promised() -> None:
    """Over many small calibrations, at most 5 % of new images of the same kind are flagged."""
    rng = np.random.default_rng(2)
    flagged = []
    for _ in range(300):
        reference = OODReference.fit(
            "frontal", gaussian(rng, 60), gaussian(rng, 39), rng.normal(10, 1, 39)
        )
        new = Measured(np.empty(0), gaussian(rng, 50), rng.normal(10, 1, 50))
        flagged.append((reference.scores(new) > 1).mean())
    assert 0.03 < np.mean(flagged) < 0.056
    far = Measured(np.empty(0), gaussian(rng, 50, 6.0), np.full(50, 10.0))
    assert (reference.scores(far) > 1).all()


def test_a_limit_is_exceeded_as_often_as_asked() -> None:
    rng = np.random.default_rng(3)
    exceeded = [rng.normal() > conformal_limit(rng.normal(size=39), 0.025) for _ in range(20_000)]
    assert np.mean(exceeded) == pytest.approx(0.025, abs=0.004)


def test_a_view_is_compared_with_its_own() -> None:
    def reference(side: str, mean: float) -> OODReference:
        return OODReference(side, torch.full((1,), mean), torch.eye(1), 1.0, 1.0)

    measured = Measured(np.empty(0), np.array([[0.0], [0.0], [9.0]]), np.zeros(3))
    references = [reference("frontal", 0.0), reference("lateral", 9.0), reference("frontal", 4.0)]
    scores = lowest_scores(references, measured, ["frontal", "lateral", "frontal"])
    assert scores.tolist() == [0, 9, 5]
    # Without a reference of its view, the nearest of all.
    assert lowest_scores(references[:1], measured, ["lateral"] * 3).tolist() == [0, 0, 9]


@pytest.fixture(scope="module")
def known(chain: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Corpus]:
    """Stage 2 for two steps on a corpus of enough validation images, and that corpus."""
    made = tmp_path_factory.mktemp("known")
    sizes = "--studies 200 --validate 60 --test 60 --size 48 --workers 2"
    mavilt(f"phantom mimic {sizes}", made / "raw")
    options = "--size 32 --name phantom_mimic --workers 2"
    mavilt(f"prepare mimic-cxr-jpg {options}", made / "raw", "--out", made / "corpus")
    words = ["--corpus", made / "corpus", "--tokenizer", chain / "vqgan", "--out", made / "tokens"]
    mavilt("tokenize", *words)
    config = (chain / "stage2/config.yaml").read_text()
    assert config
    mavilt(
        f"fit --config {chain}/stage2/config.yaml --trainer.max_steps=2",
        f"--data.corpora=[{made}/corpus]",
        f"--data.tokens=[{made}/tokens]",
        f"--model.init_args.tokens={made}/tokens",
        f"--trainer.default_root_dir={made}/stage2",
    )
    return made, Corpus(made / "corpus")


def test_unlike_images_are_flagged_and_like_ones_are_not(known: tuple[Path, Corpus]) -> None:
    made, corpus = known
    model = MAViLT.from_pretrained(made / "stage2", device="cpu")
    pixels = [corpus.pixels(corpus.image_rows(int(row))[0][0]) for row in corpus.rows("test")]
    reports = model.report(pixels)
    # Sixty images and 5 %: 9 and more would have a chance of 0.3 %.
    assert sum(report.unfamiliar for report in reports) <= 8
    noise = np.random.default_rng(0).integers(0, 256, (20, 32, 32)).astype(np.uint8)
    strange = [255 - pixels[0], pixels[0].T, *noise]
    for result in (*model.report(strange), *model.ask(strange, "Is there edema?")):
        assert result.unfamiliar and result.ood_score > 1


def test_the_flag_stands_next_to_the_text(
    known: tuple[Path, Corpus], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made, _ = known
    from PIL import Image

    noise = np.random.default_rng(0).integers(0, 256, (32, 32)).astype(np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    words = [str(tmp_path / "noise.png"), "--model", str(made / "stage2"), "--device", "cpu"]
    assert main(["report", *words]) == 0
    assert "[unlike the training images, score " in capsys.readouterr().out
    # As a record too, in a table and through an export.
    assert main(["export", "--out", str(tmp_path / "out"), *words[1:]]) == 0
    capsys.readouterr()
    words[2] = str(tmp_path / "out")
    assert main(["report", *words, "--json", "--out", str(tmp_path / "a.csv")]) == 0
    record = json.loads(capsys.readouterr().out.splitlines()[0])
    assert record["unfamiliar"] and record["ood_score"] > 1
    (row,) = csv.DictReader((tmp_path / "a.csv").open())
    assert row["unfamiliar"] == "True" and float(row["ood_score"]) == record["ood_score"]
    card = (tmp_path / "out/README.md").read_text()
    assert "out-of-distribution score" in card and "| phantom_mimic | 80 | 80 |" in card


def test_a_test_tells_the_share(known: tuple[Path, Corpus], chain: Path, tmp_path: Path) -> None:
    made, corpus = known
    mavilt(
        f"test --config {chain}/vqgan/config.yaml",
        f"--data.corpora=[{made}/corpus]",
        f"--trainer.default_root_dir={tmp_path}",
        f"--ckpt_path={chain}/vqgan/checkpoints/last.ckpt",
        "--trainer.callbacks=null",
        "--trainer.callbacks+=mavilt_pl.callbacks.ReconstructionMetrics",
        f"--trainer.callbacks.reference=[{made}/tokens]",
    )
    figures = json.loads((tmp_path / "test/results.json").read_text())["figures"]
    (share,) = (figure for figure in figures if figure["metric"] == "ood_share")
    model = MAViLT.from_pretrained(made / "stage2", device="cpu")
    pixels = [corpus.pixels(corpus.image_rows(int(row))[0][0]) for row in corpus.rows("test")]
    flagged = [report.unfamiliar for report in model.report(pixels)]
    assert share["n"] == len(flagged) and share["value"] == pytest.approx(np.mean(flagged))


def test_a_small_corpus_promises_nothing(chain: Path) -> None:
    """Seven validation studies set no limit that keeps its promise."""
    assert TokenCache(chain / "tokens").ood_references() == []
    report = MAViLT.from_pretrained(chain / "stage2", device="cpu").report(np.eye(32))
    assert report.ood_score is None and not report.unfamiliar
