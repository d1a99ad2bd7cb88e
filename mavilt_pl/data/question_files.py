"""Read questions about studies from the files of MIMIC-CXR-VQA and Medical-Diff-VQA."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mavilt_pl.data.questions import YES_NO
from mavilt_pl.data.records import Question, Study
from mavilt_pl.data.sources import Reject
from mavilt_pl.data.sources.tables import find_table, read_json, read_table
from mavilt_pl.errors import Rejected, UserError

NONE = "none"  # the answer if the file's list of answers is empty
# "Which is it, A or B?": "which" and one comma, so that a list of three is not read as two.
# Questions of the benchmark are generated from templates, so a few words are enough.
_CHOICE = re.compile(
    r"(?:which|what|where)\b[^,:]*[,:]\s*([^,:]+) or ([^,:]+?)\s*\?", re.IGNORECASE
)
_ARTICLE = re.compile(r"^(?:either|an?|the)\s+", re.IGNORECASE)
_MIMIC_FILES = ("train.json", "valid.json", "test.json")
_DIFF_TABLE = "mimic_pair_questions"
_DIFF_COLUMNS = ("study_id", "question_type", "question", "answer")


@dataclass(frozen=True)
class _Item:
    """One question of a file, as it stands there."""

    file: Path
    position: str  # such as "row 3", for messages
    content: Any
    of_pairs: bool  # of Medical-Diff-VQA

    def parse(self) -> tuple[str, Question]:
        """Study id and question; raises `Rejected` for an item that lacks what is needed."""
        if self.of_pairs:
            return _parse_medical_diff_vqa(self.content)
        return _parse_mimic_cxr_vqa(self.content)

    @property
    def study(self) -> str:
        """The study id, as far as there is one."""
        return str(self.content.get("study_id", "")) if isinstance(self.content, dict) else ""


def _join_answers(names: Iterable[str]) -> str:
    """A set of answers as one text, in alphabetical order, so that equal sets are equal texts.

    >>> _join_answers(["Mass", "edema "]), _join_answers([])
    ('edema, mass', 'none')
    """
    return ", ".join(sorted({name.strip().lower() for name in names} - {""})) or NONE


def _alternatives(item: Mapping[str, Any]) -> list[str]:
    """The two alternatives of a `choose` question; empty if they cannot be read.

    They stand in the template's arguments or else at the end of the question.
    """
    arguments = item.get("template_arguments")
    if isinstance(arguments, dict):
        for argument in arguments.values():
            if isinstance(argument, dict) and len(argument) == 2:
                return [str(name) for name in argument.values()]
    match = _CHOICE.fullmatch(str(item.get("question", "")).strip())
    if match is None:
        return []
    return [_ARTICLE.sub("", name.strip()) for name in match.groups()]


def choices(item: Mapping[str, Any]) -> tuple[str, ...]:
    """Possible answers of a MIMIC-CXR-VQA `choose` question: either alternative, both, none.

    Empty if the alternatives cannot be read.

    >>> choices({"question": "Which is it, an edema or a mass?"})
    ('edema', 'mass', 'edema, mass', 'none')
    """
    pair = _alternatives(item)
    # Twice the same alternative: the question was misread.
    if len({name.lower() for name in pair}) != 2:
        return ()
    first, second = pair
    return _join_answers([first]), _join_answers([second]), _join_answers(pair), NONE


def _parse_mimic_cxr_vqa(item: Any) -> tuple[str, Question]:
    """Study id and question of an item of MIMIC-CXR-VQA."""
    if not isinstance(item, dict):
        raise Rejected(
            f"a {type(item).__name__}; expected an object with study_id, question and answer"
        )
    study, question = item.get("study_id"), item.get("question")
    has_study = isinstance(study, str | int) and study != ""
    has_question = isinstance(question, str) and bool(question.strip())
    if not has_study or not has_question:
        raise Rejected(
            f"study_id {str(study)[:40]!r}, question {str(question)[:80]!r}; expected both"
        )
    answer = _parse_answer(item)
    # verify: yes or no; choose: one of two; query: a set of names (MIMIC-CXR-VQA's own terms).
    kind = item.get("semantic_type")
    candidates: tuple[str, ...] = ()
    if kind == "verify":
        candidates = YES_NO
        if answer not in YES_NO:
            raise Rejected(
                f"study {study}: a verify question with the answer {answer[:80]!r}; expected yes "
                "or no"
            )
    elif kind == "choose":
        candidates = choices(item)
        # The alternatives were misread, so the question counts as open.
        if answer not in candidates:
            candidates = ()
    elif kind != "query":
        raise Rejected(
            f"study {study}: semantic_type {str(kind)[:40]!r}; expected verify, choose or query"
        )
    topic = str(item.get("content_type") or kind)
    return str(study), Question(question.strip(), answer, topic, candidates)


def _parse_answer(item: Mapping[str, Any]) -> str:
    answer = item.get("answer")
    # MIMIC-CXR-VQA has lists of answers; a single one is taken as a list of one.
    answers = [answer] if isinstance(answer, str | int | float) else answer
    if not isinstance(answers, list) or not all(isinstance(a, str | int | float) for a in answers):
        raise Rejected(
            f"study {item['study_id']}: answer {str(answer)[:80]!r}; expected a text or a list of "
            "texts"
        )
    return _join_answers(map(str, answers))


def _parse_medical_diff_vqa(row: Mapping[str, str]) -> tuple[str, Question]:
    """Study id and question of a row of Medical-Diff-VQA."""
    answer, question = row["answer"].strip(), row["question"].strip()
    if not (row["study_id"] and question and answer):
        raise Rejected(
            f"study {row['study_id']!r}: a blank study_id, question or answer; expected all three"
        )
    topic = row["question_type"]
    # The file does not say which questions are closed; the answer does.
    if answer.lower() in YES_NO:
        return row["study_id"], Question(question, answer.lower(), topic, YES_NO)
    return row["study_id"], Question(question, answer, topic)


def _read_items(path: Path, skipped: Counter[str]) -> Iterator[_Item]:
    """Every question of a file or folder; kinds that are not read at all are counted.

    Args:
        path: as `read_questions` takes it.
        skipped: incremented for each question of such a kind, by reason.
    """
    is_table = path.name.endswith((".csv", ".csv.gz"))
    table = path if is_table else find_table(path, _DIFF_TABLE)
    if table is not None:
        # Row 1 of the file is the header, so that a user finds the row in an editor.
        for number, row in enumerate(read_table(table, _DIFF_COLUMNS).to_dict("records"), 2):
            if row["question_type"] == "difference":
                skipped["difference questions are not read: they need a second image"] += 1
            else:
                yield _Item(table, f"row {number}", row, of_pairs=True)
        return
    # The three files are read as one: a question is in the split of its study.
    for file in _question_files(path):
        items = read_json(file, list)
        if not items:
            raise UserError(f"{file} holds an empty list: download it again")
        for number, item in enumerate(items):
            yield _Item(file, f"item {number}", item, of_pairs=False)


def _question_files(path: Path) -> list[Path]:
    """The JSON files of MIMIC-CXR-VQA."""
    if path.is_file():
        return [path]
    # The official folder has the files in `dataset/`; that folder may be named itself.
    folder = path / "dataset" if (path / "dataset").is_dir() else path
    files = [folder / name for name in _MIMIC_FILES if (folder / name).exists()]
    if not files:
        raise UserError(
            f"{path}: no questions found; expected a .json file or the folder of MIMIC-CXR-VQA "
            f"(dataset/train.json, valid.json, test.json), or {_DIFF_TABLE}.csv of Medical-Diff-VQA"
        )
    return files


def read_questions(path: Path, reject: Reject) -> dict[str, tuple[Question, ...]]:
    """Questions by study id.

    The files' own splits are not used: a question is in the split of its study. A set of answers is
    one text in alphabetical order, the empty set is "none".

    Args:
        path: MIMIC-CXR-VQA (a JSON file, or the folder with train, valid and test) or
            Medical-Diff-VQA (mimic_pair_questions.csv, or its folder).
        reject: called with stage `question` for each item that cannot be used, each question that
            is asked a second time about a study, and once for all difference questions.

    Raises:
        UserError: a file cannot be read or is empty.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist; expected a file or folder of questions")
    by_study: dict[str, dict[str, Question]] = {}
    skipped: Counter[str] = Counter()
    for item in _read_items(path, skipped):
        try:
            study, question = item.parse()
            _add_question(by_study, study, question)
        except Rejected as reason:
            reject(item.study, str(item.file), "question", f"{item.position}: {reason}")
    for reason_, count in skipped.items():
        reject("", str(path), "question", f"{count:,} {reason_}")
    return {study: tuple(asked.values()) for study, asked in by_study.items() if asked}


def _add_question(by_study: dict[str, dict[str, Question]], study: str, question: Question) -> None:
    # Asked twice with two answers, either answer would be wrong once.
    first = by_study.setdefault(study, {}).setdefault(question.question, question)
    if first is question:
        return
    answer = "the same answer" if first == question else "another answer"
    raise Rejected(
        f"study {study}: {question.question[:120]!r} is asked twice, with {answer}; the first is "
        "kept"
    )


def with_questions(
    studies: Iterable[Study],
    questions: Mapping[str, tuple[Question, ...]],
    reject: Reject | None = None,
) -> Iterator[Study]:
    """Yield the studies, each with the questions about it added to its own.

    Args:
        studies: of a dataset.
        questions: by study id.
        reject: called after the last study with the number of questions about none of them.
    """
    unused = set(questions)
    for study in studies:
        # With `--limit`, or without a part of the dataset, many questions find no study.
        unused.discard(study.study)
        yield replace(study, questions=(*study.questions, *questions.get(study.study, ())))
    if unused and reject:
        count = sum(len(questions[study]) for study in unused)
        reason = f"{count:,} questions about {len(unused):,} studies that are not in the dataset"
        reject("", "", "question", reason)
