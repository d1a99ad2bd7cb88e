"""`mavilt ask IMAGE QUESTION…`: ask questions about a radiograph."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

from mavilt_pl.cli.model_arguments import (
    IMAGE_SUFFIXES,
    add_images,
    add_model,
    image_record,
    load_model,
    pair_views,
)
from mavilt_pl.cli.terminal import say
from mavilt_pl.data.questions import YES_NO, asks_yes_or_no
from mavilt_pl.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `mavilt ask`."""
    parser.add_argument("image", metavar="IMAGE", help="DICOM, PNG or JPEG")
    parser.add_argument("questions", nargs="+", metavar="QUESTION")
    parser.add_argument(
        "--answers", help="such as left,right: print the probability of each instead of free text"
    )
    parser.add_argument(
        "--free-text",
        action="store_true",
        help="answer yes-or-no questions in free text too, not with probabilities",
    )
    parser.add_argument(
        "--lateral", metavar="IMAGE", help="the lateral image, for a model of several views"
    )
    add_model(parser)
    add_images(parser)


def run(args: argparse.Namespace) -> int:
    """Print an answer for each question."""
    for question in args.questions:
        # A second image would be read as a question and answered with nonsense.
        if Path(question).suffix.lower() in IMAGE_SUFFIXES or os.path.isfile(question):
            raise UserError(
                f"{question}: found an image among the questions; expected one image and its "
                "questions: run the command once for each image"
            )
    answers = _split_answers(args.answers)
    (study,) = pair_views([args.image], [args.lateral] if args.lateral else [])
    by_answers: dict[tuple[str, ...], list[str]] = {}
    for question in args.questions:
        expected = tuple(answers)
        # A model that has learned closed questions only has no words of its own for them.
        if not answers and not args.free_text and asks_yes_or_no(question):
            expected = YES_NO
        by_answers.setdefault(expected, []).append(question)
    model = load_model(args)
    replies: dict[str, Any] = {}
    # One study a call: its questions share the image.
    for expected, questions in by_answers.items():
        replies |= zip(questions, model.ask(study, questions, expected, args.seed))
    for question in args.questions:
        reply = replies[question]
        if args.json:
            record = {**image_record(args.image, args.lateral), "question": question}
            print(json.dumps({**record, "answer": reply}))
        elif isinstance(reply, str):
            say(f"{question} {reply}")
        else:
            # With expected answers a reply is the probability of each.
            shares = [f"{answer} {probability:.3f}" for answer, probability in reply.items()]
            say(f"{question} {', '.join(shares)}")
    return 0


def _split_answers(text: str | None) -> list[str]:
    if not text:
        return []
    answers = [answer.strip() for answer in text.split(",")]
    # One answer alone would have probability 1 whatever the image shows.
    if len({*answers}) < max(2, len(answers)) or not all(answers):
        raise UserError(
            f"--answers: found {text!r}; expected two or more, each once, separated by commas, "
            "such as yes,no"
        )
    return answers
