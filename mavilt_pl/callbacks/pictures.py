"""Pictures and texts for TensorBoard: reconstructions, drawn radiographs, sample reports."""

from __future__ import annotations

from typing import Any

import torch
from lightning import Callback, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from mavilt_pl.callbacks.pixels import originals
from mavilt_pl.data.datamodule import sample_key
from mavilt_pl.vqgan.loading import load_tokenizer


class Pictures(Callback):
    """At every validation, from the first studies of the first source: for the VQ-GAN original, reconstruction and
    difference; for the language stages the image, the image drawn from its text, and its report beside the reference.

    Args:
        count: studies shown.
        tokenizer: checkpoint of the VQ-GAN; the language stages need it to show what they draw.
    """

    def __init__(self, count: int = 8, tokenizer: str | None = None):
        self.count, self.path = count, tokenizer
        self.tokenizer: Any = None

    def on_validation_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:  # fmt: skip
        board = next((logger.experiment for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)), None)
        if batch_idx or dataloader_idx or board is None or trainer.sanity_checking or not trainer.is_global_zero:
            return
        step = trainer.global_step
        if "pixels" in batch:
            real, made = batch["pixels"][: self.count], outputs["reconstruction"][: self.count]
            rows = [real, made, (real - made).abs().mul(2).sub(1)]
            board.add_image("val/original, reconstruction, difference", _grid(rows), step)
        elif "codes" in batch:
            self._language(board, trainer, pl_module, batch, dataloader_idx, step)

    def _language(self, board: Any, trainer: Trainer, module: Any, batch: dict, source: int, step: int) -> None:
        studies = batch["studies"][: self.count]
        written = module.write_reports(batch["codes"][: self.count])
        lines = [f"| {_cell(text)} | {_cell(study['text'])} |" for text, study in zip(written, studies)]
        board.add_text("val/reports", "\n".join(["| written | reference |", "| --- | --- |", *lines]), step)
        if self.path is None:
            return
        if self.tokenizer is None:
            self.tokenizer = load_tokenizer(self.path)
        codes = module.draw(
            [study["text"] for study in studies], keys=[sample_key(study["study"]) for study in studies]
        )
        with torch.inference_mode():
            drawn = self.tokenizer.to(module.device).decode(codes)
        board.add_image(
            "val/real, drawn from its text", _grid([originals(trainer, studies, source), drawn.cpu()]), step
        )


def _cell(text: str) -> str:
    return text.replace("|", "/").replace("\n", " ")


def _grid(rows: list[Tensor]) -> Tensor:
    """Rows of images [B,1,H,W] in [-1,1] → one picture [1,H',W'] in [0,1]."""
    lines = [torch.cat(list(row.detach().cpu().clamp(-1, 1)), 2) for row in rows]
    return (torch.cat(lines, 1) + 1) / 2
