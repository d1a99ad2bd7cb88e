"""BLEU-1 to 4, ROUGE-L and METEOR of generated reports, and perplexity of plain text."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Sequence

import numpy as np
from nltk.translate.meteor_score import meteor_score
from rouge_score.rouge_scorer import RougeScorer

from mavilt_pl.errors import MaviltWarning
from mavilt_pl.metrics.bootstrap import (
    Estimate,
    PatientBootstrapMetric,
    bootstrap_ci,
    drop_undefined,
    weighted_mean_ci,
)


def words(text: str) -> list[str]:
    """Split a text into lower-case words; every punctuation mark is a word of its own.

    >>> words("No effusion.")
    ['no', 'effusion', '.']
    """
    # Punctuation apart, as the PTB tokenizer of coco-caption has it, but without dropping it.
    return re.findall(r"\w+|[^\w\s]", text.lower())


def _ngrams(tokens: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    shifted = [tokens[start:] for start in range(n)]
    return Counter(zip(*shifted))


def bleu_counts(prediction: Sequence[str], reference: Sequence[str]) -> list[float]:
    """All that corpus BLEU needs of a pair, 10 numbers that can be summed over pairs.

    Lengths of prediction and reference, then for n = 1…4 the clipped matches and the number of
    n-grams.

    >>> bleu_counts(["no", "effusion"], ["no", "pleural", "effusion"])
    [2, 3, 2, 2, 0, 1, 0, 0, 0, 0]
    """
    counts: list[float] = [len(prediction), len(reference)]
    for n in range(1, 5):
        # `&` of counters is the minimum: a word repeated by the model matches as often as the
        # reference has it.
        matches = _ngrams(prediction, n) & _ngrams(reference, n)
        num_ngrams = max(len(prediction) - n + 1, 0)
        counts += [sum(matches.values()), num_ngrams]
    return counts


def corpus_bleu(counts: np.ndarray, order: int) -> float:
    """BLEU-`order` (Papineni et al., 2002), uniform weights, no smoothing.

    Own code: NLTK and sacrebleu, which the tests compare with, score texts; the bootstrap needs the
    score from weighted sums of counts.

    Args:
        counts: `bleu_counts` summed over pairs, [10].
        order: longest n-gram, 1 to 4.

    >>> round(corpus_bleu(np.array([4.0, 4.0, 3.0, 4.0, 1.0, 3.0, 0.0, 2.0, 0.0, 1.0]), order=2), 6)
    0.5
    """
    prediction_length, reference_length = counts[:2]
    # Matches and totals of n = 1, 2, … alternate behind the two lengths.
    matches = counts[2::2][:order]
    total = counts[3::2][:order]
    # Unsmoothed BLEU is 0 if one order has no match.
    if prediction_length == 0 or (matches == 0).any():
        return 0.0
    # As a logarithm, so it adds to the logarithms of the precisions.
    brevity = min(0.0, 1 - reference_length / prediction_length)
    mean_log_precision = np.log(matches / total).mean()
    return float(np.exp(brevity + mean_log_precision))


def has_wordnet() -> bool:
    """Whether NLTK finds WordNet, by which METEOR matches synonyms.

    >>> has_wordnet() in (True, False)
    True
    """
    import nltk

    # NLTK reads the folder and the archive; a search by file name would miss one of them.
    for name in ("corpora/wordnet", "corpora/wordnet.zip"):
        try:
            nltk.data.find(name)
            return True
        except LookupError:
            continue
    return False


class TextScores(PatientBootstrapMetric):
    """bleu_1 to bleu_4 over the corpus, mean rouge_l (F, no stemmer) and mean meteor (NLTK).

    Without WordNet there is no meteor figure, and one warning says how to install it.
    """

    protocol = (
        "lower case, punctuation split; BLEU over the corpus, unsmoothed; ROUGE-L F, no stemmer; "
        "METEOR NLTK"
    )

    def __init__(self) -> None:
        # 10 counts of BLEU, then ROUGE-L and METEOR.
        super().__init__(12)
        self.rouge = RougeScorer(["rougeL"], use_stemmer=False)
        # Checked once: NLTK would raise at the first report of a test that took hours.
        self.wordnet = has_wordnet()
        if not self.wordnet:
            warnings.warn(
                "WordNet is not installed, so METEOR is not computed: run `python -m "
                "nltk.downloader wordnet`, or set NLTK_DATA to a folder that has it",
                MaviltWarning,
                stacklevel=2,
            )

    def update(
        self, predictions: Sequence[str], references: Sequence[str], patients: Sequence[str]
    ) -> None:
        """Add generated reports with their references."""
        rows = []
        for prediction, reference in zip(predictions, references):
            prediction_words, reference_words = words(prediction), words(reference)
            rouge = self.rouge.score(reference, prediction)["rougeL"].fmeasure
            # nan in its column, so rows keep their width and the figure is dropped at the end.
            meteor = float("nan")
            if self.wordnet:
                meteor = meteor_score([reference_words], prediction_words)
            rows.append([*bleu_counts(prediction_words, reference_words), rouge, meteor])
        self.add_rows(rows, patients)

    def compute(self) -> dict[str, Estimate]:
        """All figures."""
        rows, patients = self.table()
        if not len(rows):
            return {}
        figures: dict[str, Estimate | None] = {}
        bleu_rows = rows[:, :10]
        for order in range(1, 5):
            figures[f"bleu_{order}"] = self._bleu(bleu_rows, patients, order)
        figures["rouge_l"] = weighted_mean_ci(rows[:, 10], patients)
        figures["meteor"] = weighted_mean_ci(rows[:, 11], patients)
        return drop_undefined(figures)

    @staticmethod
    def _bleu(counts: np.ndarray, patients: np.ndarray, order: int) -> Estimate | None:
        return bootstrap_ci(lambda weights: corpus_bleu(weights @ counts, order), patients)


class Perplexity(PatientBootstrapMetric):
    """`perplexity`: exp(nats per token) over all texts.

    If the nats of an earlier model are given too, also its perplexity on the same texts
    (`perplexity_before`) and the ratio of the two (`perplexity_ratio`; above 1: forgotten).
    """

    protocol = "exp of mean nats per token of the model's own tokenizer"

    def __init__(self) -> None:
        super().__init__(3)

    def update(
        self,
        nats: Sequence[float],
        tokens: Sequence[int],
        patients: Sequence[str],
        before: Sequence[float] | None = None,
    ) -> None:
        """Add texts.

        Args:
            nats: negative log-likelihood of each text, summed over its tokens.
            tokens: number of tokens of each text.
            patients: the patient of each text.
            before: `nats` under the earlier model.
        """
        # nan, so the two figures that need it are undefined.
        earlier = before or [np.nan] * len(nats)
        self.add_rows([*zip(nats, tokens, earlier)], patients)

    def compute(self) -> dict[str, Estimate]:
        """All figures."""
        rows, patients = self.table()
        if not len(rows):
            return {}
        nats, tokens, before = rows.T

        def exp_per_token(sums: np.ndarray) -> Estimate | None:
            """Exp of the sum over the number of tokens."""

            def per_token(weights: np.ndarray) -> float:
                """Exp of the weighted sum over the weighted number of tokens."""
                return float(np.exp(weights @ sums / (weights @ tokens)))

            return bootstrap_ci(per_token, patients)

        # The ratio from the difference of nats: its interval is paired by text.
        figures = {
            "perplexity": exp_per_token(nats),
            "perplexity_before": exp_per_token(before),
            "perplexity_ratio": exp_per_token(nats - before),
        }
        return drop_undefined(figures)
