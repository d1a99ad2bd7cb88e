"""The command line: one file a verb, imported only when that verb is used.

Importing torch, lightning and transformers takes seconds, so `mavilt --help` imports none of them.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import logging
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from typing import Any

# verb → one line of help; its file defines `add_arguments` and `run`.
VERBS = {
    "init": "make a project folder for your downloads, in which everything else runs",
    "configs": "list, print or copy the configs that come with the package",
    "phantom": "write a synthetic dataset in the layout of a real one",
    "prepare": "turn a raw dataset into a prepared corpus",
    "doctor": "check a dataset, a corpus, a token cache or a run before you train on it",
    "tokenize": "encode a corpus with a trained VQ-GAN into a token cache",
    "report": "write reports of radiographs with a trained model",
    "ask": "ask a trained model questions about a radiograph",
    "draw": "generate radiographs from texts with a trained model",
    "export": "write a trained model as a folder that Hugging Face transformers loads",
    "serve": "open a local web page that reads, asks and draws with a trained model",
    "run": "run all steps of a recipe, such as `demo`; resumes an interrupted run",
    "submit": "submit the steps of a recipe as SLURM jobs",
    "plan": "estimate the GPU memory of a training before you start it",
    "score": "compute the figures of generated reports and answers, of any program",
    "reader-study": "let people compare reports and drawings with the real ones, blinded",
    "results": "collect the metrics of a run into results.json and report.html",
}
# Verbs of Lightning's own command line, all in cli/training.py.
TRAINING_VERBS = {
    "fit": "train a module: mavilt fit --config stage1.yaml",
    "validate": "validate a module",
    "test": "test a module and write its results.json",
}


# What a user can do about errors of the file system.
REMEDIES = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space",
    errno.EFBIG: "free some space, or raise the limit of a file's size,",
    errno.EROFS: "name a place that can be written",
    errno.EACCES: "change its permissions or name another place",
    errno.EPERM: "change its permissions or name another place",
}


def build_parser() -> argparse.ArgumentParser:
    """The parser of `mavilt --help`; each verb parses its own arguments."""
    top = argparse.ArgumentParser(
        prog="mavilt",
        description="One language model that reads chest radiographs, draws them and answers "
        "questions about them.",
        epilog="`mavilt VERB --help` describes a verb. Research software, no medical device.",
    )
    top.add_argument("--version", action="store_true", help="print the version")
    verbs = top.add_subparsers(dest="verb", metavar="VERB")
    for verb, line in TRAINING_VERBS.items():
        verbs.add_parser(verb, help=line, add_help=False)
    for verb, line in VERBS.items():
        verbs.add_parser(verb, help=line)
    return top


def execute(argv: Sequence[str]) -> int:
    """Run the verb that `argv` begins with; its exit status. Errors propagate."""
    if argv and argv[0] in TRAINING_VERBS:
        from mavilt_pl.parallel.parent import end_with_parent

        # Before the imports, which take seconds.
        end_with_parent()
        from mavilt_pl.cli.training import run

        return run(list(argv))
    if argv and argv[0] in VERBS:
        # Only this verb's file is imported, and with it only what the verb needs.
        verb = importlib.import_module(f"mavilt_pl.cli.{argv[0].replace('-', '_')}")
        parser = argparse.ArgumentParser(prog=f"mavilt {argv[0]}", description=VERBS[argv[0]])
        verb.add_arguments(parser)
        # `plan` takes those of `fit`, which Lightning's parser checks.
        if getattr(verb, "TAKES_FIT_ARGUMENTS", False):
            args, fit_arguments = parser.parse_known_args(argv[1:])
            args.fit_arguments = fit_arguments
        elif getattr(verb, "MAY_STAND_ALONE", False):
            # argparse would take an option before it for the end of what may be left out.
            args = parser.parse_intermixed_args(argv[1:])
        else:
            args = parser.parse_args(argv[1:])
        return verb.run(args)
    args = build_parser().parse_args(argv)
    if args.version:
        from mavilt_pl import __version__

        print(__version__)
        return 0
    build_parser().print_help()
    return 2


class TerminalHandler(logging.Handler):
    """Prints the package's log records on standard error, as it is at that moment."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record; warnings say whom they are from."""
        prefix = "mavilt: " if record.levelno >= logging.WARNING else ""
        from mavilt_pl.cli.terminal import say

        say(f"{prefix}{record.getMessage()}", sys.stderr)


def one_line(message: object) -> str:
    """A message of ours in one line, which no name in it can break or colour."""
    from mavilt_pl.errors import escape

    return f"mavilt: {escape(' '.join(str(message).splitlines()))}"


_format_of_python = warnings.formatwarning


def _format_warning(message: Any, category: type[Warning], *place: Any, **line: Any) -> str:
    """Our own warnings as messages; those of libraries with the place that they come from."""
    if category.__name__ == "MaviltWarning":
        return one_line(message) + "\n"
    return _format_of_python(message, category, *place, **line)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return its exit status.

    An error that the user can correct is printed as one message without a traceback;
    MAVILT_DEBUG=1 shows the traceback.
    """
    from mavilt_pl.errors import UserError

    argv = list(sys.argv[1:] if argv is None else argv)
    logger = logging.getLogger("mavilt_pl")
    logger.setLevel(logging.INFO)
    if not any(isinstance(handler, TerminalHandler) for handler in logger.handlers):
        logger.addHandler(TerminalHandler())
    warnings.formatwarning = _format_warning
    # Errors keep their tracebacks then, for a bug report.
    if os.environ.get("MAVILT_DEBUG"):
        return execute(argv)
    try:
        return execute(argv)
    except UserError as error:
        print(one_line(error), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            "\nmavilt: interrupted. Finished work is kept; the same command continues from there.",
            file=sys.stderr,
        )
        return 130
    except BrokenPipeError:
        # `mavilt … | head`: whoever reads has what it wanted. Python would complain at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except OSError as error:
        # Any other OSError is a defect: it keeps its traceback.
        if error.errno not in REMEDIES:
            raise
        where = f": {error.filename}" if error.filename else ""
        print(
            one_line(
                f"{error.strerror}{where}. Nothing half-written counts as whole: "
                f"{REMEDIES[error.errno]} and run the same command again."
            ),
            file=sys.stderr,
        )
        return 1
