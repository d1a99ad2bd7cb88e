"""The configs and words of `mavilt fit`, as far as a plan needs them, checked without an import of
what they configure.
"""

from __future__ import annotations

import ast
import difflib
import re
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from mavilt_pl.config_files import find_config
from mavilt_pl.errors import UserError
from mavilt_pl.planning.memory import AUTOENCODER, DISCRIMINATOR, QUANTIZER

PACKAGE = Path(__file__).parents[1]
COUNT, NUMBER, SWITCH = "a whole number of 1 or more", "a number of 0 or more", "true or false"
# What is read, and what it may be: one of the words, or a kind of value.
EXPECTED: dict[str, str | tuple[str, ...]] = {
    "data.batch_size": COUNT,
    "data.questions_per_study": COUNT,
    "data.replay_share": NUMBER,
    "model.init_args.clinical_input": SWITCH,
    "model.init_args.drift": NUMBER,
    "model.init_args.drift_keep": ("bfloat16", "float32"),
    "model.init_args.drift_place": ("device", "host"),
    "model.init_args.gan_weight": NUMBER,
    "model.init_args.gradient_checkpointing": SWITCH,
    "model.init_args.lambda_feat": NUMBER,
    "model.init_args.lambda_finding": NUMBER,
    "model.init_args.lora.r": COUNT,
    "model.init_args.max_words": COUNT,
    "model.init_args.optimizer": ("adamw", "muon"),
    "model.init_args.places": SWITCH,
    "model.init_args.tuning": ("full", "lora", "new_rows"),
    "model.init_args.views": SWITCH,
    "trainer.num_nodes": COUNT,
}
SHAPES = {"autoencoder": AUTOENCODER, "quantizer": QUANTIZER, "discriminator": DISCRIMINATOR}
# Where the arguments of what is configured are written.
SOURCES = {
    "VQGAN": ("vqgan/module.py", "VQGAN"),
    "Stage1": ("language/module.py", "LanguageModule"),
    "Stage2": ("language/module.py", "LanguageModule"),
    "data": ("data/datamodule.py", "CXRDataModule"),
    "autoencoder": ("vqgan/autoencoder.py", "Autoencoder"),
    "quantizer": ("vqgan/quantizer.py", "Quantizer"),
    "discriminator": ("vqgan/discriminator.py", "Discriminator"),
}
BESIDE = (
    "seed_everything",
    "optimizer",
    "lr_scheduler",
    "ckpt_path",
    "weights_only",
    "checkpoint_every",
    "checkpoint_keep",
    "checkpoint_async",
    "checkpoint_best",
)


