"""LightningCLI for every module: `mavilt fit --config stage1.yaml`, from any folder.

A config that is not a file here is looked up among the shipped ones. Each run keeps everything
under `trainer.default_root_dir` (default `runs/<module>`): `checkpoints/last.ckpt`, the logs in
`tensorboard/`, and its config. The first run and the hundredth use the same command: `--ckpt_path
last` starts from scratch if there is nothing to resume.
"""

from __future__ import annotations

import argparse
import logging
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace
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

# Warnings of Lightning that are true and harmless here, as regular expressions.
HARMLESS_WARNINGS = (
    # Small corpora and tests train without workers on purpose.
    ".*does not have many workers.*",
    # Every resumed run writes into the folder that it resumes from.
    ".*Checkpoint directory .* exists and is not empty.*",
    # `--ckpt_path last` on a first run, as documented above.
    ".*there is no last checkpoint available.*",
    # Frozen encoders are in evaluation mode, also while the rest is trained.
    ".*module.s. in eval mode at the start of training.*",
    # `run` passes the arguments of this very process on, with its configs resolved.
    ".*args parameter is intended to run from within Python.*",
    # Deprecations inside Lightning's own calls of torch.
    ".*isinstance.treespec, LeafSpec.*",
    ".*The epoch parameter in `scheduler.step.*",
    # The language stages move their batches themselves (`transfer_batch_to_device`).
    ".*You have overridden `.*` in `LightningModule` but have passed in a `LightningDataModule`.*",
)


def _with_configs(argv: list[str]) -> list[str]:
    """The arguments with every --config resolved to a path, and with our defaults."""
    out: list[str] = []
    is_config = False
    for word in argv:
        if is_config:
            word = str(find_config(word))
        elif word.startswith("--config="):
            word = f"--config={find_config(word.removeprefix('--config='))}"
        is_config = word in ("--config", "-c")
        out.append(word)
    asks_help = "-h" in out or "--help" in out
    if not asks_help and not _gives(out, "--weights_only"):
        # Checkpoints are read as tensors only: a pickle can run any program.
        out.append("--weights_only=true")
    writes_results = any("ResultsWriter" in word for word in out)
    if out[:1] == ["test"] and writes_results and not _gives(out, "--verbose"):
        # Lightning's table cuts the names of figures off; `run` prints them whole.
        out.append("--verbose=false")
    return out


def _gives(words: Sequence[str], option: str) -> bool:
    return any(word.startswith(option) for word in words)


