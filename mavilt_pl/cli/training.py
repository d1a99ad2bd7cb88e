"""LightningCLI for every module: `mavilt fit --config stage1.yaml`, from any folder.

A config that is not a file here is looked up among the shipped ones. Each run keeps everything
under `trainer.default_root_dir` (default `runs/<module>`): `checkpoints/last.ckpt`, the logs in
`tensorboard/`, and its config. The first run and the hundredth use the same command: with
`--ckpt_path last` a run without a checkpoint begins at step 0.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import sys
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint, ProgressBar
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException

import mavilt_pl.trainer.fsdp_strategy  # noqa: F401  it registers the strategy
from mavilt_pl.cli.fit_arguments import complete_arguments
from mavilt_pl.cli.fit_checks import (
    check_keeps_earlier_run,
    check_settings,
    run_folder,
    tested_checkpoint,
)
from mavilt_pl.cli.saved_config import SavedConfig
from mavilt_pl.cli.setting_errors import BUILDING_ERRORS, deepest_cause, first_reason
from mavilt_pl.cli.tables import print_figures
from mavilt_pl.cli.terminal import say
from mavilt_pl.data.datamodule import CXRDataModule
from mavilt_pl.errors import UserError
from mavilt_pl.evaluation.results_writer import ResultsWriter
from mavilt_pl.trainer.checkpoint_callbacks import BestCheckpoint, StepCheckpoints
from mavilt_pl.trainer.checkpoint_io import BackgroundCheckpointIO, VerifiedCheckpointIO
from mavilt_pl.trainer.cpu_memory import keep_freed_memory
from mavilt_pl.trainer.preemption import Preemption, report_exit
from mavilt_pl.trainer.progress_bar import StepProgressBar
from mavilt_pl.trainer.progress_log import ProgressLog
from mavilt_pl.trainer.resume_position import ResumePosition
from mavilt_pl.trainer.resume_settings import ResumeSettings
from mavilt_pl.trainer.rng_state import RNGStates
from mavilt_pl.trainer.run_lock import run_lock
from mavilt_pl.trainer.slurm import PreemptedExit
from mavilt_pl.trainer.speed import Speed
from mavilt_pl.trainer.tensorboard_resume import TensorBoardResume

# Warnings and tips of libraries that a user of these commands cannot act on.
HARMLESS_WARNINGS = (
    # Small corpora train without workers on purpose.
    ".*does not have many workers.*",
    # Every resumed run writes into the folder that it resumes from.
    ".*Checkpoint directory .* exists and is not empty.*",
    # `--ckpt_path last` on a first run.
    ".*there is no last checkpoint available.*",
    # Frozen encoders stay in evaluation mode while the rest is trained.
    ".*module.s. in eval mode at the start of training.*",
    # `run` passes the arguments of this very process on, with its configs resolved.
    ".*args parameter is intended to run from within Python.*",
    # The language stages move their batches themselves (`transfer_batch_to_device`).
    ".*You have overridden `.*` in `LightningModule` but have passed in a `LightningDataModule`.*",
    # Deprecated calls inside Lightning.
    ".*isinstance.treespec, LeafSpec.*",
    ".*The epoch parameter in `scheduler.step.*",
)
# Only `fit` uses the callbacks that a checkpoint of a fit names.
HARMLESS_OUTSIDE_FIT = ".*callbacks used to create the checkpoint need to be provided.*"


def parser_options(*verbs: str) -> dict[str, Any]:
    """Let the parsers of Lightning's command line raise their errors."""
    # Without this, jsonargparse prints its usage, two screens long, and exits.
    options: dict[str, Any] = {"exit_on_error": False}
    for verb in verbs:
        options[verb] = {"exit_on_error": False}
    return options


