"""Write docs/config-keys.md, the table of all config keys, from the constructors' signatures.

    python docs/config_keys.py           # write the table
    python docs/config_keys.py --check   # fail if the table is out of date (`make lint`)

Keys, types and defaults are read by jsonargparse, as `mavilt fit` reads them; descriptions are
those of the docstrings.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from jsonargparse import ArgumentParser

from mavilt_pl import VQGAN, CXRDataModule, Stage1, Stage2, callbacks
from mavilt_pl.cli.training import MaviltCLI
from mavilt_pl.encoders.module import CXRClassifier
from mavilt_pl.evaluation.results_writer import ResultsWriter
from mavilt_pl.language.text_pretraining import Backbone
from mavilt_pl.vqgan.autoencoder import Autoencoder
from mavilt_pl.vqgan.discriminator import Discriminator
from mavilt_pl.vqgan.quantizer import Quantizer

TABLE = Path(__file__).with_name("config-keys.md")
COMMAND = "python docs/config_keys.py"
MODEL, DATA = "model.init_args", "data"


class Key(NamedTuple):
    """One key of a config."""

    name: str
    type: str
    default: str
    meaning: str


def describe_type(annotation: Any) -> str:
    """A type as a reader of the table wants it.

    >>> from typing import Literal
    >>> describe_type(Literal["adamw", "muon"]), describe_type(float), describe_type(str | None)
    ('adamw | muon', 'float', 'str | None')
    """
    if isinstance(annotation, type):
        return annotation.__name__
    text = str(annotation).replace("typing.", "").replace("collections.abc.", "")
    text = re.sub(r"Optional\[(.*)\]$", r"\1 | None", text)
    choices = re.fullmatch(r"Literal\[(.*)\]", text)
    if choices:
        return " | ".join(choice.strip(" '") for choice in choices[1].split(","))
    return re.sub(r"Literal\[([^\]]*)\]", lambda found: found[1].replace("'", ""), text)


def keys_of(add: Callable[[ArgumentParser], Any], prefix: str) -> list[Key]:
    """All keys that `add` puts into a parser, in the order of the signature.

    Args:
        add: adds the arguments to an empty parser.
        prefix: written before each name, with a dot; may be empty.
    """
    parser = ArgumentParser(exit_on_error=False)
    add(parser)
    keys = []
    for action in parser._actions:
        kind = getattr(action, "_typehint", None) or action.type
        if kind is None or not action.option_strings:
            continue  # --help, and the heads of groups
        name = f"{prefix}.{action.dest}" if prefix else action.dest
        meaning = " ".join((action.help or "").split())
        # A key without a default must be given; "required" is jsonargparse's own mark of it.
        default = "required" if action.required else str(action.default)
        keys.append(Key(name, describe_type(kind), default, meaning))
    return keys


def constructor_keys(cls: type, prefix: str, skip: set[str] | None = None) -> list[Key]:
    """The keys of a class's constructor, less those of `skip`, which the code itself fills in."""
    return keys_of(
        lambda parser: parser.add_class_arguments(cls, as_group=False, skip=skip), prefix
    )


def table(keys: list[Key]) -> list[str]:
    """A Markdown table."""
    lines = ["| key | type | default | meaning |", "| --- | --- | --- | --- |"]
    for key in keys:
        kind, meaning = key.type.replace("|", "\\|"), key.meaning.replace("|", "\\|")
        lines.append(f"| `{key.name}` | {kind} | `{key.default}` | {meaning} |")
    return lines


def page() -> str:
    """The whole page."""
    stage_keys = constructor_keys(Stage1, MODEL)
    if constructor_keys(Stage2, MODEL) != stage_keys:
        raise SystemExit("Stage1 and Stage2 take different keys: give each a table")
    own_options = keys_of(lambda parser: MaviltCLI.add_arguments_to_parser(None, parser), "")
    sections = [
        ("The run: `mavilt fit`", own_options),
        ("Data: `CXRDataModule`", constructor_keys(CXRDataModule, DATA)),
        ("Encoder: `CXRClassifier`", constructor_keys(CXRClassifier, MODEL)),
        ("Tokenizer: `VQGAN`", constructor_keys(VQGAN, MODEL)),
        ("Tokenizer: `Autoencoder`", constructor_keys(Autoencoder, f"{MODEL}.autoencoder")),
        (
            "Tokenizer: `Quantizer`",
            constructor_keys(Quantizer, f"{MODEL}.quantizer", {"latent_dim"}),
        ),
        ("Tokenizer: `Discriminator`", constructor_keys(Discriminator, f"{MODEL}.discriminator")),
        ("Language model: `Stage1` and `Stage2`", stage_keys),
        ("Text before images: `Backbone`", constructor_keys(Backbone, MODEL)),
        ("Results: `ResultsWriter`", constructor_keys(ResultsWriter, "init_args")),
    ]
    for name in callbacks.__all__:
        title = f"Callback: `{name}`"
        sections.append((title, constructor_keys(getattr(callbacks, name), "init_args")))

    lines = [
        "# Config keys",
        "",
        f"Generated from the signatures by `{COMMAND}`; do not edit.",
        "On the command line a key of `model.init_args` may be written as `--model.KEY`.",
        "`trainer.*` are the arguments of Lightning's `Trainer`.",
    ]
    for title, keys in sections:
        for key in keys:
            if not key.meaning:
                raise SystemExit(f"{title}: {key.name} has no description in the docstring")
        if keys:
            lines += ["", f"## {title}", "", *table(keys)]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Write or check the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail if the table is out of date")
    check = parser.parse_args().check
    text = page()
    if not check:
        TABLE.write_text(text, encoding="utf-8")
        return 0
    if TABLE.exists() and TABLE.read_text(encoding="utf-8") == text:
        return 0
    print(f"{TABLE}: out of date; run `{COMMAND}` and commit it", file=sys.stderr)
    return 1


if __name__ == "__main__":
    raise SystemExit(main())
