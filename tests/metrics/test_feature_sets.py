"""Distances between sets of images, against pytorch-fid, torchmetrics and prdc."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from prdc import compute_prdc
from pytorch_fid.fid_score import calculate_frechet_distance
from torchmetrics.image.fid import _compute_fid
from torchmetrics.image.kid import poly_mmd

from mavilt_pl.errors import MaviltWarning
from mavilt_pl.metrics.bootstrap import Estimate
from mavilt_pl.metrics.feature_sets import (
    FeatureSets,
    ImageKind,
    kernel_distance,
    nearest_distances,
    precision_recall,
)

Features = np.ndarray


def compare(**sets: Features) -> dict[str, Estimate]:
    """Figures of sets of features by kind."""
    metric = FeatureSets("cxr", next(iter(sets.values())).shape[1], "test")
    for kind, features in sets.items():
        patients = [f"{kind} {i}" for i in range(len(features))]
        metric.update(torch.tensor(features), ImageKind[kind.upper()], patients)
    return metric.compute()


@pytest.fixture(scope="module")
def real() -> Features:
    return np.random.default_rng(0).normal(size=(300, 8))


@pytest.fixture(scope="module")
def drawn() -> Features:
    return np.random.default_rng(1).normal(0.4, 1.3, size=(300, 8))


def test_frechet_distance_against_pytorch_fid(real: Features, drawn: Features) -> None:
    found = compare(real=real, drawn=drawn)["fid_cxr"]
    other = calculate_frechet_distance(
        real.mean(0), np.cov(real, rowvar=False), drawn.mean(0), np.cov(drawn, rowvar=False)
    )
    assert found.value == pytest.approx(other, rel=1e-4)
    # That of CheXGenBench.
    moments = [torch.tensor(x) for s in (real, drawn) for x in (s.mean(0), np.cov(s, rowvar=False))]
    assert found.value == pytest.approx(float(_compute_fid(*moments)), abs=1e-6)
    assert found.low is found.high is None
    assert found.n == 300


def test_kernel_distance_against_torchmetrics(real: Features, drawn: Features) -> None:
    other = poly_mmd(torch.tensor(real), torch.tensor(drawn), 3, None, 1.0)
    assert kernel_distance(real, drawn) == pytest.approx(float(other), abs=1e-6)
    assert compare(real=real, drawn=drawn)["kid_cxr"].value == pytest.approx(float(other), abs=1e-6)


def test_precision_and_recall_against_prdc(real: Features, drawn: Features) -> None:
    other = compute_prdc(real, drawn[:250], nearest_k=5)
    found = precision_recall(real, drawn[:250])
    assert found == {name: pytest.approx(float(value), abs=1e-6) for name, value in other.items()}


def test_blocks_of_rows_change_nothing(
    real: Features, drawn: Features, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = kernel_distance(real, drawn), precision_recall(real, drawn)
    monkeypatch.setattr("mavilt_pl.metrics.feature_sets.ROWS_AT_ONCE", 7)
    in_blocks = kernel_distance(real, drawn), precision_recall(real, drawn)
    assert in_blocks[0] == pytest.approx(whole[0])
    assert in_blocks[1] == whole[1]
    np.testing.assert_allclose(nearest_distances(real, real, 1).min(), 0, atol=3)


def test_one_side_alone_has_no_figure(real: Features) -> None:
    """Never silently 0."""
    assert compare(real=real) == {}


def test_the_floor_is_the_distance_of_real_images(real: Features, drawn: Features) -> None:
    training = np.random.default_rng(2).normal(size=(900, 8))
    found = compare(real=real, drawn=drawn, training=training)
    # As many training images as drawings, so both depend on the number alike.
    assert 0 < found["fid_cxr_floor"].value < 0.3 < found["fid_cxr"].value
    assert abs(found["kid_cxr_floor"].value) < 0.05 < found["kid_cxr"].value
    assert {"fid_cxr_floor", "kid_cxr_floor"}.isdisjoint(compare(real=real, drawn=drawn))


def test_copies_of_training_images_are_found(real: Features) -> None:
    random = np.random.default_rng(3)
    training = random.normal(size=(900, 8))
    copies = training[:200] + random.normal(scale=0.01, size=(200, 8))
    honest = random.normal(size=(2000, 8))
    found = compare(real=real, drawn=np.concatenate([copies, honest[:200]]), training=training)
    assert found["near_training_cxr"].value == pytest.approx(0.525, abs=0.03)
    # 5 % of held-out images are that near, so 5 % of honest drawings are, too.
    found = compare(real=real, drawn=honest, training=training)
    assert found["near_training_cxr"].value == pytest.approx(0.05, abs=0.03)


@pytest.mark.parametrize("num_images", [8, 4])
def test_few_images_warn(num_images: int) -> None:
    """With fewer images than features a covariance is singular."""
    features = np.random.default_rng(0).normal(size=(num_images, 8))
    with pytest.warns(MaviltWarning, match=f"fid_cxr of {num_images} images has 8 features"):
        assert "fid_cxr" in compare(real=features, drawn=features)


def test_features_that_are_no_numbers_are_left_out(real: Features, drawn: Features) -> None:
    broken = drawn.copy()
    broken[3, 2] = np.nan
    with pytest.warns(MaviltWarning, match="1 of 600 images have features that are no numbers"):
        found = compare(real=real, drawn=broken)
    expected = compare(real=real, drawn=np.delete(drawn, 3, axis=0))
    assert found == {
        name: figure._replace(value=pytest.approx(figure.value))
        for name, figure in expected.items()
    }
