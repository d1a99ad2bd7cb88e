"""Reports of many images in one call, against one call an image, with the same model.

    python benchmarks/reading.py runs/demo/stage2 runs/demo/raw/mimic/files

Both must write the same texts. The ratio is that of the times of the first `--compared` images, in
turns; memory is the process's after every 1,000 images of one call.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import psutil
import torch

from mavilt_pl import MAViLT


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--compared", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(2)
    model = MAViLT.from_pretrained(args.model, device="cpu")
    suffixes = (".png", ".jpg", ".dcm")
    images = sorted(path for path in args.images.rglob("*") if path.suffix in suffixes)
    start = time.perf_counter()
    model.report(images[0])
    print(f"first report: {time.perf_counter() - start:.2f} s after the model is loaded")
    compared, ratios = images[: args.compared], []
    for _ in range(args.rounds):
        start = time.perf_counter()
        together = model.report(compared)
        middle = time.perf_counter()
        alone = [model.report(image) for image in compared]
        ratios.append((time.perf_counter() - middle) / (middle - start))
        # Scores differ in their last digits from batch to batch; texts and codes must not.
        for one, other in zip(together, alone, strict=True):
            assert one.text == other.text and (one.codes == other.codes).all()
            assert abs(one.ood_score - other.ood_score) < 1e-4
    print(f"one call an image / one call: {statistics.median(ratios):.1f} × {ratios}")
    for _ in range(3):
        model.report(images[:1000])
        memory = psutil.Process().memory_info().rss / 2**20
        print(f"memory after {len(images[:1000]):,} more images: {memory:,.0f} MB")


if __name__ == "__main__":
    main()
