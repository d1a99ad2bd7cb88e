"""BLEU-1 to 4, ROUGE-L and METEOR of generated reports, and perplexity of plain text."""

from __future__ import annotations

import re
import unicodedata
import warnings
from collections import Counter
from collections.abc import Sequence

import numpy as np
from nltk.translate.meteor_score import meteor_score
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import Tokenizer

from mavilt_pl.errors import MaviltWarning
from mavilt_pl.metrics.bootstrap import (
    Estimate,
    PatientBootstrapMetric,
    Statistics,
    bootstrap_all,
    bootstrap_ci,
    drop_undefined,
)


def words(text: str) -> list[str]:
    """Split a text into lower-case words; every punctuation mark is a word of its own.

    >>> words("No effusion.")
    ['no', 'effusion', '.']
    """
    # Punctuation apart, as the PTB tokenizer of coco-caption has it, but without dropping it.
    return re.findall(r"\w+|[^\w\s]", text.lower())


# Thai to Lao, Burmese, Khmer, kana, ideographs: scripts without spaces between words.
_SPACELESS = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]"
)


class UnicodeTokenizer(Tokenizer):
    """rouge-score's tokens, in every script: runs of letters and digits, in lower case.

    rouge-score's own tokenizer drops every letter that is not ASCII; on ASCII the two are equal.
    A script without spaces gives one token a character, with its vowel signs and tone marks.
    """

    def tokenize(self, text: str) -> list[str]:
        """Split a text.

        >>> UnicodeTokenizer().tokenize("No effusion, 3 mm.")
        ['no', 'effusion', '3', 'mm']
        >>> UnicodeTokenizer().tokenize("Нет выпота. 无积液")
        ['нет', 'выпота', '无', '积', '液']
        """
        tokens: list[str] = []
        in_word = False
        for character in text.lower():
            category = unicodedata.category(character)
            spaceless = _SPACELESS.match(character) is not None
            if category.startswith("M"):
                # A mark belongs to the letter before it; without one it is noise.
                if in_word:
                    tokens[-1] += character
            elif category.startswith("L") or category == "Nd":
                if in_word and not spaceless and not _SPACELESS.match(tokens[-1]):
                    tokens[-1] += character
                else:
                    tokens.append(character)
                in_word = True
            else:
                in_word = False
        return tokens


def _longest_common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence."""
    # One row of the table: lengths for all prefixes of `second`.
    row = [0] * (len(second) + 1)
    for word in first:
        diagonal = 0
        for column, other in enumerate(second, start=1):
            above = row[column]
            row[column] = diagonal + 1 if word == other else max(above, row[column - 1])
            diagonal = above
    return row[-1]


def rouge_l_coco(prediction: str, reference: str) -> float:
    """ROUGE-L as pycocoevalcap defines it, which R2Gen and its descendants report.

    F with beta 1.2, so recall weighs more, over tokens between single spaces, without stemming. The
    texts are taken as they are: case and punctuation are the cleaning protocol's business.

    >>> round(rouge_l_coco("no effusion .", "no pleural effusion ."), 4)
    0.8356
    """
    # At single spaces, as pycocoevalcap does: two in a row enclose an empty token.
    predicted, expected = prediction.split(" "), reference.split(" ")
    common = _longest_common_subsequence(predicted, expected)
    if common == 0:
        return 0.0
    precision, recall = common / len(predicted), common / len(expected)
    beta_squared = 1.2**2
    return (1 + beta_squared) * precision * recall / (recall + beta_squared * precision)


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


# By the beginning of a figure's name; the longest one counts.
PROTOCOLS = {
    "bleu": "over the corpus, unsmoothed; lower case, every punctuation mark a token",
    "rouge_l": "rouge-score's F1, mean; letters and digits of any script, lower case, unstemmed",
    "rouge_l_coco": "coco: pycocoevalcap's F (beta 1.2), mean; tokens between single spaces of "
    "texts as data.cleaning leaves them",
    "meteor": "NLTK's, mean; not comparable with METEOR 1.5 of R2Gen's pycocoevalcap, whose values "
    "are about half as high",
}


class TextScores(PatientBootstrapMetric):
    """bleu_1 to bleu_4 over the corpus; means of rouge_l, rouge_l_coco and meteor over the texts.

    `rouge_l` and `meteor` are those of rouge-score and NLTK. R2Gen's tools (pycocoevalcap) define
    both differently: `rouge_l_coco` is their ROUGE-L; their METEOR 1.5 is a Java program, whose
    values are about half of NLTK's. docs/metrics.md has the definitions.

    Without WordNet there is no meteor figure, and one warning says how to install it.
    """

    def protocol_of(self, name: str) -> str:
        """How the figure of this name is computed."""
        fitting = [beginning for beginning in PROTOCOLS if name.startswith(beginning)]
        return PROTOCOLS[max(fitting, key=len)]

    def __init__(self) -> None:
        # 10 counts of BLEU, then the two ROUGE-L and METEOR.
        super().__init__(13)
        self.rouge = RougeScorer(["rougeL"], tokenizer=UnicodeTokenizer())
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
            counts = bleu_counts(prediction_words, reference_words)
            rows.append([*counts, rouge, rouge_l_coco(prediction, reference), meteor])
        self.add_rows(rows, patients)

    def compute(self) -> dict[str, Estimate]:
        """All figures."""
        rows, patients = self.table()
        if not len(rows):
            return {}
        return bootstrap_all(self.statistics(rows), patients)

    def statistics(self, rows: np.ndarray) -> Statistics:
        """The figures as a function of the weights of the texts."""
        counts_n10, means_n3 = rows[:, :10], rows[:, 10:]

        def scores(weights_n: np.ndarray) -> dict[str, float]:
            """All figures of texts of these weights."""
            counts = weights_n @ counts_n10
            found = {f"bleu_{order}": corpus_bleu(counts, order) for order in range(1, 5)}
            means = weights_n @ means_n3 / weights_n.sum()
            return found | dict(zip(("rouge_l", "rouge_l_coco", "meteor"), means.tolist()))

        return scores


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
