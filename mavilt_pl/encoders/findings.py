"""A small convolutional classifier of findings: the chest-radiograph encoder that can be trained
anywhere.

It serves three ends: features for the tokenizer's clinical terms, features for the Fréchet
distance, and a judge of whether a finding is still there on a reconstruction or drawn on demand.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from lightning import LightningModule
from torch import Tensor, nn
from torchmetrics.functional.classification import binary_auroc

from mavilt_pl.checkpoint import check_compatible


def _block(inside: int, outside: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inside, outside, 3, stride, 1, bias=False),
        nn.BatchNorm2d(outside),
        nn.ReLU(inplace=True),
    )


class FindingsNet(nn.Module):
    """Pixels [B,1,H,W] in [-1,1] → feature maps → logits [B,F], one a finding.

    Mean and maximum are pooled side by side: a large heart is a mean, a nodule is a maximum.
    """

    def __init__(self, findings: Sequence[str], widths: Sequence[int] = (16, 32, 48, 64)):
        super().__init__()
        self.findings = tuple(findings)
        layers, inside = [], 1
        for level, wide in enumerate(widths):
            stride = 1 if level == 0 else 2
            first = _block(inside, wide, stride)
            layers.append(nn.Sequential(first, _block(wide, wide, 1)) if level else first)
            inside = wide
        self.levels = nn.ModuleList(layers)
        self.width = 2 * inside
        self.head = nn.Linear(self.width, len(self.findings))

    def maps(self, pixels_BCHW: Tensor) -> list[Tensor]:
        """Feature maps of each level, [B,C_l,H/2^l,W/2^l]."""
        maps, x = [], pixels_BCHW
        for level in self.levels:
            x = level(x)
            maps.append(x)
        return maps

    def pool(self, map_BCHW: Tensor) -> Tensor:
        """Mean and maximum of each channel, [B,2C]."""
        return torch.cat([map_BCHW.mean((2, 3)), map_BCHW.amax((2, 3))], 1)

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        return self.head(self.pool(self.maps(pixels_BCHW)[-1]))


class CXRClassifier(LightningModule):
    """Trains a `FindingsNet` on labelled radiographs (`batch_kind: images`, `findings:` set in the
    data). A label that is uncertain or not mentioned does not count.

    Args:
        findings: names of the outputs; linked to the data's `findings` by the command line.
        image_size: side of the pixels it is trained on.
        widths: channels of each level; the resolution halves between levels.
        learning_rate: peak of a one-cycle schedule of AdamW.
    """

    def __init__(
        self,
        findings: list[str],
        image_size: int = 256,
        widths: Sequence[int] = (16, 32, 48, 64),
        learning_rate: float = 3e-3,
        weight_decay: float = 1e-2,
    ):
        super().__init__()
        self.save_hyperparameters()
        self.net = FindingsNet(findings, widths)
        self.seen: list[tuple[Tensor, Tensor]] = []

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        check_compatible(checkpoint, self)

    def loss(self, batch: dict) -> tuple[Tensor, Tensor]:
        labels_BF = batch["labels"]
        known = ~labels_BF.isnan()
        logits_BF = self.net(batch["pixels"])
        loss = F.binary_cross_entropy_with_logits(logits_BF[known], labels_BF[known])
        return loss, logits_BF

    def training_step(self, batch: dict, index: int) -> Tensor:
        loss, _ = self.loss(batch)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: dict, index: int, dataloader_idx: int = 0) -> None:
        loss, logits = self.loss(batch)
        self.seen.append((logits, batch["labels"]))
        source = self.trainer.datamodule.names[dataloader_idx]  # type: ignore[attr-defined]
        self.log(
            f"val/{source}/loss",
            loss,
            sync_dist=True,
            batch_size=len(logits),
            add_dataloader_idx=False,
        )

    def on_validation_epoch_end(self) -> None:
        logits, labels = (torch.cat(part) for part in zip(*self.seen))
        self.seen.clear()
        areas = []
        for column, name in enumerate(self.net.findings):
            known = ~labels[:, column].isnan()
            truth = labels[known, column]
            if 0 < truth.sum() < len(truth):
                areas.append(binary_auroc(logits[known, column], truth.int()))
                self.log(f"val/auroc/{name}", areas[-1], sync_dist=True)
        if areas:
            self.log("val/auroc", torch.stack(areas).mean(), prog_bar=True, sync_dist=True)

    def configure_optimizers(self) -> Any:
        h = self.hparams
        optimizer = torch.optim.AdamW(
            self.parameters(), lr=h["learning_rate"], weight_decay=h["weight_decay"]
        )
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, h["learning_rate"], total_steps=max(steps, 2)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
