"""LightningCLI for every module: `mavilt fit --config stage1.yaml`, from any folder.

A config that is not a file here is looked up among the shipped ones. Each run keeps everything
under `trainer.default_root_dir` (default `runs/<module>`): `checkpoints/last.ckpt`, the logs in
`tensorboard/`, and its config. The first run and the hundredth use the same command: `--ckpt_path
last` starts anew where there is nothing to resume.
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


def _with_configs(argv: list[str]) -> list[str]:
    """The arguments with every --config resolved to a path."""
    out, following = [], False
    for word in argv:
        if following:
            word = str(find_config(word))
        elif word.startswith("--config="):
            word = f"--config={find_config(word.removeprefix('--config='))}"
        following = word in ("--config", "-c")
        out.append(word)
    if not any(word.startswith("--weights_only") for word in out) and not {"-h", "--help"} & set(
        out
    ):
        out.append("--weights_only=true")  # checkpoints are read as tensors only
    if (
        "test" in out[:1]
        and any("ResultsWriter" in word for word in out)
        and not any("--verbose" in word for word in out)
    ):
        out.append("--verbose=false")  # it prints the figures itself, and with their whole names
    return out


class MaviltCLI(LightningCLI):
    """LightningCLI with one folder per run and checkpoints that can be resumed."""

    claims: ExitStack  # what the running command holds: its folder

    def _instantiate_trainer(self, config: Any, callbacks: list[Any]) -> Trainer:
        """Give every run one folder, one TensorBoard history, and a `last.ckpt` that a resumed run
        finds again.
        """
        chosen = self.config[self.subcommand]
        name = chosen.model.class_path.rsplit(".", 1)[-1].lower()
        root = Path(config["default_root_dir"] or f"runs/{name}")
        config["default_root_dir"] = str(root)
        fitting = self.subcommand == "fit"
        if config["logger"] in (None, True):
            config["logger"] = (
                TensorBoardLogger(root, name="", version="tensorboard", default_hp_metric=False)
                if fitting
                else False
            )
        if str(config["precision"]) in ("bf16-true", "16-true"):
            raise UserError(
                f"trainer.precision: found {config['precision']}, in which weights are kept to 3 "
                f"digits or fewer, so that the steps of a "
                "fine-tuning are lost; set it to bf16-mixed"
            )
        given = [*(config["callbacks"] or []), *callbacks]
        if config["enable_progress_bar"] is not False and not any(
            isinstance(c, ProgressBar) for c in given
        ):
            callbacks = [*callbacks, StepProgressBar()]
        if fitting:
            callbacks = [*callbacks, *self._lasting(config, root, given)]
            files = BackgroundCheckpointIO() if chosen.checkpoint_async else VerifiedCheckpointIO()
            config["plugins"] = [*self._plugins(config["plugins"]), files]
        try:
            trainer = super()._instantiate_trainer(config, callbacks)
        except UserError:  # says what it has to say
            raise
        except (MisconfigurationException, ImportError, TypeError, ValueError) as error:
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise UserError(
                f"trainer: {reason} Found trainer.accelerator {config['accelerator']} and "
                f"trainer.devices {config['devices']} on a machine with "
                f"{torch.cuda.device_count() or 'no'} GPU; where they are more than it has, set "
                f"--trainer.accelerator auto "
                "--trainer.devices auto"
            ) from error
        if fitting and trainer.is_global_zero:
            self.claims.enter_context(run_lock(root))
        return trainer

    def _lasting(self, config: Any, root: Path, given: list[Any]) -> list[Callback]:
        """What lets a run be broken off at any moment and go on."""
        chosen = self.config[self.subcommand]
        lasting: list[Callback] = [RNGStates(), ResumePosition()]
        if config["logger"] is not False:
            lasting += [LearningRateMonitor("step"), TensorBoardResume(root, config["logger"])]
        if config["enable_checkpointing"] is not False and not any(
            isinstance(c, ModelCheckpoint) for c in given
        ):
            keep = StepCheckpoints(
                root / "checkpoints", chosen.checkpoint_every, chosen.checkpoint_keep
            )
            best = (
                [BestCheckpoint(root / "checkpoints", chosen.checkpoint_best)]
                if chosen.checkpoint_best
                else []
            )
            preemption = Preemption(keep)
            self.claims.callback(preemption.restore_handlers)
            lasting += [keep, *best, preemption]
        return lasting

    @staticmethod
    def _plugins(given: Any) -> list[Any]:
        return [] if given is None else [*given] if isinstance(given, (list, tuple)) else [given]

    def _parse_ckpt_path(self) -> None:
        """What the config says holds. (Lightning would put the checkpoint's hyperparameters, even
        its class, over it.)
        """

    def add_arguments_to_parser(self, parser: Any) -> None:
        """The options about checkpoints."""
        parser.add_argument(
            "--checkpoint_every", type=int, default=500, help="steps between checkpoints"
        )
        parser.add_argument(
            "--checkpoint_keep", type=int, default=2, help="how many of them stay: the last so many"
        )
        parser.add_argument(
            "--checkpoint_async",
            type=bool,
            default=False,
            help="write them while training goes on (a copy in memory)",
        )
        parser.add_argument(
            "--checkpoint_best",
            type=str | None,
            default=None,
            help="keep best.ckpt too: min:METRIC or max:METRIC of a validation",
        )


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
    """fit, validate or test."""
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    for harmless in (
        ".*Checkpoint directory .* exists and is not empty.*",
        # `--ckpt_path last` on a first run, as documented above
        ".*there is no last checkpoint available.*",
        ".*module.s. in eval mode at the start of training.*",  # frozen encoders
        ".*args parameter is intended to run from within Python.*",
        ".*isinstance.treespec, LeafSpec.*",
        ".*You have overridden `.*` in `LightningModule` but have passed in a "
        "`LightningDataModule`.*",
        ".*The epoch parameter in `scheduler.step.*",
    ):
        warnings.filterwarnings("ignore", message=harmless)
    if argv[0] != "fit":  # what lets a fit be broken off is not wanted here
        warnings.filterwarnings(
            "ignore", message=".*callbacks used to create the checkpoint need to be provided.*"
        )
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(
        logging.WARNING
    )  # tips and device lists
    torch.set_float32_matmul_precision("high")
    try:
        with ExitStack() as MaviltCLI.claims:
            done = MaviltCLI(
                LightningModule,
                CXRDataModule,
                subclass_mode_model=True,
                args=_with_configs(argv),
                save_config_callback=SaveConfigCallback,
                save_config_kwargs={"overwrite": True},
                seed_everything_default=0,
            )
    except PreemptedExit as preempted:
        return report_exit(preempted)
    except ValueError as error:
        # jsonargparse wraps what a module's constructor raises in the whole configuration; the
        # reason is at the bottom.
        reason: BaseException = error
        while reason.__cause__ is not None:
            reason = reason.__cause__
        if reason is not error and isinstance(reason, (UserError, ValueError)):
            raise UserError(str(reason)) from error
        raise
    last = Path(done.trainer.default_root_dir) / "checkpoints" / "last.ckpt"
    if argv[0] == "fit" and done.trainer.is_global_zero and last.exists():
        print(f"{done.trainer.global_step:,} steps: {last}")
    for callback in done.trainer.callbacks:
        if isinstance(callback, ResultsWriter) and callback.path is not None:
            print_figures(callback.figures)
            print(f"{len(callback.figures)} figures: {callback.path}")
    return 0
