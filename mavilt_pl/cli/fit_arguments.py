"""The words of `mavilt fit`, `validate` and `test`, before Lightning's parser reads them.

The parser takes later words over earlier ones, wants `--config` before every config file and
brackets around every list. Here the command line takes precedence over every config, a config needs
no `--config`, and one path is a list of one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mavilt_pl.config_files import config_text, find_config
from mavilt_pl.errors import UserError

CONFIG_OPTIONS = ("--config", "-c")
# Options that take a list; a single value is one of one item.
LIST_OPTIONS = ("--data.corpora", "--data.tokens", "--data.findings", "--data.views")


def complete_arguments(argv: Sequence[str]) -> list[str]:
    """Resolve and sort the words, and add the options that mavilt always sets.

    Args:
        argv: the command's words, beginning with `fit`, `validate` or `test`.

    Raises:
        UserError: a config is not found, or a word belongs to no option.
    """
    configs, words = _split_configs(argv[1:])
    words = _bracket_lists(words)

    def given(option: str) -> bool:
        return any(word.startswith(option) for word in words)

    asks_for_help = "-h" in words or "--help" in words
    # A checkpoint is read as tensors, so that loading one runs no code from it.
    if not given("--weights_only") and not asks_for_help:
        words.append("--weights_only=true")
    # A test has its own table of the metrics, with their whole names.
    if argv[0] == "test" and not given("--verbose") and not asks_for_help:
        words.append("--verbose=false")
    # Configs first, in their order: an option may stand anywhere and still counts.
    return [argv[0], *configs, *words]


def _split_configs(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The configs as `--config=PATH`, and the other words; both in their order."""
    configs: list[str] = []
    words: list[str] = []
    option = ""  # that the next word is the value of
    for word in argv:
        name, equals, value = word.partition("=")
        if option in CONFIG_OPTIONS:
            configs.append(_config_option(word))
            option = ""
        elif name in CONFIG_OPTIONS:
            if equals:
                configs.append(_config_option(value))
            option = "" if equals else name
        elif option or word.startswith("-"):
            words.append(word)
            option = word if word.startswith("--") and not equals else ""
        elif Path(word).suffix in (".yaml", ".yml"):
            configs.append(_config_option(word))
        else:
            raise UserError(
                f"{word}: this word belongs to no option; expected --KEY VALUE, with a list in "
                "brackets, such as --data.corpora [corpora/mimic,corpora/nih]"
            )
    return configs, words


def _config_option(name: str) -> str:
    """The option for a config: its path, or the text of one that extends another."""
    path = find_config(name)
    return f"--config={config_text(path) or path}"


def _bracket_lists(words: Sequence[str]) -> list[str]:
    """Put brackets around values of `LIST_OPTIONS` that have none."""
    bracketed: list[str] = []
    for word in words:
        name, equals, value = word.partition("=")
        if name in LIST_OPTIONS and equals:
            word = f"{name}={_bracket(value)}"
        elif bracketed and bracketed[-1] in LIST_OPTIONS:
            word = _bracket(word)
        bracketed.append(word)
    return bracketed


def _bracket(value: str) -> str:
    """A list in YAML; null stays null.

    >>> _bracket("corpora/mimic"), _bracket("[a, b]"), _bracket("null")
    ('[corpora/mimic]', '[a, b]', 'null')
    """
    return value if value.startswith("[") or value == "null" else f"[{value}]"
