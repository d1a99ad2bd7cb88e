"""BLEU and CIDEr as pycocoevalcap defines them, which R2Gen and most work after it report.

Tokens stand between white space; the texts are taken as they are, since case and punctuation are
the cleaning protocol's business. ROUGE-L of the same tools is `metrics.text.rouge_l_coco`; their
METEOR is a Java program.

Own code: pycocoevalcap gives no score of a resample, and its tokenizer needs Java. The tests
compare with it.

Letters in shapes: n reports.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from mavilt_pl.metrics.bootstrap import Estimate, Statistics, bootstrap_all, patient_key
from mavilt_pl.metrics.text import bleu_counts

_TEXTS = "tokens between white space of texts as data.cleaning leaves them"
PROTOCOLS = {
    "bleu": f"coco: pycocoevalcap's corpus BLEU; {_TEXTS}",
    "cider": f"coco: pycocoevalcap's CIDEr-D, mean; {_TEXTS}; n-grams weighted by their rarity "
    "among the references of this test",
}
ORDERS = 4  # longest n-gram
SIGMA = 6.0  # of CIDEr-D's penalty for other lengths
# pycocoevalcap keeps BLEU from 0 and from divisions by 0 with these.
TINY, SMALL = 1e-15, 1e-9
Vector = Mapping[tuple[str, ...], float]


def coco_scores(
    predictions: Sequence[str], references: Sequence[str], patients: Sequence[str]
) -> dict[str, Estimate]:
    """`bleu_1_coco` to `bleu_4_coco` and `cider` of a whole set of reports.

    Args:
        predictions: generated reports.
        references: of the same studies.
        patients: of the same studies.
    """
    if not predictions:
        return {}
    keys = np.array([patient_key(patient) for patient in patients])
    return bootstrap_all(coco_statistics(predictions, references), keys)


def coco_statistics(predictions: Sequence[str], references: Sequence[str]) -> Statistics:
    """The figures of `coco_scores` as a function of the weights of the reports."""
    counts = []
    for prediction, reference in zip(predictions, references, strict=True):
        counts.append(bleu_counts(prediction.split(), reference.split()))
    # Counts can be summed by weight, so no text is read again in a resample.
    counts_n10 = np.array(counts, dtype=float)
    # The rarity of n-grams stays that of the whole set in every resample.
    cider_n = cider(predictions, references)

    def scores(weights_n: np.ndarray) -> dict[str, float]:
        """All figures of reports of these weights."""
        bleu = coco_bleu(weights_n @ counts_n10)
        found = {f"bleu_{order}_coco": value for order, value in enumerate(bleu, 1)}
        found["cider"] = float(weights_n @ cider_n / weights_n.sum())
        return found

    return scores


def coco_protocol(name: str) -> str:
    """How a figure of `coco_scores` is computed.

    >>> coco_protocol("bleu_1_coco")[:30]
    "coco: pycocoevalcap's corpus B"
    """
    return PROTOCOLS["cider" if name == "cider" else "bleu"]


def coco_bleu(counts: np.ndarray) -> list[float]:
    """BLEU-1 to 4 of summed `bleu_counts`, [10].

    >>> [round(bleu, 4) for bleu in coco_bleu(np.array([4.0, 4, 3, 4, 1, 3, 0, 2, 0, 1]))][:2]
    [0.75, 0.5]
    """
    # Matches and totals of n = 1, 2, … alternate behind the two lengths.
    prediction_length, reference_length = counts[:2]
    matches, total = counts[2::2], counts[3::2]
    precisions = (matches + TINY) / (total + SMALL)
    ratio = (prediction_length + TINY) / (reference_length + SMALL)
    brevity = np.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    orders = np.arange(1, ORDERS + 1)
    return [float(brevity * value) for value in np.cumprod(precisions) ** (1 / orders)]


def cider(predictions: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """CIDEr-D of each report (arXiv 1411.5726, times 10), float64 [n].

    n-grams are weighted by their rarity among the references of this set, so a report's score
    depends on the others.
    """
    # Counted once a text, not once a pair.
    hypotheses = [_ngram_counts(text) for text in predictions]
    expected = [_ngram_counts(text) for text in references]
    frequency: Counter[tuple[str, ...]] = Counter()
    for counts in expected:
        # In how many references, not how often.
        frequency.update(counts.keys())
    # An n-gram of every reference has the weight 0.
    log_size = np.log(float(len(references)))
    scores = []
    for hypothesis, reference in zip(hypotheses, expected, strict=True):
        by_order = np.zeros(ORDERS)
        mine = _weighted(hypothesis, frequency, log_size)
        theirs = _weighted(reference, frequency, log_size)
        # pycocoevalcap takes the number of bigrams for the length.
        difference = _num_bigrams(hypothesis) - _num_bigrams(reference)
        for order in range(ORDERS):
            by_order[order] = _similarity(mine[order], theirs[order])
        penalty = np.exp(-(difference**2) / (2 * SIGMA**2))
        scores.append(10 * penalty * by_order.mean())
    return np.array(scores)


def _ngram_counts(text: str) -> Counter[tuple[str, ...]]:
    """How often each n-gram of 1 to 4 words occurs."""
    # R2Gen's cleaning leaves words and full stops between spaces.
    tokens = text.split()
    counts: Counter[tuple[str, ...]] = Counter()
    for order in range(1, ORDERS + 1):
        counts.update(zip(*(tokens[start:] for start in range(order))))
    return counts


def _num_bigrams(counts: Mapping[tuple[str, ...], int]) -> int:
    return sum(count for ngram, count in counts.items() if len(ngram) == 2)


def _weighted(
    counts: Mapping[tuple[str, ...], int], frequency: Mapping[tuple[str, ...], int], log_size: float
) -> list[dict[tuple[str, ...], float]]:
    """tf-idf of the n-grams of each order."""
    by_order: list[dict[tuple[str, ...], float]] = [{} for _ in range(ORDERS)]
    for ngram, count in counts.items():
        # An n-gram of no reference is as rare as one of a single reference.
        rarity = log_size - np.log(max(1.0, frequency.get(ngram, 0)))
        by_order[len(ngram) - 1][ngram] = count * rarity
    return by_order


def _similarity(mine: Vector, theirs: Vector) -> float:
    """Cosine of two vectors, in which a repeated n-gram counts as often as the reference has it."""
    product = 0.0
    for ngram, value in mine.items():
        other = theirs.get(ngram, 0.0)
        product += min(value, other) * other
    norms = _norm(mine) * _norm(theirs)
    return product / norms if norms > 0 else product


def _norm(vector: Vector) -> float:
    return float(np.sqrt(sum(value**2 for value in vector.values())))
