"""A batch of one source under one control, as the metric callbacks see it.

Shape legend: B studies of a batch, H W height and width in pixels, N codes of an image.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from lightning import Trainer
from torch import Tensor
from torchmetrics import Metric

from mavilt_pl.data.collate import sample_key
from mavilt_pl.data.pixels import to_float, to_uint8
from mavilt_pl.data.records import Side

# Controls: another patient's images; for reports, one text for all images.
SHUFFLED = "shuffled_images"
CONSTANT = "constant_report"
# The report of the training study whose image is most alike; the most frequent answer.
RETRIEVED = "retrieved_report"
MAJORITY = "majority_answer"
# No control but a ceiling: the reference itself, as the labeller of reports reads it.
REFERENCE = "reference_report"


def visible_images(batch: Mapping[str, Any], control: str | None = None) -> Any:
    """What a language module sees of each study: its codes [B,N], or the codes of each view.

    Args:
        batch: of the language stages; it has `views` if the data bring several views.
        control: None for the study's own images, `SHUFFLED` for another patient's.
    """
    # Control images come from the data module, which never takes those of the same patient.
    # A constant report looks at no image, so only one control needs other ones.
    prefix = "" if control is None else "control_"
    if f"{prefix}views" in batch:
        return batch[f"{prefix}views"]
    return batch[f"{prefix}codes"]


def select_rows(batch: Mapping[str, Any], rows: Sequence[int]) -> dict[str, Any]:
    """The studies of a batch with these row numbers, in every key that has one entry per study."""
    selected: dict[str, Any] = {}
    for key, value in batch.items():
        # They cannot be selected by study, and scoring does not need them.
        if key in ("packed", "prompt_counts"):  # of the whole batch
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
        # A study of one view: its image is a row of the pixel store.
        rows = [study["image_row"] for study in studies]
    else:
        rows = [study["view_rows"][view] for study, view in zip(studies, views)]
    return to_float(np.stack([corpus.pixels(row) for row in rows]))[:, None]


def judged_images(
    findings: Sequence[str], logits: Mapping[str, Tensor], labels_BF: Tensor
) -> list[dict[str, Any]]:
    """What a judge made of each image, as predictions.jsonl keeps it.

    Args:
        findings: F names.
        logits: [B,F] by kind of image.
        labels_BF: 1, 0 or nan.

    Returns:
        Of each image its `logits` by kind and finding, and its `truths`, 1 or 0 by finding.
    """
    judged = []
    for row, labels_F in enumerate(labels_BF.tolist()):
        of_image = {}
        for kind, logits_BF in logits.items():
            of_image[kind] = dict(zip(findings, logits_BF[row].tolist()))
        # nan is not known, and JSON has no nan.
        truths = {name: label for name, label in zip(findings, labels_F) if label == label}
        judged.append({"logits": of_image, "truths": truths})
    return judged


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
        is_filler: the batch is a copy that does not count, see `data.samplers`.
    """

    trainer: Trainer
    module: Any
    batch: Mapping[str, Any]
    outputs: Any
    control: str | None
    metrics: Mapping[str, Metric]
    source: int
    is_filler: bool = False

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
        # White space alone is no text to compare with.
        rows = [row for row, text in enumerate(self.batch["text"]) if text.strip()]
        return self.select(rows)

    def original_pixels(self, views: Sequence[Side] | None = None) -> Tensor:
        """The studies' own images, float32 [B,1,H,W] in [-1, 1]; see `original_pixels`."""
        return original_pixels(self.trainer, self.source, self.studies, views)

    @property
    def first_views(self) -> list[Side] | None:
        """The first view of each study, frontal before lateral; None if data bring one image."""
        views = self.batch.get("views")
        return None if views is None else [next(iter(of_study)) for of_study in views]

    def original_images(self) -> np.ndarray:
        """The studies' own images, uint8 [B,H,W]."""
        return to_uint8(self.original_pixels())
