"""Questions about studies: made from labels, and read from the files of MIMIC-CXR-VQA and
Medical-Diff-VQA.
"""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mavilt_pl.data.records import Question, Study
from mavilt_pl.data.sources import Reject, find_table, read_json, read_table
from mavilt_pl.errors import Rejected, UserError

# All but the last train; the last is kept for validation and test, so that a model is asked in
# words it was not trained on.
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
YES_NO = ("yes", "no")
# What a finding is called in a question, where its name in the tables does not read well.
SPOKEN = {
    "pleural effusion": "a pleural effusion",
    "pneumothorax": "a pneumothorax",
    "lung lesion": "a nodule or mass",
    "support devices": "a tube, line or device",
    "edema": "pulmonary edema",
    "fracture": "a fracture",
    "lung opacity": "a lung opacity",
}


def wording(choices: tuple[str, ...], key: str, training: bool) -> str:
    """One of all wordings but the last, by a stable hash of `key`, where a model is trained; the
    last for evaluation.
    """
    return choices[zlib.crc32(key.encode()) % (len(choices) - 1)] if training else choices[-1]


def from_labels(study: Study, findings: Sequence[str], training: bool) -> tuple[Question, ...]:
    """A presence question for each finding that is known to be present or absent, in a wording
    fixed by the study and the finding, or in the held-out one. Uncertain and unmentioned labels
    make none.
    """
    asked = []
    for finding in findings:
        label = study.labels.get(finding)
        if label in ("present", "absent"):
            text = wording(WORDINGS, f"{study.study}/{finding}", training)
            spoken = text.format(SPOKEN.get(finding, finding))
            asked.append(Question(spoken, "yes" if label == "present" else "no", finding, YES_NO))
    return tuple(asked)


# "Which is it, A or B?": "which" and one comma, so that a list of three is not taken for two.
_CHOICE = re.compile(
    r"(?:which|what|where)\b[^,:]*[,:]\s*([^,:]+) or ([^,:]+?)\s*\?", re.IGNORECASE
)
_ARTICLE = re.compile(r"^(?:either|an?|the)\s+", re.IGNORECASE)
NONE = "none"  # the answer where the file's list of answers is empty


def _set_answer(names: Iterable[str]) -> str:
    """A set of answers as one text: in alphabetical order, so that equal sets are equal texts."""
    return ", ".join(sorted({name.strip().lower() for name in names} - {""})) or NONE


def choices(item: Mapping[str, Any]) -> tuple[str, ...]:
    """Possible answers of a MIMIC-CXR-VQA `choose` question: either alternative, both, none; ()
    where the two cannot be read from the template's arguments or, where there are none, from the
    end of the question.
    """
    arguments = item.get("template_arguments")
    pair: list[str] = []
    if isinstance(arguments, dict):
        values = [list(a.values()) for a in arguments.values() if isinstance(a, dict)]
        pair = next(([str(name) for name in names] for names in values if len(names) == 2), [])
    if not pair and (match := _CHOICE.fullmatch(str(item.get("question", "")).strip())):
        pair = [_ARTICLE.sub("", name.strip()) for name in match.groups()]
    if len({name.lower() for name in pair}) != 2:
        return ()
    return *(_set_answer([name]) for name in pair), _set_answer(pair), NONE


def _mimic_cxr_vqa(item: Any) -> tuple[str, Question]:
    """Study and question of an item. Raises `Rejected` for one that lacks what is needed."""
    if not isinstance(item, dict):
        raise Rejected(
            f"a {type(item).__name__}; expected an object with study_id, question and answer"
        )
    study, question, answer = item.get("study_id"), item.get("question"), item.get("answer")
    if (
        not isinstance(study, str | int)
        or not isinstance(question, str)
        or not (study and question.strip())
    ):
        raise Rejected(
            f"study_id {str(study)[:40]!r}, question {str(question)[:80]!r}; expected both"
        )
    answers = [answer] if isinstance(answer, str) else answer
    if not isinstance(answers, list) or not all(isinstance(name, str) for name in answers):
        raise Rejected(
            f"study {study}: answer {str(answer)[:80]!r}; expected a text or a list of texts"
        )
    text, kind = _set_answer(answers), item.get("semantic_type")
    candidates: tuple[str, ...] = ()
    if kind == "verify":
        candidates = YES_NO
        if text not in YES_NO:
            raise Rejected(
                f"study {study}: a verify question with the answer {text[:80]!r}; expected yes or "
                f"no"
            )
    elif kind == "choose":
        candidates = choices(item)
        candidates = candidates if text in candidates else ()
    elif kind != "query":
        raise Rejected(
            f"study {study}: semantic_type {str(kind)[:40]!r}; expected verify, choose or query"
        )
    return str(study), Question(
        question.strip(), text, str(item.get("content_type") or kind), candidates
    )


