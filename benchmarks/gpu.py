"""What a GPU makes of a stage: model FLOPs utilisation of a step, and images generated a second.

    python benchmarks/gpu.py
        1.2 B parameters, on one GPU of 80 GB
    python benchmarks/gpu.py --width 64 --layers 2 --batch 2 --images 2 --device cpu
        whether it runs at all

A step is Stage 1's as it is trained: float32 weights, bf16 autocast, L2-SP, clipping, AdamW; both
directions of each pair, about 400 positions a sequence. Its FLOPs are the model's (arXiv
2204.02311, appendix B): 6 a weight and position that is no padding, 12 L D T a position of
attention, and 6 D a row of the head that a target meets.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from small_stage import TEXT, build_stage, long_reports, pass_loss, write_inputs

from mavilt_pl.language import Stage1, TuningOptions
from mavilt_pl.language.flops import step_flops

WARM_UP = 3


def median_seconds(way: Callable[[], Any], device: torch.device, rounds: int) -> float:
    """Median of `rounds`, after `WARM_UP` more."""
    times = []
    for round_number in range(rounds + WARM_UP):
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        way()
        if device.type == "cuda":
            torch.cuda.synchronize()
        if round_number >= WARM_UP:
            times.append(time.perf_counter() - start)
    return statistics.median(times)


def matrix_product_rate(device: torch.device) -> float:
    """FLOP/s of a bf16 matrix product, the most that any step could have here."""
    side = 8192 if device.type == "cuda" else 512
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * side**3 / median_seconds(lambda: a @ b, device, 10)


def main(args: argparse.Namespace) -> None:
    """Print the rates of a step and of generation."""
    device = torch.device(args.device)
    tuning = TuningOptions(gradient_checkpointing=args.gradient_checkpointing)
    with tempfile.TemporaryDirectory() as folder:
        write_inputs(Path(folder), args.width, args.layers, heads=max(args.width // 128, 1))
        module = build_stage(Stage1, Path(folder), lambda_reg=0.01, tuning=tuning)
    weights = sum(parameter.numel() for parameter in module.parameters())
    module.to(device)
    packed = module.collate.pack(long_reports(args.batch), training=True)
    work = step_flops(module.model, packed)
    positions = sum(sum(group.lengths) for group in packed)
    targets = sum(len(group.target_M) for group in packed)
    groups = [group.to(device) for group in packed]
    optimizer = torch.optim.AdamW(module.parameters(), lr=5e-6, fused=device.type == "cuda")

    def step() -> None:
        for group in groups:
            with torch.autocast(device.type, torch.bfloat16):
                loss = pass_loss(module, groups, group)
            loss.backward()
        module.regularizer.add_gradient()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    seconds, best = median_seconds(step, device, 10), matrix_product_rate(device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    sequences = sum(len(group.ids_BT) for group in groups)
    print(f"{name}; {weights / 1e9:.2f} B parameters, {positions} positions, {sequences} sequences")
    print(f"{positions / seconds:,.0f} positions/s, {targets / seconds:,.0f} targets/s")
    print(f"{work / seconds / 1e12:,.1f} TFLOP/s")
    print(
        f"MFU {work / seconds / (args.peak * 1e12):.3f} of {args.peak:g} TFLOP/s; "
        f"{work / seconds / best:.3f} of a matrix product here"
    )
    if device.type == "cuda":
        print(f"peak memory {torch.cuda.max_memory_allocated(device) / 2**30:.1f} GiB")

    module.eval()
    optimizer.zero_grad()
    generator = module.generator
    plain, texts = generator.sampling, [TEXT[:90]] * args.images
    for compiled in (False, True):
        generator.sampling = replace(plain, image=replace(plain.image, compile=compiled))
        with torch.autocast(device.type, torch.bfloat16):
            seconds = median_seconds(lambda: generator.generate_images(texts), device, 3)
        words = "images, compiled" if compiled else "images"
        print(f"{words}: {args.images / seconds:.2f} a second")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--batch", type=int, default=16, help="pairs a step, in both directions")
    parser.add_argument("--images", type=int, default=32, help="images generated at once")
    parser.add_argument(
        "--peak", type=float, default=989.0, help="the card's dense bf16 TFLOP/s (H100 SXM: 989)"
    )
    parser.add_argument("--gradient-checkpointing", action="store_true")
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    transformers.utils.logging.disable_progress_bar()
    main(parser.parse_args())
