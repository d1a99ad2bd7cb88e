"""Data and checkpoint traffic of a training on up to 1,024 GPUs, simulated step by step; nothing is
trained.

python benchmarks/traffic.py --weights 7e9

A day of each size: every step reads its batch from the shared file system and computes; every so
many steps rank 0 writes a checkpoint while all wait (without `checkpoint_async`); a node fails at
random, and then the job starts again, all ranks read the last checkpoint, and the steps since are
lost. What is assumed stands in `Cluster`.
"""

from __future__ import annotations

import argparse
import random
from dataclasses import dataclass


@dataclass(frozen=True)
class Cluster:
    """GB are 10⁹ bytes. Sources: H100's data sheet for `flops`; Llama 3 (arXiv 2407.21783, section
    3.3.4) saw an unexpected interruption each 3.1 h on 16,384 GPUs, which is one each 50,000 hours
    of a GPU.
    """

    flops: float = 989e12
    mfu: float = 0.4
    storage: float = 20.0  # GB/s that the shared file system reads to all nodes together
    writer: float = 2.0  # GB/s that one rank writes, its hash and fsync included
    start: float = 180.0  # s from a failure to the first read: queue, imports, process groups
    between: float = 50_000.0  # hours of one GPU between two failures


def day(
    c: Cluster, gpus: int, weights: float, studies: int, positions: int, every: int, seed: int
) -> dict[str, float]:
    """Shares of a day, and what is read and written.

    `studies` a GPU and step, of `positions` each; a study is read as 256 codes of two bytes and 4
    KB of text and tables.
    """
    state = 12e-9 * weights  # GB of a checkpoint: weights and AdamW's two states, float32
    compute = 6 * weights * studies * positions / (c.flops * c.mfu)
    read = gpus * studies * (512 + 4096) / 1e9
    step = max(compute, read / c.storage)  # the loaders read ahead
    draw, clock, kept, steps = random.Random(seed), 0.0, 0, 0
    lost = saving = restarting = 0.0
    fails = draw.expovariate(gpus / (c.between * 3600))
    while clock < 86_400:
        if clock >= fails:
            lost += (steps - kept) * step
            steps = kept
            pause = c.start + state * gpus / c.storage  # every rank reads all of it
            restarting, clock = restarting + pause, clock + pause
            fails = clock + draw.expovariate(gpus / (c.between * 3600))
        clock, steps = clock + step, steps + 1
        if steps % every == 0:
            saving, clock, kept = saving + state / c.writer, clock + state / c.writer, steps
    return {
        "steps/h": steps / (clock / 3600),
        "step": step,
        "read": read / step,
        "saving": saving / clock,
        "lost": lost / clock,
        "restarting": restarting / clock,
        "useful": steps * step / clock,
        "tokens": gpus * studies * positions / step,
    }


def mean(rows: list[dict[str, float]]) -> dict[str, float]:
    return {key: sum(row[key] for row in rows) / len(rows) for key in rows[0]}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=float, default=7e9)
    parser.add_argument("--studies", type=int, default=16, help="of a GPU and step")
    parser.add_argument("--positions", type=int, default=775, help="of a study, both directions")
    parser.add_argument("--days", type=int, default=20, help="simulated, and averaged")
    args = parser.parse_args()
    print(
        "| GPUs | checkpoint every | step, s | positions/s | read, GB/s | saving | lost | "
        "restarting | useful |"
    )
    print("| --- " * 9 + "|")
    for gpus in (1, 8, 64, 256, 1024):
        for every in (100, 500):
            r = mean(
                [
                    day(Cluster(), gpus, args.weights, args.studies, args.positions, every, seed)
                    for seed in range(args.days)
                ]
            )
            print(
                f"| {gpus:,} | {every} | {r['step']:.2f} | {r['tokens']:,.0f} | {r['read']:.4f} | "
                f"{r['saving']:.1%} | {r['lost']:.1%} | {r['restarting']:.1%} | {r['useful']:.1%} |"
            )
