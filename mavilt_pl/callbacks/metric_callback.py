"""What all metric callbacks share: metrics per source and control, equal on any number of ranks.

Shape legend: B studies of a batch, H W height and width in pixels, N codes of an image.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torchmetrics import Metric

from mavilt_pl.data.collate import sample_key
from mavilt_pl.data.pixels import to_float, to_uint8
from mavilt_pl.data.records import Side
from mavilt_pl.metrics.bootstrap import Estimate
from mavilt_pl.ranges import NonNegativeInt

SHUFFLED = "shuffled_images"  # the negative control: another patient's images


def visible_images(batch: Mapping[str, Any], control: str | None = None) -> Any:
    """What a language module sees of each study: its codes [B,N], or the codes of each view.

    Args:
        batch: of the language stages; it has `views` if the data bring several views.
        control: None for the study's own images, `SHUFFLED` for another patient's.
    """
    # Control images come from the data module, which never takes those of the same patient.
    prefix = "" if control is None else "control_"
    if f"{prefix}views" in batch:
        return batch[f"{prefix}views"]
    return batch[f"{prefix}codes"]


def select_rows(batch: Mapping[str, Any], rows: Sequence[int]) -> dict[str, Any]:
    """The studies of a batch with these row numbers, in every key that has one entry per study."""
    selected: dict[str, Any] = {}
    for key, value in batch.items():
        # They cannot be selected by study, and scoring does not need them.
        if key == "packed":  # sequences of several studies each
            continue
        if isinstance(value, Tensor):
            selected[key] = value[list(rows)]
        else:
            selected[key] = [value[row] for row in rows]
    return selected


def original_pixels(
    trainer: Trainer,
    source: int,
    studies: Iterable[Mapping[str, Any]],
    views: Sequence[Side] | None = None,
) -> Tensor:
    """Prepared images of studies, float32 [B,1,H,W] in [-1, 1].

    Args:
        trainer: with a `CXRDataModule`.
        source: number of the studies' source.
        studies: as in a batch.
        views: the view of each study, if the data bring several views.
    """
    # The only way from a language batch back to pixels: the batch has codes and row numbers.
    corpus = trainer.datamodule.corpora[source]
    if views is None:
        rows = [study["image_row"] for study in studies]
    else:
        rows = [study["view_rows"][view] for study, view in zip(studies, views)]
    return to_float(np.stack([corpus.pixels(row) for row in rows]))[:, None]


@dataclass(frozen=True)
class Observation:
    """A batch of one source, to be scored under one control.

    Args:
        trainer: with a `CXRDataModule`.
        module: that is validated or tested.
        batch: the batch.
        outputs: what the module's step returned.
        control: None, or the name of a negative control.
        metrics: of this source and control, to be updated.
        source: number of the source.
    """

    trainer: Trainer
    module: Any
    batch: Mapping[str, Any]
    outputs: Any
    control: str | None
    metrics: Mapping[str, Metric]
    source: int

    @property
    def studies(self) -> list[dict[str, Any]]:
        """The studies of the batch."""
        return self.batch["studies"]

    @property
    def patients(self) -> list[str]:
        """The patient of each study."""
        return self.batch["patient"]

    @property
    def findings(self) -> list[str]:
        """The findings that the data are labelled with."""
        return list(self.trainer.datamodule.findings)

    @property
    def source_name(self) -> str:
        """Name of the source."""
        return self.trainer.datamodule.names[self.source]

    @property
    def sample_keys(self) -> list[int]:
        """Seed of each study, so that random decoding does not depend on the batch."""
        return [sample_key(study["study"]) for study in self.studies]

    @property
    def images(self) -> Any:
        """What a language module may see of each study under this control."""
        return visible_images(self.batch, self.control)

    def select(self, rows: Sequence[int]) -> Observation:
        """The same for some studies of the batch; without the module's outputs."""
        return replace(self, batch=select_rows(self.batch, rows), outputs=None)

    def with_text(self) -> Observation:
        """The same for the studies that have a text; others come with questions only."""
        rows = [row for row, text in enumerate(self.batch["text"]) if text.strip()]
        return self.select(rows)

    def original_pixels(self, views: Sequence[Side] | None = None) -> Tensor:
        """The studies' own images, float32 [B,1,H,W] in [-1, 1]; see `original_pixels`."""
        return original_pixels(self.trainer, self.source, self.studies, views)

    def original_images(self) -> np.ndarray:
        """The studies' own images, uint8 [B,H,W]."""
        return to_uint8(self.original_pixels())


