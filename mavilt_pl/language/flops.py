"""Floating-point operations of a training step, as model FLOPs utilisation (MFU) counts them.

Of a position that is no padding: 6 a weight of the body (2 forward, 4 backward; 4 in all where the
weight is fixed), and 12 L D T of attention (PaLM, arXiv 2204.02311, appendix B). Of a target: 6 D a
row of the head that it meets. Operations that are done again, as by gradient checkpointing, do not
count.

Shape legend: L layers, D width, T length of a sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from mavilt_pl.language.sequences import PackedBatch


def step_flops(model: Any, passes: Sequence[PackedBatch]) -> float:
    """FLOPs of a step that reads these passes forward and backward; 0 for an unknown architecture.

    Args:
        model: a `VisualLanguageModel`.
        passes: of one batch; on any device, their sizes alone are read.
    """
    config = model.backbone.config.get_text_config()
    layers = getattr(config, "num_hidden_layers", None)
    width = getattr(config, "hidden_size", None)
    # A rate in a log is no reason to end a training.
    if layers is None or width is None:
        return 0.0
    embedding = model.backbone.get_input_embeddings().weight
    head = model.backbone.get_output_embeddings().weight
    # All weights that a position is multiplied by.
    per_position = 0
    for parameter in model.transformer.parameters():
        # Looking a row up is no product. A tied head counts by its targets.
        if parameter is not embedding and parameter is not head:
            per_position += (6 if parameter.requires_grad else 4) * parameter.numel()
    vocabulary = model.vocabulary
    # Rows by their own lengths: padding is no work of the model.
    total = 0.0
    for packed in passes:
        for length in packed.lengths:
            total += per_position * length + 12 * layers * width * length**2
        texts = packed.num_text_targets
        codes = len(packed.target_M) - texts
        rows = texts * (vocabulary.end + 1) + codes * vocabulary.codebook_size
        total += 6 * width * rows
    return total


# Dense FLOP/s of the matrix products that mixed precision runs, from the makers' data sheets.
PEAKS = {
    "H200": 989e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "A10": 125e12,
    "V100": 125e12,
    "4090": 165e12,
}


def peak_flops(device: torch.device) -> float | None:
    """Peak FLOP/s of a GPU in half precision; None if it is not known."""
    if device.type != "cuda":
        return None
    # Names such as "NVIDIA H100 80GB HBM3".
    name = torch.cuda.get_device_name(device)
    for part, peak in PEAKS.items():
        if part in name:
            return peak
    return None
