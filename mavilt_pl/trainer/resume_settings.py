"""A resumed run keeps the settings that it was trained with.

Some settings would be ignored silently: the optimizer's state in a checkpoint brings its learning
rates, betas and weight decay with it. Others would change the loss in the middle of a run, which no
curve and no config of the run would show. Both are refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from lightning import Callback, LightningModule, Trainer

from mavilt_pl.errors import UserError

# Settings that may change: where files lie, how fast a step is computed, and how results are
# sampled. A prefix names all keys below it.
CHANGEABLE = (
    "backbone",
    "tokens",
    "encoder",
    "init_from",
    "accumulate_grad_batches",
    "channels_last",
    "compile",
    "sampling",
    "tuning.gradient_checkpointing",
    "tuning.length_groups",
    "regularization.reference_device",
)


class ResumeSettings(Callback):
    """Compares the module's hyperparameters with those of the checkpoint that is resumed."""

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Refuse the first setting that differs.

        Raises:
            UserError: names the key and both values.
        """
        hparams = dict(pl_module.hparams)
        there = dict(checkpoint.get("hyper_parameters", {}))
        # A part such as the quantizer is given by some of its settings. The checkpoint has all of
        # them, and so has the part itself: a default may not change unnoticed either.
        for path, part in pl_module.named_modules():
            name = path.rpartition(".")[2]
            if name in hparams and name in checkpoint and hasattr(part, "config"):
                hparams[name], there[name] = part.config, checkpoint[name]
        saved = dict(_flat(there))
        for key, value in _flat(hparams):
            # A key that a newer version has added, with its default.
            if key not in saved or saved[key] == value or _is_changeable(key):
                continue
            name = f"model.init_args.{key}"
            raise UserError(
                f"{name}: the checkpoint was trained with {saved[key]} and is resumed with "
                f"{value}, which would not be used or would change the training in its middle. "
                f"Set --{name} {saved[key]}, or start a new run from these weights in another "
                "folder (model.init_args.init_from, where the module has it)"
            )


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of nested settings.

    >>> list(_flat({"tuning": {"learning_rate": 0.1}, "betas": (0.9, 0.95)}))
    [('tuning.learning_rate', 0.1), ('betas', [0.9, 0.95])]
    """
    for key, value in settings.items():
        # Lightning's own, such as `_class_path`.
        if str(key).startswith("_"):
            continue
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            # YAML has lists for what a default writes as a tuple.
            yield f"{prefix}{key}", list(value) if isinstance(value, tuple) else value


def _is_changeable(key: str) -> bool:
    return any(key == allowed or key.startswith(f"{allowed}.") for allowed in CHANGEABLE)
