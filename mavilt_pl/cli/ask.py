"""`mavilt ask IMAGE QUESTION…`: what a trained model answers."""

from __future__ import annotations

import argparse
import json

from mavilt_pl.cli.model_arguments import add_images, add_model, loaded, named, studies_of
from mavilt_pl.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("image", metavar="IMAGE", help="DICOM, PNG or JPEG")
    parser.add_argument("questions", nargs="+", metavar="QUESTION")
    parser.add_argument(
        "--answers", help="such as yes,no: how likely each of them is, instead of free text"
    )
    parser.add_argument(
        "--lateral", metavar="IMAGE", help="the study's lateral image, for a model of several views"
    )
    add_model(parser)
    add_images(parser)


def run(args: argparse.Namespace) -> int:
    answers = [word.strip() for word in args.answers.split(",")] if args.answers else []
    if args.answers and (len({*answers}) < max(2, len(answers)) or not all(answers)):
        raise UserError(
            f"--answers: found {args.answers!r}; expected two or more, each once, separated by "
            f"commas, such as yes,no"
        )
    (study,) = studies_of([args.image], [args.lateral] if args.lateral else [])
    for question, said in zip(
        args.questions, loaded(args).ask(study, args.questions, answers, args.seed)
    ):
        if args.json:
            print(
                json.dumps(
                    {**named(args.image, args.lateral), "question": question, "answer": said}
                )
            )
        else:
            print(
                question,
                said
                if isinstance(said, str)
                else ", ".join(f"{a} {share:.3f}" for a, share in said.items()),
            )
    return 0
