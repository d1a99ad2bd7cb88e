"""What all metric callbacks share: metrics per source and control, equal on any number of ranks."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from lightning import Callback, LightningModule, Trainer
from torchmetrics import Metric

from mavilt_pl.callbacks.observation import Observation
from mavilt_pl.data.collate import sample_key
from mavilt_pl.metrics.bootstrap import Estimate
from mavilt_pl.parallel.distributed import gather_lists
from mavilt_pl.ranges import NonNegativeInt

Sample = tuple[int, dict[str, Any]]  # key of the study, content


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
        self._samples: dict[str, list[Sample]] = {}  # of each source, on this rank
        # Of a test: what the model made of every study, of all ranks once it has ended.
        self.predictions: list[dict[str, Any]] = []
        # By source and control; empty while nothing is scored.
        # Separate for each source: figures of two hospitals are never averaged.
        self._metrics: dict[tuple[int, str | None], dict[str, Any]] = {}
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
            seen = Observation(
                trainer, pl_module, batch, outputs, control, metrics, dataloader_idx, filler
            )
            self.update_metrics(seen)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compute, log and keep the figures and predictions."""
        if not self._metrics:
            return
        self.figures = self._finish(trainer, pl_module, "test")
        gathered = gather_lists(self.predictions)
        # Not in the order of ranks, which would depend on their number.
        self.predictions = sorted(gathered, key=_place)
        self.examples = self._gather_samples()

    def _start(
        self, trainer: Trainer, module: LightningModule, controls: tuple[str | None, ...]
    ) -> None:
        """Make new metrics for all sources."""
        # New metrics in each evaluation instead of `reset`: sources and controls differ between
        # validation and test.
        sources = range(len(trainer.datamodule.names))
        self.examples.clear()
        self._samples = {}
        self.predictions = []
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
                    protocol = metric.protocol_of(name)
                    figures.append(
                        value.as_figure(self.task, names[source], name, protocol, control)
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

    # Predictions, and samples for the page.

    def record(self, observation: Observation, study: Mapping[str, Any], **content: Any) -> None:
        """Keep what the model made of a study in a test; not under a control."""
        if not observation.trainer.testing or observation.control is not None:
            return
        if observation.is_filler:
            return
        # Identifiers are patient data and stay out of files that are shared.
        named = {
            "task": self.task,
            "source": observation.source_name,
            "study": study["hidden_name"],
            "patient": study["hidden_patient"],
            "attributes": study["attributes"],
        }
        self.predictions.append({**named, **content})

    def sampled_rows(self, observation: Observation) -> list[int]:
        """Rows of a batch whose studies are samples, as far as the test has come.

        Samples are the studies of the smallest keys, which are as good as random and the same in
        every test: neither the first ones nor the best ones.
        """
        # Samples show the model, not its negative control.
        if observation.control is not None or observation.is_filler:
            return []
        if not observation.trainer.testing:
            return []
        kept = self._samples.get(observation.source_name, [])
        keys = sorted([*observation.sample_keys, *(key for key, _ in kept)])[: self.samples]
        return [row for row, key in enumerate(observation.sample_keys) if key in keys]

    def add_sample(
        self, observation: Observation, study: Mapping[str, Any], **content: Any
    ) -> None:
        """Keep a sample of a study in place of the one of the largest key."""
        # Identifiers are patient data and stay out of pages.
        named = {"source": observation.source_name, "study": study["hidden_name"]}
        kept = self._samples.setdefault(observation.source_name, [])
        kept.append((sample_key(study["study"]), {**named, **content}))
        self._samples[observation.source_name] = _smallest(kept, self.samples)

    def _gather_samples(self) -> list[dict[str, Any]]:
        """The samples of all sources, of all ranks."""
        by_source: dict[str, list[Sample]] = {}
        for source, kept in gather_lists([*self._samples.items()]):
            by_source.setdefault(source, []).extend(kept)
        examples = []
        for source in sorted(by_source):
            examples += [example for _, example in _smallest(by_source[source], self.samples)]
        return examples


def _place(prediction: Mapping[str, Any]) -> tuple[str, str, str]:
    """Where a prediction stands in the file; each view of a study may have one."""
    return prediction["source"], prediction["study"], prediction["attributes"].get("view", "")


def _smallest(samples: list[Sample], number: int) -> list[Sample]:
    """The samples of the smallest keys, in their order."""
    return sorted(samples, key=lambda sample: sample[0])[:number]


def _compute(metric: Metric) -> dict[str, Estimate]:
    """The figures of a metric on all ranks."""
    with warnings.catch_warnings():
        # A rank may have had no case.
        warnings.filterwarnings("ignore", message=".*called before the ``update``.*")
        return metric.compute()
