"""`mavilt ask IMAGE… QUESTION…`: ask questions about radiographs."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from mavilt_pl.cli.model_arguments import (
    add_images,
    add_model,
    add_output,
    load_model,
    pair_views,
)
from mavilt_pl.cli.result_records import ResultRecords, check_output, error_record, shown_name
from mavilt_pl.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `mavilt ask`."""
    parser.add_argument(
        "words",
        nargs="+",
        metavar="IMAGE… QUESTION…",
        help="images, folders or quoted patterns, then the questions about each of them",
    )
    parser.add_argument(
        "--answers", help="such as left,right: print the probability of each instead of free text"
    )
    parser.add_argument(
        "--free-text",
        action="store_true",
        help="answer yes-or-no questions in free text too, not with probabilities",
    )
    parser.add_argument(
        "--lateral",
        nargs="+",
        default=[],
        metavar="IMAGE",
        help="the lateral image of each study, for a model of several views",
    )
    add_model(parser)
    add_images(parser)
    add_output(parser)


def run(args: argparse.Namespace) -> int:
    """Print an answer for each image and question; status 1 if an image could not be read."""
    from mavilt_pl.inference.outputs import to_record
    from mavilt_pl.inference.studies import as_list

    # All that may be refused is refused before the model is read.
    check_output(args.out)
    answers = [] if args.free_text else _split_answers(args.answers)
    images, questions = _split_words(args.words)
    listed = as_list(images)[0]
    studies = pair_views(listed, args.lateral)
    model, records = load_model(args), ResultRecords(args)
    failures = 0
    # One study at a time: its questions share the image, and its answers appear at once.
    for study in studies:
        try:
            replies = model.ask(study, questions, answers, args.seed)
        except UserError as error:
            if len(studies) == 1:
                raise
            failures += 1
            records.add(error_record(study, error), "")
            continue
        for reply in replies:
            # Of expected answers all shares, since a likeliest answer may be no likely one.
            text = str(reply)
            if reply.probabilities is not None:
                shares = [f"{answer} {share:.3f}" for answer, share in reply.probabilities.items()]
                text = ", ".join(shares)
            # With one image its name would say nothing.
            name = f"{shown_name(reply.image)}: " if len(studies) > 1 else ""
            records.add(to_record(reply), f"{name}{reply.question} {text}")
    records.write()
    if failures:
        print(f"mavilt: {failures} of {len(studies)} without answers", file=sys.stderr)
    return int(failures > 0)


def _split_words(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The images, and the questions behind them.

    Raises:
        UserError: there is no question, no image, or an image stands behind a question.
    """
    images: list[str] = []
    questions: list[str] = []
    for word in words:
        if not _names_image(word):
            questions.append(word)
        elif questions:
            # It would be read as a question and answered with nonsense.
            raise UserError(
                f"{word}: found an image behind the question {questions[-1]!r}; expected all "
                "images first, then the questions"
            )
        else:
            images.append(word)
    if not images or not questions:
        missing = "QUESTION" if images else "IMAGE"
        raise UserError(
            f"found no {missing} among {', '.join(map(repr, words))}; expected one or more images, "
            "then one or more questions"
        )
    return images, questions


def _names_image(word: str) -> bool:
    """Whether a word is a file, a folder or a pattern, rather than a question."""
    from mavilt_pl.inference.studies import IMAGE_SUFFIXES

    if os.path.exists(word) or Path(word).suffix.lower() in IMAGE_SUFFIXES:
        return True
    # A path that does not exist is a mistake, and no question either: questions have spaces.
    return " " not in word and (os.sep in word or "*" in word)


def _split_answers(text: str | None) -> list[str] | None:
    if not text:
        return None
    answers = [answer.strip() for answer in text.split(",")]
    # One answer alone would have probability 1 whatever the image shows.
    if len({*answers}) < max(2, len(answers)) or not all(answers):
        raise UserError(
            f"--answers: found {text!r}; expected two or more, each once, separated by commas, "
            "such as yes,no"
        )
    return answers
