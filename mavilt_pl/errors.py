"""Errors that a user can cause and correct, and the warnings of this package."""

from __future__ import annotations


def escape(text: str) -> str:
    r"""A text in one line that a terminal or a script shows and does not obey.

    Control characters, among them line breaks and the escape sequences of terminals, become
    backslash sequences; letters of all scripts stay.

    >>> escape("a\x1b[31mb\nc é")
    'a\\x1b[31mb\\nc é'
    """
    shown = []
    for letter in text:
        shown.append(letter if letter.isprintable() else repr(letter)[1:-1])
    return "".join(shown)


class UserError(Exception):
    """A mistake in a file, an option or a setting.

    Its text names the file, row or key, what was found, what was expected, and what to do. The
    command line prints the text without a traceback and exits with status 1.

    >>> str(UserError("corpora/mimic: no such folder; run `mavilt prepare` first"))
    'corpora/mimic: no such folder; run `mavilt prepare` first'
    """

    def __init__(self, text: str):
        # A DataLoader worker sends an error as the text of its traceback; keep the message alone.
        marker = f"{type(self).__module__}.{type(self).__qualname__}: "
        if text.startswith("Caught ") and marker in text:
            text = text.rpartition(marker)[2].strip()
        super().__init__(text)


class Rejected(UserError):
    """One image or study that cannot be used.

    `mavilt prepare` writes the reason to `rejects.csv` and continues with the next study.
    """


class MaviltWarning(UserWarning):
    """A warning of this package.

    To silence all of them: `warnings.simplefilter("ignore", MaviltWarning)`, or
    `PYTHONWARNINGS=ignore::UserWarning` for a command.
    """