class MetricCallback(Callback):
    """Computes the figures of one task over validation and test sets, one source at a time.

    Args:
        validate: number of studies of each source that a validation scores; 0 for none. A test
            scores every study.
        samples: number of studies of each source that are kept as samples for the page.
    """

    task = ""
    controls: tuple[str | None, ...] = (None,)

    def __init__(self, validate: NonNegativeInt = 0, samples: NonNegativeInt = 8):
        self.validate, self.samples = validate, samples
        self.figures: list[dict[str, Any]] = []
        self.examples: list[dict[str, Any]] = []
        # By source and control; empty while nothing is scored.
        # Separate for each source: figures of two hospitals are never averaged.
        self._metrics: dict[tuple[int, str | None], dict[str, Metric]] = {}
        self._remaining: dict[int, int] = {}  # studies of each source still to score

    # Implemented by subclasses.

    def metrics(self, trainer: Trainer, module: Any) -> dict[str, Metric]:
        """New metrics for one source and control, under any names."""
        raise NotImplementedError

    def update_metrics(self, observation: Observation) -> None:
        """Update the metrics with a batch."""
        raise NotImplementedError

    # Lightning's hooks.

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make new metrics, unless Lightning only checks that validation runs."""
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
        """Score the batch if more studies of its source are to be scored."""
        # A validation in training scores only a part, since generation is slow.
        if self._metrics and self._remaining[dataloader_idx] > 0:
            # All ranks score a batch of this size at the same time.
            # Counted for all ranks together, so all stop at the same batch.
            self._remaining[dataloader_idx] -= len(batch["studies"]) * trainer.world_size
            metrics = self._metrics[dataloader_idx, None]
            self.update_metrics(
                Observation(trainer, pl_module, batch, outputs, None, metrics, dataloader_idx)
            )

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compute and log the figures."""
        if self._metrics:
            self._finish(trainer, pl_module, "val")

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make new metrics."""
        # If the config and the command line each have one of a kind, the last one tests.
        # A config may have one for validation, and a recipe's test adds its own.
        same = [callback for callback in trainer.callbacks if type(callback) is type(self)]
        if same[-1] is self:
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
        """Score the batch under every control."""
        if not self._metrics:
            return
        loaders: Any = trainer.test_dataloaders
        filler = loaders[dataloader_idx].sampler.is_filler
        for control in self.controls:
            metrics = self._metrics[dataloader_idx, control]
            if filler:
                # Scored and thrown away: generation may need every rank, and the study is counted
                # on another.
                metrics = self._new_metrics(trainer, pl_module)
            self.update_metrics(
                Observation(trainer, pl_module, batch, outputs, control, metrics, dataloader_idx)
            )

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compute, log and keep the figures."""
        self.figures = self._finish(trainer, pl_module, "test")

    def _start(
        self, trainer: Trainer, module: LightningModule, controls: tuple[str | None, ...]
    ) -> None:
        """Make new metrics for all sources."""
        # New metrics in each evaluation instead of `reset`: sources and controls differ between
        # validation and test.
        sources = range(len(trainer.datamodule.names))
        self.examples.clear()
        self._remaining = dict.fromkeys(sources, self.validate)
        self._metrics = {}
        for source in sources:
            for control in controls:
                self._metrics[source, control] = self._new_metrics(trainer, module)

    def _new_metrics(self, trainer: Trainer, module: LightningModule) -> dict[str, Metric]:
        metrics = self.metrics(trainer, module)
        for metric in metrics.values():
            # Metrics of a callback are no submodules of the module, so Lightning does not move
            # them.
            metric.to(module.device)
        return metrics

    def _finish(
        self, trainer: Trainer, module: LightningModule, stage: str
    ) -> list[dict[str, Any]]:
        """Compute and log all figures; log none of single findings."""
        names = trainer.datamodule.names
        figures = []
        # Every rank walks through the metrics in the same order: `compute` gathers from all of
        # them.
        for (source, control), metrics in self._metrics.items():
            for metric in metrics.values():
                for name, value in sorted(_compute(metric).items()):
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
                    # A curve for each of a dozen findings and sources would bury the others.
                    if "/" not in name:
                        tag = f"{stage}/{names[source]}/{self.task}/{name}"
                        if control:
                            tag += f"/{control}"
                        # All ranks have the same value already.
                        module.log(tag, value.value, rank_zero_only=True)
        # Empty, so a later stage does not add to these.
        self._metrics = {}
        return figures

    # Samples for the page.

    def wants_sample(self, observation: Observation) -> bool:
        """Whether more samples of this source are to be kept."""
        # Samples show the model, not its negative control.
        if observation.control is not None:
            return False
        name = observation.source_name
        num_kept = sum(example["source"] == name for example in self.examples)
        return num_kept < self.samples

    def add_sample(
        self, observation: Observation, study: Mapping[str, Any], **content: Any
    ) -> None:
        """Keep a sample of a study, unless there are enough of its source."""
        if not self.wants_sample(observation):
            return
        # Identifiers are patient data and stay out of pages.
        named = {"source": observation.source_name, "study": study["hidden_name"]}
        self.examples.append({**named, **content})


def _compute(metric: Metric) -> dict[str, Estimate]:
    """The figures of a metric on all ranks."""
    with warnings.catch_warnings():
        # A rank may have had no case.
        warnings.filterwarnings("ignore", message=".*called before the ``update``.*")
        return metric.compute()