class _Loader(yaml.SafeLoader):
    """YAML 1.2's numbers, as `mavilt fit` reads them: to PyYAML 1e-4 is a text."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def _yaml(text: str, where: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise UserError(f"{where} is not YAML: {' '.join(str(error).split())}") from None


def _merged(into: dict[str, Any], more: Mapping[str, Any]) -> None:
    for key, value in more.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merged(into[key], value)
        elif isinstance(value, str) and key == "model" and isinstance(into.get(key), dict):
            into[key]["class_path"] = value
        else:
            into[key] = value


def settings(configs: Sequence[str], words: Sequence[str]) -> dict[str, Any]:
    """The configs over one another, and the words of the command line over them. Raises `UserError`
    for what is no setting.
    """
    found: dict[str, Any] = {}
    for name in configs:
        path = find_config(name)
        read = _yaml(path.read_text(encoding="utf-8"), str(path)) or {}
        if not isinstance(read, dict):
            raise UserError(
                f"{path}: expected a mapping, as `mavilt fit --config` takes it; found {read!r}"
            )
        _merged(found, read)
    rest = [*words]
    while rest:
        key, equals, value = rest.pop(0).partition("=")
        if not key.startswith("--"):
            raise UserError(
                f"{key}: expected a key such as --model.init_args.drift, with its value"
            )
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise UserError(f"{key} has no value")
            value = rest.pop(0)
        parts = key[2:].removesuffix("+").split(".")
        if parts[:2] == [
            "trainer",
            "callbacks",
        ]:  # arguments of the last one: nothing of them is counted
            continue
        given = _yaml(value, f"{key} {value}")
        for part in reversed(parts):
            given = {part: given}
        _merged(found, given)
    model = found.get("model")
    if isinstance(model, str):
        found["model"] = {"class_path": model}
    elif isinstance(model, dict):  # as `mavilt fit` takes --model.drift for --model.init_args.drift
        short = {
            key: model.pop(key)
            for key in [*model]
            if key not in ("class_path", "init_args", "dict_kwargs")
        }
        if short:
            _merged(model, {"init_args": short})
    return found


def section(found: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """The mapping under a dotted key; empty where it is not set."""
    here: Any = found
    for depth, part in enumerate(key.split("."), start=1):
        here = here.get(part) or {}
        if not isinstance(here, Mapping):
            raise UserError(
                f"{'.'.join(key.split('.')[:depth])}: expected a mapping of settings, found "
                f"{here!r}"
            )
    return here


def _is(value: Any, kind: str | tuple[str, ...]) -> bool:
    if isinstance(kind, tuple):
        return value in kind
    if kind == SWITCH:
        return isinstance(value, bool)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return value >= 0 if kind == NUMBER else isinstance(value, int) and value >= 1


def value(found: Mapping[str, Any], key: str, default: Any) -> Any:
    """A setting by its dotted key, or its default. Raises `UserError` where it is not what
    `EXPECTED` says.
    """
    above, _, last = key.rpartition(".")
    given = section(found, above).get(last)
    if given is None:
        return default
    if not _is(given, kind := EXPECTED[key]):
        raise UserError(
            f"{key}: expected {kind if isinstance(kind, str) else ' or '.join(kind)}, found "
            f"{given!r}"
        )
    return given


def _arguments(source: Path, name: str) -> list[str]:
    """Of a class, from its source."""
    tree = ast.parse(source.read_text(encoding="utf-8"))
    body = next(
        node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name
    )
    init = next(
        node for node in body if isinstance(node, ast.FunctionDef) and node.name == "__init__"
    )
    return [argument.arg for argument in (*init.args.args, *init.args.kwonlyargs)][1:]


def _known(keys: Mapping[str, Any], known: Sequence[str], above: str = "") -> None:
    for key in keys:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, 1)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}"
            raise UserError(f"{above}{key}: `mavilt fit` knows no such setting; {hint}")


def check(found: Mapping[str, Any], module: str) -> None:
    """Refuse keys that `mavilt fit` does not know, and shapes of a VQGAN that are none. `module`:
    VQGAN, Stage1 or Stage2.
    """
    lightning = find_spec("lightning")
    assert lightning is not None and lightning.origin is not None
    trainer = Path(lightning.origin).parent / "pytorch" / "trainer" / "trainer.py"
    source, name = SOURCES[module]
    _known(found, ["model", "data", "trainer", *BESIDE])
    _known(
        section(found, "model.init_args"), _arguments(PACKAGE / source, name), "model.init_args."
    )
    _known(
        section(found, "data"),
        _arguments(PACKAGE / SOURCES["data"][0], SOURCES["data"][1]),
        "data.",
    )
    _known(section(found, "trainer"), _arguments(trainer, "Trainer"), "trainer.")
    for shape, defaults in SHAPES.items() if module == "VQGAN" else ():
        source, name = SOURCES[shape]
        given = section(found, f"model.init_args.{shape}")
        _known(given, _arguments(PACKAGE / source, name), f"model.init_args.{shape}.")
        for key in given.keys() & defaults.keys():
            of_one = not isinstance(defaults[key], tuple)
            several = [given[key]] if of_one else given[key]
            if defaults[key] is not None and not (
                isinstance(several, list) and all(_is(one, COUNT) for one in several)
            ):
                wanted = COUNT if of_one else "a list of whole numbers of 1 or more"
                raise UserError(
                    f"model.init_args.{shape}.{key}: expected {wanted}, found {given[key]!r}"
                )
