"""Parse the arguments of `mavilt fit` without training: what `mavilt plan` estimates."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from jsonargparse import Namespace
from lightning import LightningModule
from lightning.pytorch.cli import LightningCLI

from mavilt_pl.cli.fit_arguments import complete_arguments
from mavilt_pl.cli.fit_checks import check_ranges
from mavilt_pl.cli.setting_errors import first_reason
from mavilt_pl.cli.training import MaviltCLI, parser_options
from mavilt_pl.data.datamodule import CXRDataModule
from mavilt_pl.errors import UserError


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

    def before_instantiate_classes(self) -> None:
        """Check the ranges only: an estimate needs no data."""
        check_ranges(self.config["fit"])

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
    # Before every config, which may name them.
    words = complete_arguments(["fit", *arguments])
    try:
        parsed = FitParser(
            LightningModule,
            CXRDataModule,
            subclass_mode_model=True,
            args=["fit", *UNNAMED, *words[1:]],
            save_config_callback=None,
            seed_everything_default=0,
            parser_kwargs=parser_options("fit"),
        )
    except argparse.ArgumentError as error:
        raise UserError(first_reason(str(error))) from None
    return parsed.config.fit
