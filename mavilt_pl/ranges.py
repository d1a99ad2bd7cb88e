"""Ranges of settings, written as types in a signature and checked before anything is built.

    def __init__(self, learning_rate: PositiveFloat = 1e-4)

Type checkers see a plain number. jsonargparse checks the type of a setting, and drops its range
(annotations are strings here, which it reads without their extras); `check_arguments` checks that.
NaN and infinity are in no range.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from typing import Annotated, Any, get_type_hints

from annotated_types import Ge, Gt, Le, Lt, MinLen

from mavilt_pl.errors import UserError

# Far above any size that fits into memory.
MOST = 2**20

PositiveInt = Annotated[int, Ge(1)]
NonNegativeInt = Annotated[int, Ge(0)]
Size = Annotated[int, Ge(1), Le(MOST)]
Sizes = Annotated[Sequence[Size], MinLen(1)]
Workers = Annotated[int, Ge(0), Le(1024)]
Seed = Annotated[int, Ge(0), Lt(2**32)]
PositiveFloat = Annotated[float, Gt(0), Lt(math.inf)]
NonNegativeFloat = Annotated[float, Ge(0), Lt(math.inf)]
FiniteFloat = Annotated[float, Gt(-math.inf), Lt(math.inf)]
Probability = Annotated[float, Ge(0), Le(1)]
PositiveProbability = Annotated[float, Gt(0), Le(1)]
# Of a moving average: at 1 it would never move.
Decay = Annotated[float, Ge(0), Lt(1)]


@dataclass(frozen=True)
class ArgumentsOf:
    """Marks a mapping of arguments of another class, of any types.

    Args:
        owner: the class.
        without: arguments that the code fills in itself.
    """

    owner: type
    without: tuple[str, ...] = ()


def check_arguments(owner: type, given: Mapping[str, Any], name: str) -> None:
    """Check arguments of a constructor, and those of its parts, against the ranges in signatures.

    Args:
        owner: a class; a dataclass too.
        given: arguments by name; those that are missing have their defaults.
        name: the settings' key in a config, for the message.

    Raises:
        UserError: names the key, what was found and what is expected.
    """
    for key, hint in _type_hints(owner).items():
        if key not in given:
            continue
        value, where = given[key], f"{name}.{key}"
        part = _marked_part(hint)
        if part is not None:
            if value is not None:
                _check_part(part, value, where)
        elif is_dataclass(hint):
            check_arguments(hint, _as_mapping(value), where)  # type: ignore[arg-type]
        else:
            # All of them: jsonargparse takes null for a setting that cannot be null.
            check_value(hint, value, where)


def _check_part(part: ArgumentsOf, value: Any, where: str) -> None:
    """Check a mapping that jsonargparse takes as it is: names and types too."""
    given = _as_mapping(value)
    hints = _type_hints(part.owner)
    known = [key for key in hints if key not in part.without]
    for key, setting in given.items():
        if key not in known:
            raise UserError(f"{where}: unknown key {key}; the keys are {', '.join(known)}")
        check_value(hints[key], setting, f"{where}.{key}")


def check_value(hint: Any, value: Any, where: str) -> None:
    """Check one value against a type with a range.

    Raises:
        UserError: names the key, what was found and what is expected.
    """
    # It takes a tenth of a second to import, and only trainings check settings.
    from pydantic import TypeAdapter, ValidationError

    try:
        TypeAdapter(hint).validate_python(value, strict=True)
    except ValidationError as error:
        # A union reports each of its types; that the value is not None says nothing.
        found = [one for one in error.errors() if one["type"] != "none_required"] or error.errors()
        expected = found[0]["msg"].removeprefix("Input should be ")
        if not expected.startswith(("a ", "an ")):
            expected = f"a value {expected}"
        # The place within a list or a mapping.
        for part in found[0]["loc"]:
            where += f"[{part}]" if isinstance(part, int) else f".{part}"
        raise UserError(f"{where}: found {found[0]['input']!r}; expected {expected}") from None


def _type_hints(owner: type) -> dict[str, Any]:
    """The types of a constructor's parameters, with their ranges."""
    source = owner if is_dataclass(owner) else owner.__init__  # type: ignore[misc]
    hints = get_type_hints(source, include_extras=True)
    return {key: hints[key] for key in inspect.signature(owner).parameters if key in hints}


def _marked_part(hint: Any) -> ArgumentsOf | None:
    for mark in getattr(hint, "__metadata__", ()):
        if isinstance(mark, ArgumentsOf):
            return mark
    return None


def _as_mapping(value: Any) -> Mapping[str, Any]:
    """A dataclass, a jsonargparse Namespace or a mapping as a mapping."""
    return value if isinstance(value, Mapping) else vars(value)