class MaviltCLI(LightningCLI):
    """LightningCLI with one folder per run and checkpoints that can be resumed."""

    claims: ExitStack  # what the running command holds: the lock of its folder, signal handlers

    def _instantiate_trainer(self, config: Any, callbacks: list[Any]) -> Trainer:
        """Give every run one folder, one TensorBoard history, and checkpoints to resume from."""
        chosen = self.config[self.subcommand]
        module_name = chosen.model.class_path.rsplit(".", 1)[-1].lower()
        root = Path(config["default_root_dir"] or f"runs/{module_name}")
        config["default_root_dir"] = str(root)
        fitting = self.subcommand == "fit"
        if config["logger"] in (None, True):
            # Without a version, so that a resumed run logs into the same folder. Validating or
            # testing alone must not append to the history of the training.
            config["logger"] = False
            if fitting:
                config["logger"] = TensorBoardLogger(
                    root, name="", version="tensorboard", default_hp_metric=False
                )
        _check_precision(config["precision"])
        given = [*(config["callbacks"] or []), *callbacks]
        if config["enable_progress_bar"] is not False and not _has(given, ProgressBar):
            callbacks = [*callbacks, StepProgressBar()]
        if fitting:
            callbacks = [*callbacks, *self._resume_callbacks(config, root, given)]
            files = BackgroundCheckpointIO() if chosen.checkpoint_async else VerifiedCheckpointIO()
            config["plugins"] = [*_as_list(config["plugins"]), files]
        trainer = self._build_trainer(config, callbacks)
        # Only now is the rank known. The other ranks of a job share the first one's claim.
        if fitting and trainer.is_global_zero:
            self.claims.enter_context(run_lock(root))
        return trainer

    def _build_trainer(self, config: Any, callbacks: list[Any]) -> Trainer:
        """Build the trainer; turn Lightning's errors about devices into one message."""
        try:
            return super()._instantiate_trainer(config, callbacks)
        except UserError:
            raise
        except (MisconfigurationException, ImportError, TypeError, ValueError) as error:
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise UserError(
                f"trainer: {reason} Found trainer.accelerator {config['accelerator']} and "
                f"trainer.devices {config['devices']} on a machine with "
                f"{torch.cuda.device_count() or 'no'} GPU; if they ask for more than it has, set "
                "--trainer.accelerator auto --trainer.devices auto"
            ) from error

    def _resume_callbacks(self, config: Any, root: Path, given: list[Any]) -> list[Callback]:
        """Callbacks that let a run be interrupted at any moment and resumed.

        A user's own `ModelCheckpoint` replaces ours.
        """
        chosen = self.config[self.subcommand]
        callbacks: list[Callback] = [RNGStates(), ResumePosition()]
        if config["logger"] is not False:
            callbacks += [LearningRateMonitor("step"), TensorBoardResume(root, config["logger"])]
        if config["enable_checkpointing"] is False or _has(given, ModelCheckpoint):
            return callbacks
        folder = root / "checkpoints"
        checkpoints = StepCheckpoints(folder, chosen.checkpoint_every, chosen.checkpoint_keep)
        callbacks.append(checkpoints)
        if chosen.checkpoint_best:
            callbacks.append(BestCheckpoint(folder, chosen.checkpoint_best))
        preemption = Preemption(checkpoints)
        # A recipe runs several commands in one process; the next one must not find this handler.
        self.claims.callback(preemption.restore_handlers)
        callbacks.append(preemption)
        return callbacks

    def _parse_ckpt_path(self) -> None:
        """Keep the config's settings.

        Lightning would replace them, even the class, by the checkpoint's hyperparameters.
        """

    def add_arguments_to_parser(self, parser: Any) -> None:
        """Add the options about checkpoints."""
        parser.add_argument(
            "--checkpoint_every", type=int, default=500, help="steps between checkpoints"
        )
        parser.add_argument(
            "--checkpoint_keep", type=int, default=2, help="number of the last checkpoints to keep"
        )
        parser.add_argument(
            "--checkpoint_async",
            type=bool,
            default=False,
            help="write them from a copy in memory while training continues",
        )
        parser.add_argument(
            "--checkpoint_best",
            type=str | None,
            default=None,
            help="keep best.ckpt too: min:METRIC or max:METRIC of a validation",
        )


def _check_precision(precision: Any) -> None:
    """Refuse weights in half precision: bfloat16 has 8 significant bits, float16 has 11.

    At a learning rate of 5e-6 an update is smaller than the last of them, so nothing is learned.
    """
    if str(precision) in ("bf16-true", "16-true"):
        raise UserError(
            f"trainer.precision: found {precision}, in which weights are kept to 3 digits or "
            "fewer, so the steps of a fine-tuning are lost; set it to bf16-mixed"
        )


def _has(callbacks: Sequence[Any], kind: type) -> bool:
    return any(isinstance(callback, kind) for callback in callbacks)


def _as_list(given: Any) -> list[Any]:
    """Lightning takes one plugin, several, or None."""
    if given is None:
        return []
    return [*given] if isinstance(given, (list, tuple)) else [given]


class FitParser(MaviltCLI):
    """The parser of `mavilt fit` alone: its constructor parses and then builds and runs nothing."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Only `fit`: parsers of the other three would take their time."""
        return {"fit": LightningCLI.subcommands()["fit"]}

    def parse_arguments(self, parser: Any, args: Any) -> None:
        """Parse, without Lightning's warning that the process has arguments of its own."""
        self.config = parser.parse_args(args)

    def _set_seed(self) -> None:
        """Parsing alone leaves the random state of the process as it is."""

    def instantiate_classes(self) -> None:
        """Build nothing: a model would read its backbone, a datamodule its corpora."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Run nothing."""


