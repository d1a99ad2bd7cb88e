"""The figures of R2Gen and its descendants, against their own tools (pycocoevalcap)."""

from __future__ import annotations

import numpy as np
import pytest
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

from mavilt_pl.metrics.coco import cider, coco_scores
from mavilt_pl.metrics.text import rouge_l_coco

SENTENCES = [
    "the heart is normal in size .",
    "the heart is enlarged .",
    "no pleural effusion or pneumothorax .",
    "there is a small left  pleural effusion .",  # two spaces: an empty token to ROUGE-L alone
    "no focal consolidation .",
    "lungs are clear .",
    "xxxx",
]


def reports(number: int, seed: int) -> list[str]:
    random = np.random.default_rng(seed)
    texts = []
    for _ in range(number):
        chosen = random.choice(len(SENTENCES), random.integers(1, 6), replace=True)
        texts.append(" ".join(SENTENCES[index] for index in chosen))
    return texts


@pytest.mark.parametrize("number", [2, 5, 60])
def test_equal_to_pycocoevalcap(number: int) -> None:
    predictions, references = reports(number, 0), reports(number, 1)
    # No common n-gram at all, and a text of one word.
    predictions[0], references[1] = "unheard of words", "xxxx"
    ours = coco_scores(predictions, references, [str(index) for index in range(number)])
    expected = {index: [text] for index, text in enumerate(references)}
    found = {index: [text] for index, text in enumerate(predictions)}
    bleu, _ = Bleu(4).compute_score(expected, found, verbose=0)
    for order, value in enumerate(bleu, 1):
        assert ours[f"bleu_{order}_coco"].value == pytest.approx(value, abs=1e-9)
    mean, of_each = Cider().compute_score(expected, found)
    assert ours["cider"].value == pytest.approx(mean, abs=1e-9)
    np.testing.assert_allclose(cider(predictions, references), of_each, atol=1e-9)
    rouge, _ = Rouge().compute_score(expected, found)
    pairs = zip(predictions, references)
    assert np.mean([rouge_l_coco(*pair) for pair in pairs]) == pytest.approx(rouge, abs=1e-9)


def test_intervals_and_empty_texts() -> None:
    texts = reports(40, 0)
    found = coco_scores(texts, reports(40, 1), [str(index) for index in range(40)])
    for figure in found.values():
        assert figure.low < figure.value < figure.high
    same = coco_scores(texts, texts, [str(index) for index in range(40)])
    assert same["bleu_4_coco"].value == pytest.approx(1)
    empty = coco_scores([""] * 3, texts[:3], ["a", "b", "c"])
    assert empty["bleu_1_coco"].value == empty["cider"].value == 0
    assert coco_scores([], [], []) == {}
