"""LightningCLI for every module: `mavilt fit --config stage1.yaml`, from any folder.

A config that is not a file here is looked up among the shipped ones. Each run keeps everything
under `trainer.default_root_dir` (default `runs/<module>`): `checkpoints/last.ckpt`, the logs in
`tensorboard/`, and its config. The first run and the hundredth use the same command: with
`--ckpt_path last` a run without a checkpoint begins at step 0.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint, ProgressBar
from lightning.pytorch.cli import LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException

import mavilt_pl.trainer.fsdp_strategy  # noqa: F401  it registers the strategy
from mavilt_pl.cli.tables import print_figures
from mavilt_pl.config_files import find_config
from mavilt_pl.data.datamodule import CXRDataModule
from mavilt_pl.errors import UserError
from mavilt_pl.evaluation.results import ResultsWriter
from mavilt_pl.trainer.checkpoint_callbacks import BestCheckpoint, StepCheckpoints
from mavilt_pl.trainer.checkpoint_io import BackgroundCheckpointIO, VerifiedCheckpointIO
from mavilt_pl.trainer.preemption import Preemption, report_exit
from mavilt_pl.trainer.progress_bar import StepProgressBar
from mavilt_pl.trainer.resume_position import ResumePosition
from mavilt_pl.trainer.rng_state import RNGStates
from mavilt_pl.trainer.run_lock import run_lock
from mavilt_pl.trainer.slurm import PreemptedExit
from mavilt_pl.trainer.tensorboard_resume import TensorBoardResume

# Warnings and tips of libraries that a user of these commands cannot act on.
HARMLESS_WARNINGS = (
    ".*does not have many workers.*",
    ".*Checkpoint directory .* exists and is not empty.*",
    ".*there is no last checkpoint available.*",  # `--ckpt_path last` on a first run
    ".*module.s. in eval mode at the start of training.*",  # frozen encoders
    ".*args parameter is intended to run from within Python.*",
    ".*isinstance.treespec, LeafSpec.*",
    ".*You have overridden `.*` in `LightningModule` but have passed in a `LightningDataModule`.*",
    ".*The epoch parameter in `scheduler.step.*",
)
# Only `fit` uses the callbacks that a checkpoint of a fit names.
HARMLESS_OUTSIDE_FIT = ".*callbacks used to create the checkpoint need to be provided.*"


def complete_arguments(argv: Sequence[str]) -> list[str]:
    """Resolve every `--config` to a path, and add the options that mavilt always sets.

    Args:
        argv: the command's words, beginning with `fit`, `validate` or `test`.
    """
    words: list[str] = []
    for word in argv:
        if word.startswith("--config="):
            word = f"--config={find_config(word.removeprefix('--config='))}"
        elif words and words[-1] in ("--config", "-c"):
            word = str(find_config(word))
        words.append(word)

    def given(option: str) -> bool:
        return any(word.startswith(option) for word in words)

    asks_for_help = "-h" in words or "--help" in words
    # A checkpoint is read as tensors, so that loading one runs no code from it.
    if not given("--weights_only") and not asks_for_help:
        words.append("--weights_only=true")
    # `ResultsWriter` has its own table of the metrics, with their whole names.
    writes_results = any("ResultsWriter" in word for word in words)
    if words[0] == "test" and writes_results and not given("--verbose"):
        words.append("--verbose=false")
    return words


class MaviltCLI(LightningCLI):
    """LightningCLI with one folder per run and checkpoints that can be resumed."""

    cleanup: ExitStack  # releases the run's folder and signal handlers when the command ends

    def _instantiate_trainer(self, config: Any, callbacks: list[Any]) -> Trainer:
        """Build the trainer with one folder per run, one TensorBoard history and a `last.ckpt`."""
        options = self.config[self.subcommand]
        fitting = self.subcommand == "fit"
        module_name = options.model.class_path.rsplit(".", 1)[-1].lower()
        root = Path(config["default_root_dir"] or f"runs/{module_name}")
        config["default_root_dir"] = str(root)

        if str(config["precision"]) in ("bf16-true", "16-true"):
            raise UserError(
                f"trainer.precision: found {config['precision']}, which keeps weights with 3 "
                "digits or fewer, so that the small steps of a fine-tuning are rounded away; set "
                "it to bf16-mixed"
            )
        if config["logger"] in (None, True):
            config["logger"] = False
            if fitting:
                config["logger"] = TensorBoardLogger(
                    root, name="", version="tensorboard", default_hp_metric=False
                )

        from_config = [*(config["callbacks"] or []), *callbacks]
        has_bar = any(isinstance(callback, ProgressBar) for callback in from_config)
        if config["enable_progress_bar"] is not False and not has_bar:
            callbacks = [*callbacks, StepProgressBar()]
        if fitting:
            callbacks = [*callbacks, *self._resume_callbacks(config, root, from_config)]
            plugins = config["plugins"] or []
            if not isinstance(plugins, (list, tuple)):
                plugins = [plugins]
            io = BackgroundCheckpointIO() if options.checkpoint_async else VerifiedCheckpointIO()
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
        if fitting and trainer.is_global_zero:
            self.cleanup.enter_context(run_lock(root))
        return trainer

    def _resume_callbacks(
        self, config: Any, root: Path, from_config: list[Callback]
    ) -> list[Callback]:
        """Callbacks that let a run be interrupted at any moment and continue."""
        options = self.config[self.subcommand]
        callbacks: list[Callback] = [RNGStates(), ResumePosition()]
        if config["logger"] is not False:
            callbacks.append(LearningRateMonitor("step"))
            callbacks.append(TensorBoardResume(root, config["logger"]))

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


def _deepest_cause(error: BaseException) -> BaseException:
    """The reason at the bottom.

    jsonargparse wraps what a module's constructor raises in the whole configuration.
    """
    while error.__cause__ is not None:
        error = error.__cause__
    return error


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
                save_config_callback=SaveConfigCallback,
                save_config_kwargs={"overwrite": True},
                seed_everything_default=0,
            )
    except PreemptedExit as preempted:
        return report_exit(preempted)
    except ValueError as error:
        reason = _deepest_cause(error)
        if reason is not error and isinstance(reason, (UserError, ValueError)):
            raise UserError(str(reason)) from error
        raise

    trainer = cli.trainer
    last = Path(trainer.default_root_dir) / "checkpoints" / "last.ckpt"
    if verb == "fit" and trainer.is_global_zero and last.exists():
        print(f"{trainer.global_step:,} steps: {last}")
    for callback in trainer.callbacks:
        if isinstance(callback, ResultsWriter) and callback.path is not None:
            print_figures(callback.figures)
            print(f"{len(callback.figures)} metrics: {callback.path}")
    return 0