def _medical_diff_vqa(row: dict[str, str]) -> tuple[str, Question]:
    answer, question = row["answer"].strip(), row["question"].strip()
    if not (row["study_id"] and question and answer):
        raise Rejected(
            f"study {row['study_id']!r}: a blank study_id, question or answer; expected all three"
        )
    closed = answer.lower() in YES_NO
    return row["study_id"], Question(
        question,
        answer.lower() if closed else answer,
        row["question_type"],
        YES_NO if closed else (),
    )


_DIFF_COLUMNS = ("study_id", "question_type", "question", "answer")


def _items(path: Path, counts: Counter[str]) -> Iterator[tuple[Path, str, Any]]:
    """File, place and content of every question; the kinds that are left out whole go to `counts`."""
    pairs = (
        path
        if path.name.endswith((".csv", ".csv.gz"))
        else find_table(path, "mimic_pair_questions")
    )
    if pairs is not None:
        for number, row in enumerate(read_table(pairs, _DIFF_COLUMNS).to_dict("records"), 2):
            if row["question_type"] == "difference":
                counts["difference questions need the reference image too: left out"] += 1
            else:
                yield pairs, f"row {number}", row
        return
    folder = path / "dataset" if (path / "dataset").is_dir() else path
    files = (
        [path]
        if path.is_file()
        else [f for name in ("train", "valid", "test") if (f := folder / f"{name}.json").exists()]
    )
    if not files:
        raise UserError(
            f"{path}: no questions found; expected a .json file or the folder of MIMIC-CXR-VQA "
            f"(dataset/train.json, "
            "valid.json, test.json), or mimic_pair_questions.csv of Medical-Diff-VQA"
        )
    for file in files:
        items = read_json(file, list)
        if not items:
            raise UserError(f"{file} holds an empty list: download it again")
        for number, item in enumerate(items):
            yield file, f"item {number}", item


def read_questions(path: Path, reject: Reject) -> dict[str, tuple[Question, ...]]:
    """Questions by study id, from MIMIC-CXR-VQA (a JSON file, or the folder with train, valid and
    test) or Medical-Diff-VQA (mimic_pair_questions.csv, or its folder).

    The files' own splits are not used: a question is in the split of its study. Sets of answers are
    one text in alphabetical order, the empty set is "none". What is left out goes to `reject` with
    stage `question`: items that are not what they should be, questions asked a second time about a
    study, and, in one line with their number, difference questions. Raises `UserError` for a file
    that cannot be read or has nothing to read.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist; expected a file or folder of questions")
    found: dict[str, dict[str, Question]] = {}
    counts: Counter[str] = Counter()
    for file, place, item in _items(path, counts):
        try:
            study, question = (
                _medical_diff_vqa(item) if place.startswith("row") else _mimic_cxr_vqa(item)
            )
            first = found.setdefault(study, {}).setdefault(question.question, question)
            if first is not question:
                with_ = "with the same answer" if first == question else "with another answer"
                raise Rejected(
                    f"study {study}: {question.question[:120]!r} is asked twice, {with_}; the "
                    f"first is kept"
                )
        except Rejected as reason:
            reject(
                str(item.get("study_id", "")) if isinstance(item, dict) else "",
                str(file),
                "question",
                f"{place}: {reason}",
            )
    for reason_, number in counts.items():
        reject("", str(path), "question", f"{number:,} {reason_}")
    return {study: tuple(asked.values()) for study, asked in found.items() if asked}


def with_questions(
    studies: Iterable[Study],
    questions: Mapping[str, tuple[Question, ...]],
    reject: Reject | None = None,
) -> Iterator[Study]:
    """The studies, each with the questions about it added to its own. After the last study,
    `reject` is told how many questions are about none of them.
    """
    unasked = set(questions)
    for study in studies:
        unasked.discard(study.study)
        yield replace(study, questions=(*study.questions, *questions.get(study.study, ())))
    if unasked and reject:
        number = sum(len(questions[study]) for study in unasked)
        reject(
            "",
            "",
            "question",
            f"{number:,} questions about {len(unasked):,} studies that are not in the dataset",
        )
