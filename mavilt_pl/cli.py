"""The command line. Nothing heavy is imported before a verb is known, so that `mavilt --help`
answers at once.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import os
import sys
from collections.abc import Sequence

# verb → (module with add_arguments and run, one line of help)
VERBS = {
    "phantom": (
        "mavilt_pl.phantom.verb",
        "write a synthetic corpus in a real dataset's own layout",
    ),
    "prepare": ("mavilt_pl.data.verb", "a raw dataset → a prepared corpus"),
    "doctor": (
        "mavilt_pl.data.doctor",
        "check a dataset, a corpus, a token cache or a run before you train on it",
    ),
    "tokenize": ("mavilt_pl.vqgan.verb", "a corpus and a trained VQ-GAN → a token cache"),
    "report": ("mavilt_pl.inference.report", "write reports of images with a trained model"),
    "ask": ("mavilt_pl.inference.ask", "ask a trained model about an image"),
    "draw": ("mavilt_pl.inference.draw", "draw images from texts with a trained model"),
    "export": (
        "mavilt_pl.inference.export",
        "a trained model → a folder that plain Hugging Face loads",
    ),
    "run": ("mavilt_pl.recipes", "walk a whole recipe, such as `demo`; resumes where it stopped"),
    "submit": (
        "mavilt_pl.running.submit",
        "the steps of a recipe as SLURM jobs, each after those it reads",
    ),
    "plan": ("mavilt_pl.planning.verb", "the memory that a training will need, before it is begun"),
    "results": (
        "mavilt_pl.evaluation.verb",
        "gather a run's figures into results.json and report.html",
    ),
}
TRAINING = {
    "fit": "train a module: mavilt fit --config stage1.yaml",
    "validate": "validate a module",
    "test": "test a module and write its results.json",
}


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="mavilt",
        description="One language model that reads chest radiographs, draws them and answers "
        "questions about them.",
        epilog="`mavilt VERB --help` tells more. Research software, no medical device.",
    )
    top.add_argument("--version", action="store_true", help="print the version")
    verbs = top.add_subparsers(dest="verb", metavar="VERB")
    for verb, line in TRAINING.items():
        verbs.add_parser(verb, help=line, add_help=False)
    for verb, (_, line) in VERBS.items():
        verbs.add_parser(verb, help=line)
    return top


def _dispatch(argv: Sequence[str]) -> int:
    if argv and argv[0] in TRAINING:
        from mavilt_pl.training import run

        return run(list(argv))
    if argv and argv[0] in VERBS:
        module, line = VERBS[argv[0]]
        verb = importlib.import_module(module)
        sub = argparse.ArgumentParser(prog=f"mavilt {argv[0]}", description=line)
        verb.add_arguments(sub)
        if getattr(verb, "TAKES_WORDS_OF_FIT", False):
            known, words = sub.parse_known_args(argv[1:])
            known.words_of_fit = words
            return verb.run(known)
        return verb.run(sub.parse_args(argv[1:]))
    args = parser().parse_args(argv)
    if args.version:
        from mavilt_pl import __version__

        print(__version__)
        return 0
    parser().print_help()
    return 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb. What the user can mend is told in one message without a traceback;
    MAVILT_DEBUG=1 shows it all.
    """
    from mavilt_pl.data.study import DataError

    argv = list(sys.argv[1:] if argv is None else argv)
    if os.environ.get("MAVILT_DEBUG"):
        return _dispatch(argv)
    try:
        return _dispatch(argv)
    except DataError as error:
        print(f"mavilt: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            "\nmavilt: interrupted. What was finished is kept; the same command goes on from "
            "there.",
            file=sys.stderr,
        )
        return 130
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        print(
            f"mavilt: {error.strerror}{f': {error.filename}' if error.filename else ''}. Nothing "
            f"half-written counts as "
            "whole: free some space and run the same command again.",
            file=sys.stderr,
        )
        return 1


if __name__ == "__main__":
    sys.exit(main())
