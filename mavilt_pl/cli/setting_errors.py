"""What a wrong setting of `mavilt fit` is called: one line out of what libraries raise."""

from __future__ import annotations

import re

from mavilt_pl.errors import UserError

# What torch and others raise when a class is built with settings that do not fit together.
BUILDING_ERRORS = (
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)
# What jsonargparse says of a value of another type.
_WRONG_TYPE = re.compile(r'Parser key "([^"]+)": Expected an? (.+?)\. Got value: (.*)')


def first_reason(message: str) -> str:
    """One line of a message of jsonargparse.

    A setting of a module is refused by each type that `--model` may have. The reasons are nested by
    indentation; the first is the module's, the others only say that it is not None.
    """
    # Everything before it is the whole configuration, several screens long.
    _, _, reasons = message.partition("Problem with given class_path ")
    prefix = ""
    if reasons:
        module, _, reason = reasons.partition(":")
        message = f"model {module}: {reason.split(chr(10) + '    - ')[0]}"
        prefix = "model.init_args."
    message = " ".join(message.split())
    found = _WRONG_TYPE.search(message)
    if not found:
        return message
    # In the words of this package's own messages.
    key, expected, value = found.groups()
    choices = re.fullmatch(r"typing\.Literal\[(.*)\]", expected)
    if choices:
        expected = "one of " + choices[1].replace("'", "")
    else:
        expected = "a value of type " + re.sub(r"<class '([\w.]+)'>", r"\1", expected)
    return f"{prefix}{key}: found {value}; expected {expected}"


def deepest_cause(error: BaseException) -> BaseException:
    """The reason at the bottom.

    jsonargparse wraps what a module's constructor raises in the whole configuration. Below one of
    our own errors lies only what it has put into words.
    """
    while error.__cause__ is not None and not isinstance(error, UserError):
        error = error.__cause__
    return error