class MaviltCLI(LightningCLI):
    """LightningCLI with one folder per run and checkpoints that can be resumed."""

    cleanup: ExitStack  # releases the run's folder and signal handlers when the command ends

    def before_instantiate_classes(self) -> None:
        """Refuse what can be seen in the settings: building a model may take minutes."""
        options = self.config[self.subcommand]
        check_settings(options)
        if self.subcommand == "fit":
            check_keeps_earlier_run(options)
        elif self.subcommand in ("test", "validate"):
            options.ckpt_path = tested_checkpoint(options)

    def instantiate_classes(self) -> None:
        """Build data, module and callbacks; what fails here fails by its settings."""
        try:
            super().instantiate_classes()
        except BUILDING_ERRORS as error:
            cause = deepest_cause(error)
            if isinstance(cause, UserError):
                raise UserError(str(cause)) from error
            reason = first_reason(str(cause)) or type(cause).__name__
            raise UserError(
                f"{self.config[self.subcommand].model.class_path}, its data, a callback or a "
                f"logger cannot be built with these settings: {reason} (MAVILT_DEBUG=1 shows where)"
            ) from error

    def _instantiate_trainer(self, config: Any, callbacks: list[Any]) -> Trainer:
        """Build the trainer with one folder per run, one TensorBoard history and a `last.ckpt`."""
        options = self.config[self.subcommand]
        fitting = self.subcommand == "fit"
        root = run_folder(options)
        config["default_root_dir"] = str(root)

        # bfloat16 keeps 8 significant bits and float16 11. At a learning rate of 5e-6 most updates
        # are smaller than the last of them.
        if str(config["precision"]) in ("bf16-true", "16-true"):
            raise UserError(
                f"trainer.precision: found {config['precision']}, which keeps weights with 3 "
                "digits or fewer, so that the small steps of a fine-tuning are rounded away; set "
                "it to bf16-mixed"
            )
        config["logger"] = self._loggers(config["logger"], root)

        from_config = [*(config["callbacks"] or []), *callbacks]
        has_bar = any(isinstance(callback, ProgressBar) for callback in from_config)
        if config["enable_progress_bar"] is not False and not has_bar:
            callbacks = [*callbacks, StepProgressBar()]
        if fitting:
            callbacks = [*callbacks, *self._resume_callbacks(config, root, from_config)]
        # What a test computes, it writes.
        computes = any(hasattr(callback, "figures") for callback in from_config)
        writes = any(isinstance(callback, ResultsWriter) for callback in from_config)
        if self.subcommand == "test" and computes and not writes:
            callbacks = [*callbacks, ResultsWriter()]
        plugins = config["plugins"] or []
        if not isinstance(plugins, (list, tuple)):
            plugins = [plugins]
        in_background = fitting and options.checkpoint_async
        io = BackgroundCheckpointIO() if in_background else VerifiedCheckpointIO()
        config["plugins"] = [*plugins, io]

        try:
            trainer = super()._instantiate_trainer(config, callbacks)
        except (MisconfigurationException, ImportError, TypeError, ValueError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(
                f"trainer: {reason} Found trainer.accelerator {config['accelerator']} and "
                f"trainer.devices {config['devices']} on a machine with "
                f"{torch.cuda.device_count() or 'no'} GPU; if that is more than it has, set "
                "--trainer.accelerator auto --trainer.devices auto"
            ) from error
        if isinstance(trainer.accelerator, CPUAccelerator):
            keep_freed_memory()
        # Only now is the rank known. The other ranks of a job share the first one's lock.
        if fitting and trainer.is_global_zero:
            self.cleanup.enter_context(run_lock(root))
        return trainer

    def _loggers(self, configured: Any, root: Path) -> list[Any]:
        """Loggers of a config and, in a training, TensorBoard in the run's folder."""
        if configured is False:
            return []
        loggers: list[Any] = []
        if isinstance(configured, (list, tuple)):
            loggers = [*configured]
        elif configured not in (None, True):
            loggers = [configured]
        has_tensorboard = any(isinstance(logger, TensorBoardLogger) for logger in loggers)
        # Validating or testing alone must not append to the history of the training.
        if self.subcommand == "fit" and not has_tensorboard:
            # Without a version, so that a resumed run logs into the same folder.
            tensorboard = TensorBoardLogger(
                root, name="", version="tensorboard", default_hp_metric=False
            )
            loggers.insert(0, tensorboard)
        # `mavilt run` trains several runs in one process, which W&B would take for one.
        if any(isinstance(logger, WandbLogger) for logger in loggers):
            self.cleanup.callback(lambda: importlib.import_module("wandb").finish())
        return loggers

    def _resume_callbacks(
        self, config: Any, root: Path, from_config: list[Callback]
    ) -> list[Callback]:
        """Callbacks that let a run be interrupted at any moment and continue."""
        options = self.config[self.subcommand]
        callbacks: list[Callback] = [ResumeSettings(), RNGStates(), ResumePosition(), Speed()]
        if not sys.stderr.isatty():
            callbacks.append(ProgressLog())
        if config["logger"]:
            callbacks.append(LearningRateMonitor("step"))
        for logger in config["logger"]:
            if isinstance(logger, TensorBoardLogger):
                callbacks.append(TensorBoardResume(root, logger))

        # A config that brings its own ModelCheckpoint decides about checkpoints itself.
        has_checkpoint = any(isinstance(callback, ModelCheckpoint) for callback in from_config)
        if config["enable_checkpointing"] is False or has_checkpoint:
            return callbacks
        folder = root / "checkpoints"
        checkpoints = StepCheckpoints(folder, options.checkpoint_every, options.checkpoint_keep)
        callbacks.append(checkpoints)
        if options.checkpoint_best:
            callbacks.append(BestCheckpoint(folder, options.checkpoint_best))
        preemption = Preemption(checkpoints)
        # A recipe runs several commands in one process; the next one must not find this handler.
        self.cleanup.callback(preemption.restore_handlers)
        callbacks.append(preemption)
        return callbacks

    def _parse_ckpt_path(self) -> None:
        """Leave the configuration as given.

        Lightning's method would replace it by the hyperparameters in the checkpoint, and even the
        module's class.
        """

    def add_arguments_to_parser(self, parser: Any) -> None:
        """Add the options about checkpoints."""
        parser.add_argument(
            "--checkpoint_every", type=int, default=500, help="steps between checkpoints"
        )
        parser.add_argument(
            "--checkpoint_keep", type=int, default=2, help="number of latest checkpoints to keep"
        )
        parser.add_argument(
            "--checkpoint_async",
            type=bool,
            default=False,
            help="write checkpoints in the background, from a copy in memory",
        )
        parser.add_argument(
            "--checkpoint_best",
            type=str | None,
            default=None,
            help="also keep best.ckpt: min:METRIC or max:METRIC of a validation",
        )


def run(argv: Sequence[str]) -> int:
    """Run `fit`, `validate` or `test`; the exit status.

    Args:
        argv: the command's words, beginning with the verb.
    """
    verb = argv[0]
    for message in HARMLESS_WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    if verb != "fit":
        warnings.filterwarnings("ignore", message=HARMLESS_OUTSIDE_FIT)
    # Lightning's tips and device lists.
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    # TF32 for the float32 products of bf16-mixed training; without effect on a CPU.
    torch.set_float32_matmul_precision("high")

    try:
        with ExitStack() as MaviltCLI.cleanup:
            cli = MaviltCLI(
                LightningModule,
                CXRDataModule,
                subclass_mode_model=True,
                args=complete_arguments(argv),
                save_config_callback=SavedConfig,
                seed_everything_default=0,
                parser_kwargs=parser_options(*LightningCLI.subcommands()),
            )
    except argparse.ArgumentError as error:
        raise UserError(first_reason(str(error))) from None
    except PreemptedExit as preempted:
        return report_exit(preempted)
    except ValueError as error:
        reason = deepest_cause(error)
        if reason is not error and isinstance(reason, (UserError, ValueError)):
            raise UserError(str(reason)) from error
        raise
    except RuntimeError as error:
        # The compiler's own errors: that it cannot compile here is no fault of the model.
        if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        raise UserError(
            f"torch.compile fails on this machine: {' '.join(str(error).split())[:200]}; train "
            "without it (compile: false in the module's settings)"
        ) from error

    _report_end(verb, cli.trainer)
    return 0


def _report_end(verb: str, trainer: Trainer) -> None:
    """Say where the work lies."""
    last = Path(trainer.default_root_dir) / "checkpoints" / "last.ckpt"
    if verb == "fit" and trainer.is_global_zero and last.exists():
        say(f"{trainer.global_step:,} steps: {last}")
    writers = [callback for callback in trainer.callbacks if isinstance(callback, ResultsWriter)]
    for writer in writers:
        # Other ranks gather their part of the metrics and write no file.
        if writer.path is not None:
            print_figures(writer.figures)
            say(f"{len(writer.figures)} metrics: {writer.path}")
    if verb == "test" and not writers and trainer.is_global_zero:
        for name, value in sorted(trainer.callback_metrics.items()):
            say(f"{name} {float(value):.4g}")
        say("no other metrics were asked for; --config metrics/report.yaml adds those of reports")
