"""The files of answers that readers send, checked against the key of their study."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mavilt_pl.errors import UserError
from mavilt_pl.reader_study.cases import ERRORS

MARK = "answers to a reader study of mavilt"
SIDES = ("first", "second")
COUNTED = (*ERRORS, "significant")
MOST = 99  # errors of one kind in a report; the form allows no more
CHOICES = {
    "report": {"better": (*SIDES, "equal")},
    "drawing": {"real": SIDES, "fits": (*SIDES, "equal")},
}


@dataclass(frozen=True)
class Reader:
    """One reader and what he or she answered.

    Args:
        name: or code.
        profession, years: as the reader gave them.
        answers: of the complete cases, by case.
        missing: number of cases without a complete answer.
    """

    name: str
    profession: str
    years: str
    answers: Mapping[str, Mapping[str, Any]]
    missing: int


def read_answers(files: Sequence[Path], key: Mapping[str, Any]) -> list[Reader]:
    """The readers of a study.

    Args:
        files: one a reader.
        key: of the study.

    Raises:
        UserError: a file is of another study, damaged, or of a reader who is there already.
    """
    # By file, so that a message can name it.
    readers: list[Reader] = []
    for path in files:
        reader = _read(path, key)
        if any(other.name == reader.name for other in readers):
            raise UserError(
                f"{path}: answers of {reader.name} are there already; name each reader's last file "
                "once"
            )
        readers.append(reader)
    return readers


def _read(path: Path, key: Mapping[str, Any]) -> Reader:
    # Sent by others and possibly edited: any part may be missing or of another type.
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        known = content["about"] == MARK
        who, answers = content["reader"], content["answers"]
        name = str(who["name"]).strip()
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        known = False
    if not known or not isinstance(answers, dict) or not name:
        raise UserError(f"{path} is no file of answers; expected what the form's Save wrote")
    # Cases of two studies have the same names.
    if content.get("study") != key["study"]:
        raise UserError(
            f"{path} answers study {content.get('study')}, and the key is of {key['study']}: name "
            "the files of this study"
        )
    kinds = {case["id"]: case["kind"] for case in key["cases"]}
    # An unfinished case is left out as a whole: half of a comparison is none.
    complete: dict[str, Mapping[str, Any]] = {}
    for case, answer in answers.items():
        if case not in kinds:
            raise UserError(f"{path}: {case} is no case of the study")
        if _check(answer, kinds[case], f"{path}, case {case}"):
            complete[case] = answer
    about = (name, str(who.get("profession", "")), str(who.get("years", "")))
    return Reader(*about, complete, len(kinds) - len(complete))


def _check(answer: Any, kind: str, where: str) -> bool:
    """Whether an answer is complete.

    Raises:
        UserError: a value is impossible.
    """
    # Files come back by mail, and some were opened in an editor.
    if not isinstance(answer, dict):
        raise UserError(f"{where}: found {str(answer)[:60]!r}; expected an object")
    complete = True
    # Impossible values are refused, missing ones only noted.
    for name, options in CHOICES[kind].items():
        if name in answer and answer[name] not in options:
            raise UserError(
                f"{where}: {name} is {answer[name]!r}; expected one of {', '.join(options)}"
            )
        complete &= name in answer
    # Errors are counted in each of the two reports; drawings have none to count.
    if kind == "report":
        for side in SIDES:
            counts = answer.get(side, {})
            complete &= isinstance(counts, dict) and set(COUNTED) <= set(counts)
            for error, count in dict(counts).items():
                # True and False are numbers for Python.
                whole = isinstance(count, int) and not isinstance(count, bool)
                if error not in COUNTED or not whole or not 0 <= count <= MOST:
                    raise UserError(
                        f"{where}: {side}.{error} is {count!r}; expected a whole number from 0 to "
                        f"{MOST} of {', '.join(COUNTED)}"
                    )
    return complete
