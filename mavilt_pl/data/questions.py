"""Questions about findings, worded from a study's labels."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence

from mavilt_pl.data.records import Question, Study

YES_NO = ("yes", "no")
# The last wording is for validation and test, all others train: so a model is evaluated on words
# that it was not trained on.
WORDINGS = (
    "Is there {}?",
    "Does the radiograph show {}?",
    "Is {} present?",
    "Is {} seen?",
    "Can {} be seen on this radiograph?",
    "Does this patient have {}?",
    "Do you see {}?",
    "Is there evidence of {}?",
    "Does anything suggest {}?",
    "{}?",
    "Is {} visible in the image?",
)
# What a finding is called in a question, if its name in the tables does not read well.
SPOKEN = {
    "pleural effusion": "a pleural effusion",
    "pneumothorax": "a pneumothorax",
    "lung lesion": "a nodule or mass",
    "support devices": "a tube, line or device",
    "edema": "pulmonary edema",
    "fracture": "a fracture",
    "lung opacity": "a lung opacity",
}

_YES_NO_QUESTION = re.compile(
    r"\s*(?:is|are|was|were|does|do|did|has|have|had|can|could)\b", re.IGNORECASE
)


def asks_yes_or_no(question: str) -> bool:
    """Whether yes and no are the answers, by a question's first word; a choice (A or B) is none.

    >>> asks_yes_or_no("Is there edema?"), asks_yes_or_no("Is it left or right?")
    (True, False)
    """
    is_choice = re.search(r"\bor\b", question, re.IGNORECASE) is not None
    return _YES_NO_QUESTION.match(question) is not None and not is_choice


def wording(choices: tuple[str, ...], key: str, training: bool) -> str:
    """One of several wordings: the last for evaluation, another for training.

    Args:
        choices: at least two wordings.
        key: chooses the wording for training, by a stable hash.
        training: whether a model is trained.

    >>> wording(("a", "b", "held out"), "study 7", training=False)
    'held out'
    """
    if not training:
        return choices[-1]
    # crc32, since Python's own hash of a text differs from process to process.
    return choices[zlib.crc32(key.encode()) % (len(choices) - 1)]


def from_labels(study: Study, findings: Sequence[str], training: bool) -> tuple[Question, ...]:
    """A presence question for each finding that is labelled present or absent.

    The wording depends on the study and the finding. Uncertain and unmentioned labels give no
    question.

    Args:
        study: with labels.
        findings: to ask about, in this order.
        training: use the wordings for training, not the held-out one.

    >>> study = Study("a", "b", "c", "test", (), labels={"edema": "present"})
    >>> [question.question for question in from_labels(study, ["edema"], training=False)]
    ['Is pulmonary edema visible in the image?']
    """
    questions = []
    for finding in findings:
        label = study.labels.get(finding)
        # Neither yes nor no would be right.
        if label not in ("present", "absent"):
            continue
        # By study and finding, so that the questions about one study differ in their words.
        text = wording(WORDINGS, f"{study.study}/{finding}", training)
        text = text.format(SPOKEN.get(finding, finding))
        answer = "yes" if label == "present" else "no"
        questions.append(Question(text, answer, finding, YES_NO))
    return tuple(questions)
