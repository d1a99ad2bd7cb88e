"""For how long a save holds a training up: written at once, and in the background
(`--checkpoint_async true`).

python benchmarks/saving.py 250 --out FOLDER      # million numbers: weights and AdamW's two states
of 83 M weights

The folder should be on the file system that runs are saved to. Five saves of each kind, in turn;
medians.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch

from mavilt_pl.trainer.checkpoint_io import BackgroundCheckpointIO, VerifiedCheckpointIO

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("millions", type=int)
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    state = {
        "state_dict": {str(n): torch.randn(1_000_000, device=device) for n in range(args.millions)}
    }
    held: dict[str, list[float]] = {
        "at once": [],
        "in the background": [],
        "until it is on the disk": [],
    }
    with tempfile.TemporaryDirectory(dir=args.out) as folder:
        for _ in range(5):
            for name, files in (
                ("at once", VerifiedCheckpointIO()),
                ("in the background", BackgroundCheckpointIO()),
            ):
                start = time.perf_counter()
                files.save_checkpoint(state, Path(folder) / "step=1.ckpt")
                held[name].append(time.perf_counter() - start)
                files.wait()
                if name == "in the background":
                    held["until it is on the disk"].append(time.perf_counter() - start)
    for name, seconds in held.items():
        print(
            f"{name}: {statistics.median(seconds):.2f} s ({min(seconds):.2f} to {max(seconds):.2f})"
        )
    ratios = [one / other for one, other in zip(held["at once"], held["in the background"])]
    print(
        f"held up {statistics.median(ratios):.1f} times as long at once ({min(ratios):.1f} to "
        f"{max(ratios):.1f}), {device}"
    )
