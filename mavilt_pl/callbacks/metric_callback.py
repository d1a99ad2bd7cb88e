"""What every metric callback shares: one set of metrics for each source and control, equal on any
number of processes.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torchmetrics import Metric

from mavilt_pl.data.pixels import to_float
from mavilt_pl.data.records import Side
from mavilt_pl.metrics.bootstrap import Estimate

SHUFFLED = "shuffled_images"


def hidden_name(study: str, salt: str) -> str:
    """A study's name for logs and pages: a salted hash, the same within a corpus."""
    return hashlib.sha256(f"{salt}/{study}".encode()).hexdigest()[:10]


def shown(batch: Mapping[str, Any], control: str | None = None) -> Any:
    """What a language module is shown of each study: codes [B,N] or, where the data bring them,
    each view's; for the control, another patient's.
    """
    stranger = "" if control is None else "stranger_"
    return batch.get(f"{stranger}views", batch[f"{stranger}codes"])


def originals(
    trainer: Trainer,
    studies: Sequence[Mapping[str, Any]],
    source: int,
    views: Sequence[Side] | None = None,
) -> Tensor:
    """The prepared images of studies of a source, float32 [B,1,H,W] in [-1,1]; with several views
    (`data.each_view`), of the named one of each.
    """
    corpus = trainer.datamodule.corpora[source]  # type: ignore[attr-defined]
    rows = [study["image_row"] for study in studies]
    if views is not None:
        rows = [study["view_rows"][view] for study, view in zip(studies, views)]
    return to_float(np.stack([corpus.pixels(row) for row in rows]))[:, None]


class MetricCallback(Callback):
    """Computes figures of one task over validation and test sets, one source at a time.

    Args:
        validate: how many studies of each source are scored in each validation; 0 leaves validation
            alone. In the test every study is.
        samples: how many studies of each source are kept as samples for the page.
    """

    task = ""
    controls: tuple[str | None, ...] = (None,)

    def __init__(self, validate: int = 0, samples: int = 8):
        self.validate, self.samples = validate, samples
        self.figures: list[dict[str, Any]] = []
        self.examples: list[dict[str, Any]] = []
        self._open: dict[tuple[int, str | None], dict[str, Metric]] = {}
        self._left: dict[int, int] = {}

    # What a subclass says.

    def metrics(self, trainer: Trainer, module: Any) -> dict[str, Metric]:
        """Fresh metrics for one source and control, by any name."""
        raise NotImplementedError

    def update_metrics(
        self,
        trainer: Trainer,
        module: Any,
        batch: dict,
        outputs: Any,
        control: str | None,
        metrics: Mapping[str, Metric],
        source: int,
    ) -> None:
        """Update the metrics with a batch."""
        raise NotImplementedError

    # Lightning's hooks.

    def _start(
        self, trainer: Trainer, module: LightningModule, controls: tuple[str | None, ...]
    ) -> None:
        names = trainer.datamodule.names  # type: ignore[attr-defined]
        self.examples.clear()
        self._left = dict.fromkeys(range(len(names)), self.validate)
        self._open = {
            (source, control): {
                name: metric.to(module.device)
                for name, metric in self.metrics(trainer, module).items()
            }
            for source in range(len(names))
            for control in controls
        }

    def _finish(
        self, trainer: Trainer, module: LightningModule, stage: str
    ) -> list[dict[str, Any]]:
        names = trainer.datamodule.names  # type: ignore[attr-defined]
        figures = []
        for (source, control), metrics in self._open.items():
            for metric in metrics.values():
                with warnings.catch_warnings():
                    warnings.filterwarnings(
                        "ignore", message=".*called before the ``update``.*"
                    )  # a rank without cases
                    found: dict[str, Estimate] = metric.compute()
                for name, value in sorted(found.items()):
                    figures.append(
                        {
                            "task": self.task,
                            "source": names[source],
                            "metric": name,
                            **value._asdict(),
                            "protocol": metric.protocol,
                            "control": control,
                        }
                    )
                    if "/" not in name:
                        tag = f"{stage}/{names[source]}/{self.task}/{name}" + (
                            f"/{control}" if control else ""
                        )
                        module.log(tag, value.value, rank_zero_only=True)
        self._open = {}
        return figures

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.validate and not trainer.sanity_checking:
            self._start(trainer, pl_module, (None,))

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self._open and self._left[dataloader_idx] > 0:
            self._left[dataloader_idx] -= len(batch["studies"]) * trainer.world_size
            self.update_metrics(
                trainer,
                pl_module,
                batch,
                outputs,
                None,
                self._open[dataloader_idx, None],
                dataloader_idx,
            )

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._open:
            self._finish(trainer, pl_module, "val")

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Of two of a kind, one from the config and one from the command line, the last one tests.
        if [callback for callback in trainer.callbacks if type(callback) is type(self)][-1] is self:  # type: ignore[attr-defined]
            self._start(trainer, pl_module, self.controls)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        for control in self.controls if self._open else ():
            self.update_metrics(
                trainer,
                pl_module,
                batch,
                outputs,
                control,
                self._open[dataloader_idx, control],
                dataloader_idx,
            )

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.figures = self._finish(trainer, pl_module, "test")

    # For samples.

    def wants_sample(self, trainer: Trainer, source: int) -> bool:
        name = trainer.datamodule.names[source]  # type: ignore[attr-defined]
        return sum(example["source"] == name for example in self.examples) < self.samples

    @staticmethod
    def sample(
        trainer: Trainer, study: Mapping[str, Any], source: int, **rest: Any
    ) -> dict[str, Any]:
        corpus = trainer.datamodule.corpora[source]  # type: ignore[attr-defined]
        return {
            "source": corpus.name,
            "study": hidden_name(study["study"], corpus.fingerprint),
            **rest,
        }
