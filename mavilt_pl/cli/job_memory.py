"""Before jobs are submitted: does each training fit a GPU, and with which strategy?"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from mavilt_pl.cli.plan import GB, add_arguments, plan_vqgan_settings, read_settings, read_training
from mavilt_pl.cli.terminal import say
from mavilt_pl.errors import UserError

if TYPE_CHECKING:
    from mavilt_pl.planning.language_memory import Training

# What a plan does not count: the allocator's loss, and CUDA itself (`mavilt plan` says so too).
ALLOCATOR = 1.1
CUDA = 1.0  # GB


def strategy_that_fits(step: str, words: Sequence[str], gpus: int, gpu_memory: int) -> str | None:
    """The strategy that a training must have to fit.

    Args:
        step: name, for messages.
        words: of its command, beginning with `fit`.
        gpus: of all nodes.
        gpu_memory: of one GPU, in GB.

    Returns:
        `fsdp2` where the training fits with it alone, else None: as configured.

    Raises:
        UserError: no strategy makes it fit.
    """
    try:
        planned = _plan(words, gpus)
    except UserError as error:
        # A backbone that an earlier step makes, a precision without a plan. What is wrong with a
        # config, the job itself says.
        say(f"{step}: its memory is not planned ({error})", sys.stderr)
        return None
    if planned is None:
        return None
    strategy, training, peak = planned
    if _with_margin(peak) <= gpu_memory:
        return None
    # The config decides where it says anything.
    if training is not None and strategy == "auto" and (sharded := _sharded(training)):
        peak_sharded = _peak(sharded)
        if _with_margin(peak_sharded) <= gpu_memory:
            say(
                f"{step}: {_with_margin(peak):.0f} GB a GPU with ddp, {gpu_memory} GB are there; "
                f"submitted with fsdp2 ({_with_margin(peak_sharded):.0f} GB)",
                sys.stderr,
            )
            return "fsdp2"
    raise UserError(
        f"step {step} needs {_with_margin(peak):.0f} GB of a GPU, which has {gpu_memory} "
        f"(gpu_memory in mavilt.yaml, or --gpu-memory).{_what_fits(training, gpu_memory)} "
        "`mavilt plan` shows what the memory is for"
    )


def _plan(words: Sequence[str], gpus: int) -> tuple[str, Training | None, int] | None:
    """Configured strategy, the training if it is of a language stage, and its peak in bytes.

    None for a classifier, which is small.
    """
    from mavilt_pl.planning.settings import STAGES, stage_name

    parser = argparse.ArgumentParser(allow_abbrev=False)
    add_arguments(parser)
    # As `mavilt plan` reads them; what it does not know is of `fit`.
    args, fit_arguments = parser.parse_known_args([*words[1:], f"--gpus={gpus}"])
    args.fit_arguments = fit_arguments
    settings, hardware = read_settings(args)
    if settings.model.class_path.rpartition(".")[2] not in STAGES:
        return None
    strategy = str(settings.trainer.strategy)
    if stage_name(settings) == "VQGAN":
        return strategy, None, plan_vqgan_settings(args, settings, hardware).peak
    training = read_training(args, settings, hardware)
    return strategy, training, _peak(training)


def _sharded(training: Training) -> Training | None:
    """The same training under FSDP2; None where that is refused (`trainer.fsdp_strategy`)."""
    # One GPU has nothing to share, and adapters have little.
    tuning = training.tuning
    if training.hardware.gpus == 1 or tuning.method != "full" or tuning.optimizer != "adamw":
        return None
    return replace(training, hardware=replace(training.hardware, strategy="fsdp"))


def _what_fits(training: Training | None, gpu_memory: int) -> str:
    """The alternatives of a language stage that would fit, as a sentence; may be empty."""
    from mavilt_pl.planning.language_memory import plan_alternatives

    if training is None:
        return " Take a smaller data.batch_size."
    # In the order in which a user would try them.
    fitting = []
    for name, plan in plan_alternatives(training).items():
        size = _with_margin(plan.peak)
        if size <= gpu_memory:
            fitting.append(f"{name} ({size:.0f} GB)")
    if not fitting:
        return " No usual alternative fits: take a smaller backbone or data.batch_size."
    return (
        f" What would fit: {'; '.join(fitting)}; set tuning.method and "
        "tuning.gradient_checkpointing, fsdp2 is then chosen here."
    )


def _peak(training: Training) -> int:
    """Bytes."""
    from mavilt_pl.planning.language_memory import plan_language

    return plan_language(training).peak


def _with_margin(peak: int) -> float:
    """GB that a GPU must have for a planned peak of bytes."""
    return ALLOCATOR * peak / GB + CUDA
