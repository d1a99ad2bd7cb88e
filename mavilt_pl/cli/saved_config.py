"""RUN/config.yaml: the settings of a run's training, and of nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback

from mavilt_pl.parallel.atomic_write import atomic_write_text
from mavilt_pl.parallel.own_files import check_replaceable

MARK = "# lightning.pytorch=="  # LightningCLI's first line


class SavedConfig(SaveConfigCallback):
    """Writes the settings of `fit` to RUN/config.yaml, and those of `test` to RUN/test.

    Lightning would write both to one place, so that a test would replace the training's.
    """

    def __init__(self, parser: Any, config: Any, **options: Any):
        super().__init__(parser, config, save_to_log_dir=False, **options)

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the file, on the first rank only.

        A resumed run writes it again, with what was changed for it.

        Raises:
            UserError: a file of somebody else is there.
        """
        root = Path(trainer.default_root_dir)
        folders = {"fit": root, "test": root / "test"}
        # A validation leaves nothing behind.
        if stage not in folders:
            return
        path = folders[stage] / self.config_filename
        path.parent.mkdir(parents=True, exist_ok=True)
        check_replaceable(path, MARK)
        atomic_write_text(path, self.parser.dump(self.config, skip_none=False))
