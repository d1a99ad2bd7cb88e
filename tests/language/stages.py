"""Build a language stage from flat settings, and the batches and losses that tests look at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mavilt_pl.language import (
    ImageSampling,
    ModelOptions,
    RegularizationOptions,
    Stage2,
    TuningOptions,
)
from mavilt_pl.language.options import TASKS
from mavilt_pl.language.sequences import PackedBatch
from mavilt_pl.language.task_loss import count_targets

GROUPS = {"model": ModelOptions, "tuning": TuningOptions, "regularization": RegularizationOptions}


def grouped(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Flat settings as the groups of a stage; `text` is text sampling, unknown keys stay."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        for group, kind in GROUPS.items():
            if key in {field.name for field in fields(kind)}:
                found.setdefault(group, {})[key] = value
                break
        else:
            if key in {field.name for field in fields(ImageSampling)}:
                found.setdefault("sampling", {}).setdefault("image", {})[key] = value
            elif key == "text":
                found.setdefault("sampling", {})["text"] = value
            else:
                found[key] = value
    return found


def build_stage(
    backbone: Path | str, tokens: Path | str, kind: type = Stage2, **settings: Any
) -> Any:
    """A stage; `settings` are keys of any group, such as lambda_reg or max_text_tokens."""
    return kind(str(backbone), str(tokens), **grouped(settings))


def pack_batch(module: Any, batch: Mapping[str, Any]) -> list[PackedBatch]:
    """The packed sequences of a collated batch, as the loader's workers build them."""
    module.collate.shares_prefix = module.generator.shares_prefix
    return module.collate.pack(batch, module.training)


def task_losses(module: Any, packed: list[PackedBatch]) -> dict[str, Tensor]:
    """Mean nats per target of each task."""
    nats: dict[str, Tensor] = {}
    for group in packed:
        losses_M = module.model.token_losses(group)
        for span in group.spans:
            total = losses_M[span.start : span.stop].sum()
            task = TASKS[span.task]
            nats[task] = nats[task] + total if task in nats else total
    counts = dict(zip(TASKS, count_targets(packed)))
    return {task: total / counts[task] for task, total in nats.items()}


def regularization_term(module: Any) -> float:
    """The value of L_reg."""
    return module.regularizer.term(module.regularizer.distances())


def save_checkpoint(module: Any, path: Path) -> Path:
    """What a trainer saves of a module, as far as an earlier stage is read."""
    checkpoint = {"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams)}
    module.on_save_checkpoint(checkpoint)
    checkpoint["mavilt_format"] = 2
    torch.save(checkpoint, path)
    return path


@torch.no_grad()
def hidden_state_after(module: Any, ids: list[int]) -> Tensor:
    """The hidden state [D] at the last of these ids, from a pass without a cache."""
    embedded = module.model.embed(torch.tensor([ids]))
    outputs = module.model.transformer(inputs_embeds=embedded, use_cache=False)
    return outputs.last_hidden_state[0, -1]
