"""Training of the classifier of findings.

Shape legend: B batch, F findings.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from lightning import LightningModule
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc

from mavilt_pl.checkpoint import check_compatible
from mavilt_pl.encoders.findings import FindingsNet
from mavilt_pl.parallel.distributed import gather_lists
from mavilt_pl.ranges import NonNegativeFloat, PositiveFloat, Size, Sizes
from mavilt_pl.trainer.lr_schedule import OneCycle


class CXRClassifier(LightningModule):
    """Trains a `FindingsNet` on labelled radiographs.

    The data module needs `batch_kind: images` and `findings`. Labels that are uncertain or not
    mentioned are NaN and do not count.

    Args:
        findings: names of the outputs; the command line links them to the data's `findings`.
        image_size: side of the images in pixels.
        widths: channels of each level; the resolution halves between levels.
        learning_rate: peak of a one-cycle schedule of AdamW.
        weight_decay: of AdamW.
    """

    def __init__(
        self,
        findings: list[str],
        image_size: Size = 256,
        widths: Sizes = (16, 32, 48, 64),
        learning_rate: PositiveFloat = 3e-3,
        weight_decay: NonNegativeFloat = 1e-2,
    ):
        super().__init__()
        self.save_hyperparameters()
        self.net = FindingsNet(findings, widths)
        # Of this validation, by image: logits and labels [F].
        self.validated: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        """Refuse weights of another network."""
        check_compatible(checkpoint, self)

    def loss(self, batch: dict) -> tuple[Tensor, Tensor]:
        """Binary cross-entropy over the known labels, and the logits [B,F]."""
        labels_BF = batch["labels"]
        # Treating "not mentioned" as absent would teach the network what reports leave out.
        known_BF = ~labels_BF.isnan()
        logits_BF = self.net(batch["pixels"])
        # By a weight, not by a selection, whose size the host would wait for; and 0 for a batch
        # without a known label, where the mean of nothing is NaN.
        losses_BF = F.binary_cross_entropy_with_logits(
            logits_BF, labels_BF.nan_to_num(), reduction="none"
        )
        return (losses_BF * known_BF).sum() / known_BF.sum().clamp(min=1), logits_BF

    def training_step(self, batch: dict, index: int) -> Tensor:
        """The loss of a batch."""
        loss, _ = self.loss(batch)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: dict, index: int, dataloader_idx: int = 0) -> None:
        """Log the loss of a batch; keep its logits."""
        # `add_dataloader_idx=False`: the name already has the source.
        loss, logits_BF = self.loss(batch)
        # AUROC is not a mean over batches, so the logits of the whole validation are kept: F
        # numbers a study.
        rows = zip(batch["studies"], logits_BF.cpu(), batch["labels"].cpu())
        for study, logits_F, labels_F in rows:
            # By image: samplers repeat some, so that all ranks have the same number.
            self.validated[dataloader_idx, study["image_row"]] = logits_F, labels_F
        source = self.trainer.datamodule.names[dataloader_idx]
        self.log(
            f"val/{source}/loss",
            loss,
            sync_dist=True,
            batch_size=len(logits_BF),
            add_dataloader_idx=False,
        )

    def on_validation_epoch_end(self) -> None:
        """Log the AUROC of each finding and their mean."""
        # Of all ranks, on all ranks: a rank may have no case of a rare finding, and would wait
        # forever for the others if it did not log what they log.
        validated = dict(gather_lists([*self.validated.items()]))
        self.validated.clear()
        logits_BF = torch.stack([logits for logits, _ in validated.values()]).to(self.device)
        labels_BF = torch.stack([labels for _, labels in validated.values()]).to(self.device)
        areas = []
        for column, name in enumerate(self.net.findings):
            # Each finding has its own known studies.
            known_B = ~labels_BF[:, column].isnan()
            truth = labels_BF[known_B, column]
            if 0 < truth.sum() < len(truth):  # AUROC needs both classes
                area = binary_auroc(logits_BF[known_B, column], truth.int())
                self.log(f"val/auroc/{name}", area, sync_dist=True)
                areas.append(area)
        # A finding without both classes is missing from the mean, instead of counting as 0 or 0.5.
        if areas:
            self.log("val/auroc", torch.stack(areas).mean(), prog_bar=True, sync_dist=True)

    def test_step(self, batch: dict, index: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """The `logits` [B,F], which `ClassifierMetrics` scores."""
        return {"logits": self.net(batch["pixels"])}

    def configure_optimizers(self) -> Any:
        """AdamW with a one-cycle schedule."""
        h = self.hparams
        optimizer = torch.optim.AdamW(
            self.parameters(), lr=h["learning_rate"], weight_decay=h["weight_decay"]
        )
        # The schedule of a single step would divide by 0.
        steps = max(int(self.trainer.estimated_stepping_batches), 2)
        # One cycle reaches a usable φ within a few hundred steps; 320 steps left nodules to chance
        # on the demo, 480 did not (EXPERIMENTS.md).
        schedule = OneCycle(optimizer, h["learning_rate"], total_steps=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