# Required arguments of the modules, empty, for a caller who does not name them. A config or an
# argument that follows replaces them; what another class does not take is dropped with it.
UNNAMED = (
    "--model=mavilt_pl.language.Stage1",
    "--model.backbone=",
    "--model.tokens=",
    "--data.corpora=[]",
)


def parse_fit_arguments(arguments: Sequence[str]) -> Namespace:
    """The settings of `mavilt fit` with all defaults filled in; no class is instantiated.

    Without a config the module is Stage 1.

    Raises:
        UserError: `mavilt fit` would refuse the arguments.
    """
    # Without this, jsonargparse prints its usage, two screens long, and exits.
    raises = {"exit_on_error": False}
    try:
        parsed = FitParser(
            LightningModule,
            CXRDataModule,
            subclass_mode_model=True,
            args=_with_configs(["fit", *UNNAMED, *arguments]),
            save_config_callback=None,
            seed_everything_default=0,
            parser_kwargs={**raises, "fit": raises},
        )
    except argparse.ArgumentError as error:
        raise UserError(_first_reason(str(error))) from None
    return parsed.config.fit


def _first_reason(message: str) -> str:
    """jsonargparse's message as one line.

    A setting of a module is refused by each type that `--model` may have. The reasons are nested by
    indentation; the first is the module's, the others only say that it is not None.
    """
    _, _, reasons = message.partition("Problem with given class_path ")
    if not reasons:
        return " ".join(message.split())
    module, _, reason = reasons.partition(":")
    reason = reason.split("\n    - ")[0]
    return f"model {module}: {' '.join(reason.split())}"


def run(argv: list[str]) -> int:
    """Run fit, validate or test; its exit status."""
    _silence_lightning(argv[0])
    # TF32 on GPUs that have it: products in float32 otherwise leave the tensor cores idle.
    torch.set_float32_matmul_precision("high")
    try:
        with ExitStack() as MaviltCLI.claims:
            done = MaviltCLI(
                LightningModule,
                CXRDataModule,
                subclass_mode_model=True,
                args=_with_configs(argv),
                save_config_callback=SaveConfigCallback,
                # A resumed run writes its config again, with what was changed for it.
                save_config_kwargs={"overwrite": True},
                seed_everything_default=0,
            )
    except PreemptedExit as preempted:
        return report_exit(preempted)
    except ValueError as error:
        reason = _innermost(error)
        if reason is not error and isinstance(reason, (UserError, ValueError)):
            raise UserError(str(reason)) from error
        raise
    last = Path(done.trainer.default_root_dir) / "checkpoints" / "last.ckpt"
    if argv[0] == "fit" and done.trainer.is_global_zero and last.exists():
        print(f"{done.trainer.global_step:,} steps: {last}")
    for callback in done.trainer.callbacks:
        # Other ranks gather their part of the figures and write no file.
        if isinstance(callback, ResultsWriter) and callback.path is not None:
            print_figures(callback.figures)
            print(f"{len(callback.figures)} figures: {callback.path}")
    return 0


def _silence_lightning(verb: str) -> None:
    for pattern in HARMLESS_WARNINGS:
        warnings.filterwarnings("ignore", message=pattern)
    if verb != "fit":
        # The callbacks that make a fit resumable are in its checkpoint, and not in a test.
        warnings.filterwarnings(
            "ignore", message=".*callbacks used to create the checkpoint need to be provided.*"
        )
    # Tips and lists of devices.
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)


def _innermost(error: BaseException) -> BaseException:
    """The first cause of an error.

    jsonargparse wraps what a module's constructor raises in a message with the whole configuration.
    """
    while error.__cause__ is not None:
        error = error.__cause__
    return error
