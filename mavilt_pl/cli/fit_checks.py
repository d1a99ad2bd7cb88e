"""What is wrong with the settings of a training, found before a model is built."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from mavilt_pl.checkpoint import sequence_number
from mavilt_pl.data.datamodule import CXRDataModule
from mavilt_pl.errors import UserError
from mavilt_pl.project import HOW
from mavilt_pl.ranges import PositiveInt, check_arguments, check_value


def run_folder(options: Any) -> Path:
    """The folder of a run: `trainer.default_root_dir`, or runs/<module>.

    Args:
        options: the parsed settings of `fit`, `validate` or `test`.
    """
    # One folder a module, so that the commands of the README need no paths.
    module_name = options.model.class_path.rsplit(".", 1)[-1].lower()
    return Path(options.trainer.default_root_dir or f"runs/{module_name}")


def check_settings(options: Any) -> None:
    """Refuse settings that are incomplete or contradict one another.

    Args:
        options: the parsed settings of `fit`, `validate` or `test`.

    Raises:
        UserError: names the keys, and what to set.
    """
    # First what is missing: most settings cannot be judged without it.
    _check_named(options)
    check_ranges(options)
    module_name = options.model.class_path.rsplit(".", 1)[-1]
    settings = options.model.get("init_args") or {}
    if module_name == "VQGAN":
        _check_vqgan(options.trainer)
    if module_name == "CXRClassifier":
        _check_findings(settings, options.data)


def _check_named(options: Any) -> None:
    """Check that the folders are named, which no config can know."""
    settings, data = options.model.get("init_args") or {}, options.data
    missing: dict[str, tuple[str, str]] = {}
    # Each with what makes it, and an example to copy.
    if not data.corpora:
        missing["data.corpora"] = ("as `mavilt prepare` writes them", "[corpora/mimic]")
    if data.batch_kind in ("pairs", "instructions") and not data.tokens:
        missing["data.tokens"] = ("as `mavilt tokenize` writes them", "[tokens/mimic]")
    # Only the language stages have these keys.
    if settings.get("backbone") == "":
        what = "a language model of Hugging Face, or of backbone.yaml"
        missing["model.init_args.backbone"] = (what, "FOLDER_OR_HUB_NAME")
    if settings.get("tokens") == "":
        missing["model.init_args.tokens"] = ("one of the token caches", "tokens/mimic")
    if missing:
        keys = "; ".join(f"{key} ({what})" for key, (what, _) in missing.items())
        words = " ".join(f"--{key} {example}" for key, (_, example) in missing.items())
        raise UserError(
            f"not named yet: {keys}. Add to the command, for example: {words}. Or {HOW}, in which "
            "the same command works as it stands"
        )


def check_ranges(options: Any) -> None:
    """Check every setting of the module, the data and our callbacks against its range.

    Raises:
        UserError: names the key, what was found and what is expected.
    """
    check_arguments(_class_of(options.model), _arguments_of(options.model), "model.init_args")
    check_arguments(CXRDataModule, vars(options.data), "data")
    callbacks = options.trainer.callbacks or []
    # `--trainer.callbacks=NAME` gives one that stands alone.
    for number, callback in enumerate(callbacks if isinstance(callbacks, list) else [callbacks]):
        # Those of other packages state no ranges.
        if callback.class_path.startswith("mavilt_pl."):
            name = f"trainer.callbacks[{number}].init_args"
            check_arguments(_class_of(callback), _arguments_of(callback), name)
    # Options of the command, which belong to no class.
    for key in ("checkpoint_every", "checkpoint_keep"):
        check_value(PositiveInt, options[key], key)


def _class_of(spec: Any) -> type:
    module, _, name = spec.class_path.rpartition(".")
    return getattr(import_module(module), name)


def _arguments_of(spec: Any) -> Mapping[str, Any]:
    # A class without arguments has none in its config.
    arguments = spec.get("init_args")
    return vars(arguments) if arguments else {}


def _check_vqgan(trainer: Any) -> None:
    """Lightning's keys are for a module of one optimizer; the VQ-GAN has its own."""
    if trainer.accumulate_grad_batches != 1:
        raise UserError(
            f"trainer.accumulate_grad_batches {trainer.accumulate_grad_batches}: the VQ-GAN steps "
            "two optimizers and counts batches itself; set --model.init_args."
            f"accumulate_grad_batches {trainer.accumulate_grad_batches} instead"
        )
    if trainer.gradient_clip_val is not None:
        raise UserError(
            f"trainer.gradient_clip_val {trainer.gradient_clip_val}: the VQ-GAN steps two "
            "optimizers and clips the norm of each itself; set --model.init_args."
            f"gradient_clip_norm {trainer.gradient_clip_val} instead"
        )


def _check_findings(settings: Mapping[str, Any], data: Any) -> None:
    """The classifier's outputs are the columns of the data's labels."""
    # In order: the columns have no names at run time.
    outputs, columns = list(settings["findings"]), list(data.findings or [])
    if outputs != columns:
        raise UserError(
            f"model.init_args.findings are {outputs} and data.findings are {columns}: expected the "
            "same findings in the same order; set both"
        )


def tested_checkpoint(options: Any) -> str:
    """The checkpoint of a test or validation: the one named, or the last of the run's folder.

    Args:
        options: the parsed settings of `validate` or `test`.

    Raises:
        UserError: none is named, and the run's folder has none.
    """
    if options.ckpt_path not in (None, "last"):
        return options.ckpt_path
    last = run_folder(options) / "checkpoints" / "last.ckpt"
    if not last.exists():
        raise UserError(
            f"{last} does not exist: train first (`mavilt fit` with the same config), or name a "
            "checkpoint with --ckpt_path"
        )
    return str(last)


def check_keeps_earlier_run(options: Any) -> None:
    """Check that a training does not replace the checkpoints of an earlier one.

    Args:
        options: the parsed settings of `fit`.

    Raises:
        UserError: the folder has checkpoints, and the training would not continue from them.
    """
    trainer, given = options.trainer, options.ckpt_path
    if trainer.fast_dev_run or trainer.enable_checkpointing is False:
        return
    root = run_folder(options)
    folder = root / "checkpoints"
    found = sorted(folder.glob("*.ckpt"), key=sequence_number)
    if not found or given == "last":
        return
    # One of this run's own checkpoints: going back to an earlier step is the user's decision.
    if given is not None and Path(given).resolve().parent == folder.resolve():
        return
    steps = [path for path in found if path.name.startswith("step=")]
    newest = (steps or found)[-1]
    step = f", step {newest.stem.removeprefix('step=')}" if steps else ""
    raise UserError(
        f"{root} holds a run already (newest checkpoint {newest}{step}), and this training would "
        "replace it. Add --ckpt_path last to continue it, or name another folder with "
        "--trainer.default_root_dir"
    )
