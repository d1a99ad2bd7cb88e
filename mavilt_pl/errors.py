"""Errors that a user can cause and correct."""

from __future__ import annotations


class UserError(Exception):
    """A mistake in a file, an option or a setting.

    Its text names the file, row or key, what was found, what was expected, and what to do. The
    command line prints the text without a traceback and exits with status 1.
    """


class Rejected(UserError):
    """One image or study that cannot be used.

    `mavilt prepare` writes the reason to `rejects.csv` and continues with the next study.
    """
