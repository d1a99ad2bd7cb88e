"""Pictures and texts for TensorBoard: reconstructions, drawn radiographs, sample reports."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from lightning import Callback, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from mavilt_pl.callbacks.metric_callback import originals, shown
from mavilt_pl.data.datamodule import sample_key
from mavilt_pl.vqgan.loading import load_tokenizer
from mavilt_pl.vqgan.losses import forward_differences


class Pictures(Callback):
    """At every validation, from the first studies of the first source: for the VQ-GAN original,
    reconstruction, difference and the edges of both on one scale, and over the whole validation how
    often each code was used (with several processes, of the first one's share); for the language
    stages the image, the image drawn from its text, and its report beside the reference.

    Args:
        count: studies shown.
        tokenizer: checkpoint of the VQ-GAN; the language stages need it to show what they draw.
    """

    def __init__(self, count: int = 8, tokenizer: str | None = None):
        self.count, self.path = count, tokenizer
        self.tokenizer: Any = None
        self._uses_K: Tensor | None = None
        self._images = 0

    @staticmethod
    def _board(trainer: Trainer) -> Any:
        """TensorBoard's writer, where pictures are wanted now."""
        if trainer.sanity_checking or not trainer.is_global_zero:
            return None
        return next(
            (
                logger.experiment
                for logger in trainer.loggers
                if isinstance(logger, TensorBoardLogger)
            ),
            None,
        )

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: Any,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        board = self._board(trainer)
        if board is None:
            return
        step, first = trainer.global_step, batch_idx == dataloader_idx == 0
        if "pixels" in batch and isinstance(outputs, dict) and "reconstruction" in outputs:
            uses_K = torch.bincount(
                outputs["codes"].flatten().cpu(), minlength=pl_module.tokenizer.codebook_size
            )
            self._uses_K = uses_K if self._uses_K is None else self._uses_K + uses_K
            self._images += len(batch["pixels"])
            if first:
                real, made = batch["pixels"][: self.count], outputs["reconstruction"][: self.count]
                board.add_image(
                    "val/original, reconstruction, difference, edges",
                    reconstructions(real, made),
                    step,
                )
        elif "codes" in batch and first:
            self._language(board, trainer, pl_module, batch, dataloader_idx, step)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        board = self._board(trainer)
        if board is not None and self._uses_K is not None:
            board.add_image(
                "val/code usage", code_usage(self._uses_K, self._images), trainer.global_step
            )
        self._uses_K, self._images = None, 0

    def _language(
        self, board: Any, trainer: Trainer, module: Any, batch: dict, source: int, step: int
    ) -> None:
        studies = batch["studies"][: self.count]
        keys = [sample_key(study["study"]) for study in studies]
        written = module.write_reports(shown(batch)[: self.count], keys=keys)
        lines = [
            f"| {_cell(text)} | {_cell(study['text'])} |" for text, study in zip(written, studies)
        ]
        board.add_text(
            "val/reports", "\n".join(["| written | reference |", "| --- | --- |", *lines]), step
        )
        if self.path is None:
            return
        if self.tokenizer is None:
            self.tokenizer = load_tokenizer(self.path)
        codes = module.draw([study["text"] for study in studies], keys=keys)
        with torch.inference_mode():
            drawn = self.tokenizer.to(module.device).decode(codes)
        board.add_image(
            "val/real, drawn from its text",
            _grid([originals(trainer, studies, source), drawn.cpu()]),
            step,
        )


def _cell(text: str) -> str:
    return text.replace("|", "/").replace("\n", " ")


def _grid(rows: list[Tensor]) -> Tensor:
    """Rows of images [B,1,H,W] in [-1,1] → one picture [1,H',W'] in [0,1]."""
    lines = [torch.cat(list(row.detach().cpu().clamp(-1, 1)), 2) for row in rows]
    return (torch.cat(lines, 1) + 1) / 2


def _edges(pixels_BCHW: Tensor) -> Tensor:
    """|∇x| of forward differences, [B,1,H,W], 0 and above; the last row and column have one axis
    only.
    """
    across, down = forward_differences(pixels_BCHW)
    return (F.pad(across, (0, 1)).square() + F.pad(down, (0, 0, 0, 1)).square()).sqrt()


def reconstructions(real_BCHW: Tensor, made_BCHW: Tensor) -> Tensor:
    """Labelled rows original, reconstruction, difference, |∇x|, |∇x̂| → one picture [1,H',W'] in
    [0,1].

    Both rows of edges are on one scale: white is what 1 in 200 pixels of the originals' edges
    exceed.
    """
    real, made = real_BCHW.detach().float().cpu(), made_BCHW.detach().float().cpu()
    edges = _edges(real), _edges(made)
    white = torch.quantile(edges[0].flatten()[: 2**24], 0.995).clamp(min=1e-6)
    rows = [
        real,
        made,
        (real - made).abs().mul(2).sub(1),
        *(edge / white * 2 - 1 for edge in edges),
    ]
    names = (
        "original",
        "recon-\nstruction",
        "difference,\ndoubled",
        "edges of\noriginal",
        "edges of\nrecon-\nstruction",
    )
    height = real.shape[-2]
    margin = Image.new("L", (max(72, height // 3), height * len(rows)), 0)
    pen, font = ImageDraw.Draw(margin), ImageFont.load_default(max(12, height // 16))
    for number, name in enumerate(names):
        pen.multiline_text((4, number * height + 4), name, 220, font)
    return torch.cat([_tensor(margin), _grid(rows)], 2)


def code_usage(uses_K: Tensor, images: int) -> Tensor:
    """How often each of K codes was used, from the most to the least, on a log scale → picture
    [1,H,W] in [0,1].

    The line is what every code would have if all were used alike; the dark end on the right is dead
    codes.
    """
    width, height, left, top = 560, 260, 44, 44
    uses = np.sort(uses_K.cpu().numpy())[::-1].astype(float)
    share = uses[uses > 0] / max(uses.sum(), 1)
    used, perplexity = len(share) / len(uses), float(np.exp(-(share * np.log(share)).sum()))
    most = max(uses.max(), 10.0)
    page = Image.new("L", (width, height), 0)
    pen, font, small = ImageDraw.Draw(page), ImageFont.load_default(15), ImageFont.load_default(11)
    pen.text(
        (8, 6),
        f"{used:.0%} of {len(uses):,} codes used, as if {perplexity:,.0f} alike · {images:,} "
        f"images",
        255,
        font,
    )
    pen.text((8, 26), "uses of each code, most used first; line: all alike", 150, small)
    bottom, right = height - 22, width - 10

    def y(count: float) -> float:
        """log(1 + count), so that unused codes stand at 0."""
        return bottom - (bottom - top - 8) * np.log1p(count) / np.log1p(most)

    for power in range(int(np.log10(most)) + 1):
        pen.text((4, y(10**power) - 6), f"{10**power:,}", 150, small)
        pen.line((left, y(10**power), right, y(10**power)), 50)
    columns = np.linspace(0, len(uses), right - left + 1)
    for x in range(right - left):
        pen.line((left + x, bottom, left + x, y(uses[min(int(columns[x]), len(uses) - 1)])), 170)
    pen.line((left, y(uses.sum() / len(uses)), right, y(uses.sum() / len(uses))), 255)
    pen.text((left, bottom + 5), "code 1", 150, small)
    pen.text((right, bottom + 5), f"code {len(uses):,}", 150, small, anchor="ra")
    return _tensor(page)


def _tensor(page: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(page))[None].float() / 255
