"""What a plan needs of the settings of `mavilt fit`, from the namespace that its parser returns."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from math import ceil
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from mavilt_pl.data.token_cache import TokenCache
from mavilt_pl.errors import UserError
from mavilt_pl.language.options import (
    ModelOptions,
    RegularizationOptions,
    SamplingOptions,
    TuningOptions,
    as_options,
    check_options,
)

STAGES = ("VQGAN", "Stage1", "Stage2")
# Questions of a study if `data.questions_per_study` sets no limit.
QUESTIONS = 16


def parse_arguments(kind: type, name: str, given: Mapping[str, Any] | None) -> dict[str, Any]:
    """Arguments of a class with its defaults filled in, checked against its signature.

    `VQGAN` takes those of its networks as plain mappings, which the parser of `mavilt fit` cannot
    look into.

    Raises:
        UserError: a key is unknown, or a value is of the wrong type.
    """
    parser = ArgumentParser(exit_on_error=False)
    # Under a name, so that the parser's messages contain it.
    parser.add_class_arguments(kind, name)
    try:
        parsed = parser.parse_object({name: dict(given or {})})
    except argparse.ArgumentError as error:
        raise UserError(" ".join(str(error).split())) from None
    return parsed[name].as_dict()


def stage_name(settings: Namespace) -> str:
    """VQGAN, Stage1 or Stage2.

    Raises:
        UserError: another module is configured.
    """
    # `mavilt_pl.Stage1` and `mavilt_pl.language.Stage1` are the same class.
    name = settings.model.class_path.rpartition(".")[2]
    if name not in STAGES:
        raise UserError(f"{name} cannot be planned for; expected {', '.join(STAGES)}")
    return name


def language_options(settings: Namespace) -> tuple[ModelOptions, TuningOptions, Any]:
    """The groups `model`, `tuning` and `regularization`.

    Raises:
        UserError: a value is out of range, as `mavilt fit` would say.
    """
    # Through the same checks as in training, so that a plan is not made for what would be refused.
    groups = settings.model.init_args.as_dict()
    model = as_options(ModelOptions, groups["model"], "model")
    tuning = as_options(TuningOptions, groups["tuning"], "tuning")
    regularization = as_options(RegularizationOptions, groups["regularization"], "regularization")
    sampling = as_options(SamplingOptions, groups["sampling"], "sampling")
    check_options(model, tuning, regularization, sampling)
    return model, tuning, regularization


def at_least_one(settings: Namespace, key: str) -> int:
    """A count that the parser only knows to be an integer.

    Raises:
        UserError: it is 0 or less.
    """
    found = settings[key]
    if found < 1:
        raise UserError(f"{key}: found {found}; expected 1 or more")
    return found


def count_gpus(settings: Namespace) -> int:
    """GPUs of all nodes. `trainer.devices: auto` counts as one: the plan may run elsewhere."""
    devices = settings.trainer.devices
    if isinstance(devices, list):
        per_node = len(devices)
    elif str(devices).isdecimal():  # the parser returns `8` as text
        per_node = int(devices)
    else:
        per_node = 1
    return max(per_node, 1) * at_least_one(settings, "trainer.num_nodes")


def grid_and_codebook(settings: Namespace) -> tuple[int, int]:
    """Side of an image in codes and size of the codebook: those of the token cache, if it is there.

    Raises:
        UserError: the cache is damaged.
    """
    tokens = settings.model.init_args.tokens
    # A plan is often made before the tokenizer is trained; these are vqgan.yaml's.
    if not tokens or not (Path(tokens) / "tokens.json").is_file():
        return 16, 1024
    # A finished cache knows what its tokenizer makes of an image.
    cache = TokenCache(tokens)
    return cache.grid, cache.codebook_size


def count_questions(settings: Namespace) -> int:
    """Questions of a study in a training of Stage 2."""
    if settings.data.questions_per_study is None:
        return QUESTIONS
    return at_least_one(settings, "data.questions_per_study")


def count_replay_texts(settings: Namespace, batch_size: int) -> int:
    """Plain texts in a batch, rounded up; 0 without `data.replay`.

    Raises:
        UserError: `data.replay_share` is no share.
    """
    if not settings.data.replay:
        return 0
    share = settings.data.replay_share
    if not 0 <= share <= 1:
        raise UserError(f"data.replay_share: found {share}; expected a share from 0 to 1")
    return ceil(share * batch_size)
