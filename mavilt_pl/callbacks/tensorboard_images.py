"""Images and texts for TensorBoard: reconstructions, generated radiographs, sample reports.

Shape legend: B images, H W height and width in pixels, K codes.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from lightning import Callback, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter
from torch import Tensor
from torchvision.utils import make_grid

from mavilt_pl.callbacks.observation import original_pixels, visible_images
from mavilt_pl.data.collate import sample_key
from mavilt_pl.errors import MaviltWarning, UserError
from mavilt_pl.ranges import NonNegativeInt
from mavilt_pl.vqgan.loading import load_tokenizer, tokenizer_of
from mavilt_pl.vqgan.losses import forward_differences

logger = logging.getLogger(__name__)

NOTICE = "the event files hold images and texts of the studies; keep them like the dataset itself"
# Only the ratio of figure size to DPI matters, since figures are given in pixels.
DPI = 100
ROW_NAMES = (
    "original",
    "recon-\nstruction",
    "difference,\ndoubled",
    "edges of\noriginal",
    "edges of\nrecon-\nstruction",
)


class Pictures(Callback):
    """At every validation, images of the first studies of the first source.

    For the VQ-GAN: originals, reconstructions, their difference and the edges of both on one scale,
    and how often each code was used over the whole validation (of several processes, the first
    one's part). For the language stages: the image, the image generated from its text, and its
    generated report with the reference.

    The event files then hold images and texts of patients. The log and a text among them say so.

    Args:
        count: number of studies.
        tokenizer: checkpoint of the VQ-GAN, which shows the images that a language stage generates
            (default: the one that encoded the token cache).
    """

    def __init__(self, count: NonNegativeInt = 8, tokenizer: str | None = None):
        self.count, self.path = count, tokenizer
        self.tokenizer: Any = None
        self._is_announced = self._is_missing = False
        self._uses_K: Tensor | None = None
        self._images = 0

    @staticmethod
    def _writer(trainer: Trainer) -> Any:
        """TensorBoard's writer if this process writes images now, else None."""
        # The sanity check's images would come before the first step's.
        if trainer.sanity_checking or not trainer.is_global_zero:
            return None
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                return logger.experiment
        return None

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: Any,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count the codes of the batch; write the images of the first one."""
        # Other ranks leave here; what follows contains no collective.
        writer = self._writer(trainer)
        if writer is None:
            return
        self._announce(writer)
        # Always the same studies, so that their images can be followed through a training.
        is_first = batch_idx == dataloader_idx == 0
        if "pixels" in batch and isinstance(outputs, dict) and "reconstruction" in outputs:
            self._count_codes(outputs["codes"], pl_module.tokenizer.codebook_size)
            if is_first:
                real_BCHW = batch["pixels"][: self.count]
                recon_BCHW = outputs["reconstruction"][: self.count]
                writer.add_image(
                    "val/original, reconstruction, difference, edges",
                    reconstructions(real_BCHW, recon_BCHW),
                    trainer.global_step,
                )
        elif "codes" in batch and is_first:
            studies = batch["studies"][: self.count]
            keys = [sample_key(study["study"]) for study in studies]
            images = visible_images(batch)[: self.count]
            reports = pl_module.generator.generate_reports(images, keys=keys)
            writer.add_text("val/reports", _report_table(reports, studies), trainer.global_step)
            self._add_generated_images(writer, trainer, pl_module, studies, keys)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Write the chart of code usage."""
        writer = self._writer(trainer)
        if writer is not None and self._uses_K is not None:
            chart = code_usage(self._uses_K, self._images)
            writer.add_image("val/code usage", chart, trainer.global_step)
        self._uses_K, self._images = None, 0

    def _announce(self, writer: Any) -> None:
        """Say once what the event files hold."""
        if not self._is_announced:
            self._is_announced = True
            writer.add_text("val/notice", NOTICE)
            logger.info("%s: %s", writer.log_dir, NOTICE)

    def _count_codes(self, codes_BN: Tensor, codebook_size: int) -> None:
        # On the CPU, where a count of a few thousand codes costs nothing.
        uses_K = torch.bincount(codes_BN.flatten().cpu(), minlength=codebook_size)
        self._uses_K = uses_K if self._uses_K is None else self._uses_K + uses_K
        self._images += len(codes_BN)

    def _add_generated_images(
        self, writer: Any, trainer: Trainer, module: Any, studies: list[dict], keys: list[int]
    ) -> None:
        if self._is_missing:
            return
        # Loaded at the first validation, since a training may be started without ever reaching one.
        if self.tokenizer is None:
            try:
                self.tokenizer = load_tokenizer(self.path or tokenizer_of(module))
            except UserError as error:
                # A training is worth more than its pictures.
                warnings.warn(f"no generated images: {error}", MaviltWarning, stacklevel=2)
                self._is_missing = True
                return
        texts = [study["text"] for study in studies]
        codes_BN = module.generator.generate_images(texts, keys=keys)
        with torch.inference_mode():
            generated_BCHW = self.tokenizer.to(module.device).decode(codes_BN)
        rows = [original_pixels(trainer, 0, studies), generated_BCHW.cpu()]
        writer.add_image("val/real, drawn from its text", image_grid(rows), trainer.global_step)


def _report_table(reports: Sequence[str], studies: Sequence[dict[str, Any]]) -> str:
    """A Markdown table of generated reports and their references."""
    lines = ["| generated | reference |", "| --- | --- |"]
    for report, study in zip(reports, studies):
        lines.append(f"| {_table_cell(report)} | {_table_cell(study['text'])} |")
    return "\n".join(lines)


def _table_cell(text: str) -> str:
    # Either character would end the cell.
    return text.replace("|", "/").replace("\n", " ")


def image_grid(rows: Sequence[Tensor]) -> Tensor:
    """Rows of images [B,1,H,W] in [-1, 1] → one picture [1,rows·H,B·W] in [0, 1].

    >>> image_grid([torch.zeros(3, 1, 8, 8), torch.ones(3, 1, 8, 8)]).shape
    torch.Size([1, 16, 24])
    """
    # make_grid repeats grey images to three channels; one is kept.
    images = torch.cat([row.detach().cpu().clamp(-1, 1) for row in rows])
    grid = make_grid(images, nrow=len(rows[0]), padding=0)
    return (grid[:1] + 1) / 2


def _edges(pixels_BCHW: Tensor) -> Tensor:
    """|∇x| of forward differences, [B,1,H,W], at least 0.

    The last row and the last column have differences along one axis only.
    """
    across, down = forward_differences(pixels_BCHW)
    # Padded with zeros to the size of the image.
    across = F.pad(across, (0, 1))
    down = F.pad(down, (0, 0, 0, 1))
    return (across.square() + down.square()).sqrt()


def reconstructions(real_BCHW: Tensor, recon_BCHW: Tensor) -> Tensor:
    """Labelled rows original, reconstruction, difference, |∇x|, |∇x̂| as one picture.

    Both rows of edges are on one scale: white is the level that 1 in 200 pixels of the originals'
    edges exceed.

    Returns:
        The picture [1,5·H,margin + B·W] in [0, 1].
    """
    # In float32: bfloat16 has eight bits, and bands would show.
    real = real_BCHW.detach().float().cpu()
    recon = recon_BCHW.detach().float().cpu()
    real_edges, recon_edges = _edges(real), _edges(recon)
    # torch.quantile takes at most 2**24 values.
    white = torch.quantile(real_edges.flatten()[: 2**24], 0.995).clamp(min=1e-6)
    rows = [
        real,
        recon,
        # Doubled, and shifted to [-1, 1] like the images: differences of a good tokenizer are
        # faint.
        (real - recon).abs().mul(2).sub(1),
        real_edges / white * 2 - 1,
        recon_edges / white * 2 - 1,
    ]
    return torch.cat([_row_labels(real.shape[-2]), image_grid(rows)], 2)


def _row_labels(height: int) -> Tensor:
    """A margin [1,5·height,width] with the names of the rows, white on black."""
    # Wide enough for "construction" at the smallest font.
    width = max(72, height // 3)
    figure = _dark_figure(width, height * len(ROW_NAMES))
    points = max(12, height // 16) * 72 / DPI * 0.75
    for number, name in enumerate(ROW_NAMES):
        top = 1 - (number * height + 4) / (height * len(ROW_NAMES))
        figure.text(4 / width, top, name, color="0.87", fontsize=points, va="top")
    return _to_tensor(figure)


def code_usage(uses_K: Tensor, images: int) -> Tensor:
    """A chart of how often each code was used, most used first, on a log scale.

    The horizontal line is the use of every code if all were used equally; the empty end on the
    right shows dead codes.

    Args:
        uses_K: number of uses of each code.
        images: number of images they come from.

    Returns:
        The picture [1,H,W] in [0, 1].
    """
    uses = np.sort(uses_K.cpu().numpy())[::-1].astype(float)
    # 0 log 0 counts as 0.
    share = uses[uses > 0] / max(uses.sum(), 1)
    # The same figures as `metrics.image.CodebookUse`, for the title.
    used = len(share) / len(uses)
    perplexity = np.exp(-(share * np.log(share)).sum())
    width, height = 560, 260
    left, right, top, bottom = 44, 550, 44, 238  # of the plotted field, in pixels

    figure = _dark_figure(width, height)
    # matplotlib counts from below, in shares of the figure.
    field_width = (right - left) / width
    field_height = (bottom - top) / height
    field = (left / width, 1 - bottom / height, field_width, field_height)
    axes = figure.add_axes(field, facecolor="black")
    edges = np.arange(len(uses) + 1)
    # Steps, not bars: a bar for each of a thousand codes is slow and leaves gaps.
    axes.stairs(uses, edges, fill=True, color="0.67", antialiased=False)
    axes.axhline(uses.mean(), color="white", linewidth=72 / DPI, antialiased=False)
    # Linear up to one use, so that unused codes are at 0.
    axes.set_yscale("symlog", linthresh=1)
    axes.set_ylim(0, max(uses.max(), 10) * 1.3)
    axes.set_xlim(0, len(uses))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.minorticks_off()
    axes.grid(axis="y", color="0.2", linewidth=72 / DPI)
    axes.set_axisbelow(True)
    axes.tick_params(colors="0.6", labelsize=8, length=0)
    axes.set_xticks([0, len(uses)], ["code 1", f"code {len(uses):,}"])
    first, last = axes.get_xticklabels()
    first.set_horizontalalignment("left")
    last.set_horizontalalignment("right")
    axes.spines[:].set_visible(False)
    title = (
        f"{used:.0%} of {len(uses):,} codes used, perplexity {perplexity:,.0f}, {images:,} images"
    )
    figure.text(8 / width, 0.97, title, color="white", fontsize=10, va="top")
    subtitle = "uses of each code, most used first; line: equal use"
    figure.text(8 / width, 0.9, subtitle, color="0.6", fontsize=8, va="top")
    return _to_tensor(figure)


def _dark_figure(width: int, height: int) -> Figure:
    """An empty figure of that size in pixels, without pyplot's global state."""
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor="black")
    # pyplot would keep every figure until it is closed, and choose a backend of the display.
    FigureCanvasAgg(figure)
    return figure


def _to_tensor(figure: Figure) -> Tensor:
    """Render a figure to grey values [1,H,W] in [0, 1]."""
    canvas = figure.canvas
    canvas.draw()
    # A copy: the canvas's buffer is freed with the figure.
    rgba = np.asarray(canvas.buffer_rgba())
    return torch.from_numpy(rgba[..., 0].copy())[None].float() / 255
