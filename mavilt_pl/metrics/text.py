"""BLEU-1 to 4, ROUGE-L and METEOR of generated reports, and perplexity of plain text."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Sequence

import numpy as np
from nltk.translate.meteor_score import meteor_score
from rouge_score.rouge_scorer import RougeScorer

from mavilt_pl.metrics.bootstrap import Estimate, PatientBootstrapMetric, estimate


def words(text: str) -> list[str]:
    """Lower case; every run of letters and digits, and every other mark, is a word."""
    return re.findall(r"\w+|[^\w\s]", text.lower())


def bleu_counts(prediction: Sequence[str], reference: Sequence[str]) -> list[float]:
    """Lengths of both, then for n = 1…4 the clipped matches and the number of n-grams: all that
    corpus BLEU needs.
    """
    counts: list[float] = [len(prediction), len(reference)]
    for n in range(1, 5):
        said = Counter(zip(*(prediction[i:] for i in range(n))))
        wanted = Counter(zip(*(reference[i:] for i in range(n))))
        counts += [sum((said & wanted).values()), max(len(prediction) - n + 1, 0)]
    return counts


def corpus_bleu(counts: np.ndarray, order: int) -> float:
    """BLEU-`order` (Papineni et al., 2002) from all_reduce_sum `bleu_counts` [10], uniform weights, no
    smoothing.
    """
    said, wanted = counts[:2]
    matches, total = counts[2::2][:order], counts[3::2][:order]
    if said == 0 or (matches == 0).any():
        return 0.0
    brevity = min(0.0, 1 - wanted / said)
    return float(np.exp(brevity + np.log(matches / total).mean()))


def has_wordnet() -> bool:
    """Whether NLTK finds WordNet, which METEOR matches synonyms by."""
    import nltk

    for name in ("corpora/wordnet", "corpora/wordnet.zip"):
        try:
            nltk.data.find(name)
            return True
        except LookupError:
            continue
    return False


class TextScores(PatientBootstrapMetric):
    """bleu_1 … bleu_4 over the corpus, mean rouge_l (F, no stemmer) and mean meteor (NLTK, WordNet
    3.0).

    Without WordNet there is no meteor figure, and one warning that says how to get it.
    """

    protocol = "lower case, punctuation split; BLEU over the corpus, unsmoothed; ROUGE-L F, no stemmer; METEOR NLTK"

    def __init__(self) -> None:
        super().__init__(12)
        self.rouge = RougeScorer(["rougeL"], use_stemmer=False)
        self.wordnet = has_wordnet()
        if not self.wordnet:
            warnings.warn(
                "WordNet is not installed, so METEOR is not computed: run `python -m "
                "nltk.downloader wordnet`, or set "
                "NLTK_DATA to a folder that has it",
                stacklevel=2,
            )

    def update(
        self, predictions: Sequence[str], references: Sequence[str], patients: Sequence[str]
    ) -> None:
        rows = []
        for prediction, reference in zip(predictions, references):
            said, wanted = words(prediction), words(reference)
            rouge = self.rouge.score(reference, prediction)["rougeL"].fmeasure
            meteor = meteor_score([wanted], said) if self.wordnet else float("nan")
            rows.append([*bleu_counts(said, wanted), rouge, meteor])
        self.add_rows(rows, patients)

    def compute(self) -> dict[str, Estimate]:
        rows, patients = self.table()
        if not len(rows):
            return {}
        found = {
            f"bleu_{n}": estimate(lambda w, n=n: corpus_bleu(w @ rows[:, :10], n), patients)
            for n in range(1, 5)
        }  # type: ignore[misc]
        for column, name in ((10, "rouge_l"), (11, "meteor")):
            found[name] = estimate(lambda w, c=column: float(w @ rows[:, c] / w.sum()), patients)  # type: ignore[misc]
        return {name: value for name, value in found.items() if value is not None}


class Perplexity(PatientBootstrapMetric):
    """exp(nats per token) over all texts (`perplexity`); where the nats of an earlier model are
    given too, that model's (`perplexity_before`) and how many times it the later one's is
    (`perplexity_ratio`), on the same texts.
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
        """Summed nats and the number of tokens of each text; `before`, the earlier model's nats."""
        self.add_rows([*zip(nats, tokens, before or [np.nan] * len(nats))], patients)

    def compute(self) -> dict[str, Estimate]:
        rows, patients = self.table()
        nats, tokens, before = rows.T
        if not len(rows):
            return {}

        def of(sums: np.ndarray) -> Estimate | None:
            return estimate(lambda w: float(np.exp(w @ sums / (w @ tokens))), patients)

        found = {"": of(nats), "_before": of(before), "_ratio": of(nats - before)}
        return {f"perplexity{name}": value for name, value in found.items() if value is not None}
