"""What a GPU makes of a stage: model FLOPs utilisation of a step, and images drawn per second,
plain and as a CUDA graph.

python benchmarks/gpu.py                                              # 1.2 B parameters, on one GPU
of 80 GB python benchmarks/gpu.py --width 64 --layers 2 --batch 2 --images 2 --device cpu  # whether
it runs at all

A step is Stage 1's as it is trained: float32 weights, bf16 autocast, drift, clipping, AdamW; both
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
from pathlib import Path
from typing import Any

import torch
from language import CODES, GRID, TEXT, backbone
from torch import Tensor

from mavilt_pl.language import Stage1


def seconds(way: Callable[[], Any], device: torch.device, rounds: int) -> float:
    """Median of `rounds`, after three to warm up."""
    times = []
    for turn in range(rounds + 3):
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        way()
        if device.type == "cuda":
            torch.cuda.synchronize()
        if turn >= 3:
            times.append(time.perf_counter() - start)
    return statistics.median(times)


def product(device: torch.device) -> float:
    """FLOP/s of a bf16 matrix product, the most that any step could have here."""
    side = 8192 if device.type == "cuda" else 512
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * side**3 / seconds(lambda: a @ b, device, 10)


def flops(module: Stage1, groups: list[Any]) -> tuple[float, int, int]:
    """FLOPs of a step forward and back, the positions that are no padding, and the targets."""
    config, v = module.model.config, module.vocabulary
    body = (
        sum(p.numel() for p in module.body.parameters())
        - module.model.get_input_embeddings().weight.numel()
    )
    total, positions, targets = 0.0, 0, 0
    for packed in groups:
        lengths = [
            int(packed.column_M[packed.row_M == row].max()) + 2 for row in range(len(packed.ids_BT))
        ]
        positions += sum(lengths)
        targets += len(packed.target_M)
        total += sum(
            6 * body * n + 12 * config.num_hidden_layers * config.hidden_size * n * n
            for n in lengths
        )
        image = int(packed.image_M.sum())
        total += (
            6
            * config.hidden_size
            * (image * v.codes + (len(packed.image_M) - image) * (v.text + 1))
        )
    return total, positions, targets


def main(args: argparse.Namespace) -> None:
    device = torch.device(args.device)
    with tempfile.TemporaryDirectory() as folder:
        backbone(Path(folder), args.width, args.layers, heads=max(args.width // 128, 1))
        settings: dict[str, Any] = {
            "condition_dropout": 0.0,
            "gradient_checkpointing": args.gradient_checkpointing,
        }
        module = Stage1(str(Path(folder) / "backbone"), str(Path(folder) / "tokens"), **settings)
    size = sum(p.numel() for p in module.parameters())
    module.to(device)
    codes = torch.randint(CODES, (args.batch, GRID**2), generator=torch.Generator().manual_seed(0))
    studies = [{"text": TEXT, "study": str(i)} for i in range(args.batch)]
    packed = module.on_before_batch_transfer({"codes": codes, "studies": studies}, 0)["packed"]
    work, positions, targets = flops(module, packed)
    groups = [group.to(device) for group in packed]
    optimizer = torch.optim.AdamW(module.parameters(), lr=5e-6, fused=device.type == "cuda")

    def step() -> Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            loss = torch.stack([*module.losses(groups).values()]).sum()
        loss.backward()
        module.drift.add_gradient()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss

    took, most = seconds(step, device, 10), product(device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    print(
        f"{name}; {size / 1e9:.2f} B parameters, {positions} positions a step in "
        f"{sum(len(g.ids_BT) for g in groups)} sequences"
    )
    print(
        f"{positions / took:,.0f} positions/s, {targets / took:,.0f} targets/s, "
        f"{work / took / 1e12:,.1f} TFLOP/s"
    )
    print(
        f"MFU {work / took / (args.peak * 1e12):.3f} of {args.peak:g} TFLOP/s; "
        f"{work / took / most:.3f} of a matrix product here"
    )
    if device.type == "cuda":
        print(f"peak memory {torch.cuda.max_memory_allocated(device) / 2**30:.1f} GiB")
    module.eval()
    optimizer.zero_grad()
    for compiled in (False, True):
        module.hparams["compile_drawing"] = compiled
        with torch.autocast(device.type, torch.bfloat16):
            drawing = seconds(lambda: module.draw([TEXT[:90]] * args.images), device, 3)
        print(f"drawing{', compiled' if compiled else ''}: {args.images / drawing:.2f} images/s")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--batch", type=int, default=16, help="pairs a step, each read and drawn")
    parser.add_argument("--images", type=int, default=32, help="drawn at once")
    parser.add_argument(
        "--peak", type=float, default=989.0, help="the card's dense bf16 TFLOP/s (H100 SXM: 989)"
    )
    parser.add_argument("--gradient-checkpointing", action="store_true")
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    main(parser.parse_args())
