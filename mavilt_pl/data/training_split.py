"""What an evaluation needs to know of the training split: what every model has to beat."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import numpy as np

from mavilt_pl.data.corpus import Corpus
from mavilt_pl.data.dataset import ItemOptions


class TrainingImage(NamedTuple):
    """A training study with its image.

    Args:
        row: of the corpus.
        image: row of the pixel store.
        patient: as in a batch.
    """

    row: int
    image: int
    patient: str


def most_frequent_text(corpus: Corpus, options: ItemOptions) -> str:
    """The text that most training studies share; "" without training texts.

    Of equally frequent ones it is the first in alphabetical order.
    """
    # The texts as they are trained on, after sections and cleaning.
    texts = Counter(options.text_of(corpus.text(row)) for row in corpus.rows("train"))
    texts.pop("", None)
    return min(texts, key=lambda text: (-texts[text], text), default="")


def majority_answers(corpus: Corpus, options: ItemOptions) -> dict[tuple[str, frozenset[str]], str]:
    """The most frequent answer to the training questions of each topic and set of candidates.

    Of equally frequent ones it is the first in alphabetical order.
    """
    counts: dict[tuple[str, frozenset[str]], Counter[str]] = {}
    for row in corpus.rows("train"):
        # All of a study's questions, not the few that one epoch draws.
        for question in options.questions_of(corpus[row], training=True):
            # Free text has too many answers for one to be frequent.
            if question.candidates:
                key = (question.topic, frozenset(question.candidates))
                counts.setdefault(key, Counter())[question.answer] += 1
    answers = {}
    for key, counter in counts.items():
        answers[key] = min(counter, key=lambda answer: (-counter[answer], answer))
    return answers


def training_images(corpus: Corpus, options: ItemOptions, limit: int) -> list[TrainingImage]:
    """At most `limit` training studies that have an image, at random, the same ones each time."""
    images: list[TrainingImage] = []
    rows = corpus.rows("train")
    # A permutation instead of the first ones: tables are often in the order of patients.
    for row in map(int, rows[np.random.default_rng(0).permutation(len(rows))]):
        if len(images) == limit:
            break
        image = options.image_row(corpus, row)
        # A study without an image of these views is not in the training either.
        if image is not None:
            study = corpus.text(row)
            images.append(TrainingImage(row, image, f"{study.source}:{study.patient}"))
    return images
