"""The tokenizer's speed and memory, each as a ratio to a named alternative within one run.

python benchmarks/tokenizer.py step
    one training step of the autoencoder, against diffusers.VQModel (pip install diffusers)
python benchmarks/tokenizer.py gan
    a whole step with both optimizers, against running the autoencoder twice as taming does
python benchmarks/tokenizer.py encode
    batches as in `mavilt tokenize`, also compiled, against the same model image by image
"""

from __future__ import annotations

import argparse
import copy
import logging
import os
import resource
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

THREADS = os.environ.setdefault("OMP_NUM_THREADS", "2")

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mavilt_pl.vqgan.encode_corpus import batch_size_for
from mavilt_pl.vqgan.losses import adaptive_weight
from mavilt_pl.vqgan.module import VQGAN
from mavilt_pl.vqgan.tokenizer import Tokenizer

# The published network's shape (taming's custom_vqgan.yaml, factor 16) on a quarter of the pixels;
# CHANNELS=64 is half its width.
SIZE, MULTIPLIERS, LATENT, CODES = 128, (1, 1, 2, 2, 4), 256, 1024
CHANNELS, BATCH = (
    int(os.environ.get(key, usual)) for key, usual in (("CHANNELS", 128), ("BATCH", 1))
)
ROUNDS, STEPS = 5, 3


def ours() -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    shape = {
        "image_size": SIZE,
        "channels": CHANNELS,
        "channel_multipliers": MULTIPLIERS,
        "latent_dim": LATENT,
    }
    published = {
        "attention_resolutions": (),
        "middle_attention": True,
        "groups": 32,
        "asymmetric": True,
    }
    codes = {
        "codebook_size": CODES,
        "code_dim": LATENT,
        "cosine": False,
        "project": True,
        "kmeans": False,
    }
    net = Tokenizer({**shape, **published}, codes)

    def loss(x: Tensor) -> Tensor:
        quantised, _, commitment = net.quantizer(net.latents(x))
        return F.l1_loss(net.autoencoder.decode(quantised), x) + commitment

    return net, loss


def diffusers() -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    from diffusers import VQModel

    levels = len(MULTIPLIERS)
    net = VQModel(
        in_channels=1,
        out_channels=1,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=tuple(CHANNELS * m for m in MULTIPLIERS),
        layers_per_block=2,
        latent_channels=LATENT,
        num_vq_embeddings=CODES,
        vq_embed_dim=LATENT,
    )

    def loss(x: Tensor) -> Tensor:
        latents = net.encode(x).latents
        quantised, commitment, _ = net.quantize(latents)
        made = net.decoder(net.post_quant_conv(quantised))
        return F.l1_loss(made, x) + commitment

    return net, loss


def one_arm(name: str) -> None:
    """Measure one arm in its own process and print one line of numbers.

    Seconds per step, peak memory in MB, GFLOP per step, the machine's GFLOP/s in matrix products,
    number of weights.
    """
    from torch.utils.flop_counter import FlopCounterMode

    torch.manual_seed(0)
    net, loss = globals()[name]()
    optimizer = torch.optim.AdamW(net.parameters(), 1e-4, foreach=True)
    pixels = torch.rand(BATCH, 1, SIZE, SIZE) * 2 - 1

    def step() -> None:
        loss(pixels).backward()
        optimizer.step()
        optimizer.zero_grad()

    with FlopCounterMode(display=False) as counter:
        step()
    times = []
    for _ in range(STEPS):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    a, b = torch.rand(2, 2048, 2048)
    products = []
    for _ in range(8):
        start = time.perf_counter()
        a @ b
        products.append(2 * 2048**3 / (time.perf_counter() - start) / 1e9)
    weights = sum(p.numel() for p in net.parameters())
    print(min(times), peak, counter.get_total_flops() / 1e9, max(products), weights)


def step() -> None:
    found: dict[str, list[list[float]]] = {"ours": [], "diffusers": []}
    for _ in range(ROUNDS):
        for name, rows in found.items():
            done = subprocess.run(
                [sys.executable, __file__, "one_arm", name], capture_output=True, text=True
            )
            if done.returncode:
                sys.exit(done.stderr)
            rows.append([float(word) for word in done.stdout.split()])
    print(
        "| | weights, M | images/s | GFLOP per step | share of the matrix-product rate | peak "
        "memory, MB |"
    )
    print("| --- | --- | --- | --- | --- | --- |")
    middle = {
        name: [statistics.median(column) for column in zip(*rows)] for name, rows in found.items()
    }
    for name, (seconds, peak, work, rate, weights) in middle.items():
        print(
            f"| {name} | {weights / 1e6:.1f} | {BATCH / seconds:.2f} | {work:.0f} | "
            f"{work / seconds / rate:.2f} | {peak:.0f} |"
        )
    ratios = [theirs[0] / mine[0] for mine, theirs in zip(found["ours"], found["diffusers"])]
    print(
        f"\nImages/s over diffusers', median of {ROUNDS} pairs: {statistics.median(ratios):.2f} "
        f"({min(ratios):.2f} to {max(ratios):.2f})"
    )


class TwiceRun(VQGAN):
    """taming's schedule, to compare with.

    The adaptive weight is measured through the discriminator, and the discriminator's step runs the
    autoencoder and its loss again.
    """

    def training_step(self, batch: dict, index: int) -> None:
        generator, opt_disc = self.optimizers()
        with generator.toggle_model():
            terms, recon, _ = self.terms(batch["pixels"])
            adversarial = -self.discriminator(recon).mean()
            compared = [value for name, value in terms.items() if name != "commitment"]
            recon_loss = torch.stack(compared).sum()
            last_layer = self.tokenizer.autoencoder.last_layer
            weight = adaptive_weight(recon_loss, adversarial, last_layer)
            adversarial = self.hparams["gan_weight"] * weight * adversarial
            self.manual_backward(recon_loss + terms["commitment"] + adversarial)
            self._clip(generator, "generator", batch)
            generator.step()
            generator.zero_grad()
        with opt_disc.toggle_model():
            _, again, _ = self.terms(batch["pixels"])
            images = (batch["pixels"], again.detach())
            self._discriminator_step(opt_disc, images, True, batch)


def gan() -> None:
    import lightning
    from torch.utils.data import DataLoader

    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    class Clock(lightning.Callback):
        def __init__(self) -> None:
            self.marks: list[float] = []

        def on_train_batch_end(self, *_: Any) -> None:
            self.marks.append(time.perf_counter())

    def seconds(kind: type[VQGAN]) -> float:
        torch.manual_seed(0)
        net = {
            "image_size": SIZE,
            "channels": CHANNELS,
            "channel_multipliers": MULTIPLIERS,
            "latent_dim": LATENT,
        }
        module = kind(net, {"codebook_size": CODES, "kmeans": False}, gan_start=0, warmup=0)
        clock = Clock()
        trainer = lightning.Trainer(
            accelerator="cpu",
            max_steps=STEPS + 2,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[clock],
            log_every_n_steps=1000,
        )
        images = [{"pixels": torch.rand(1, SIZE, SIZE) * 2 - 1} for _ in range((STEPS + 2) * BATCH)]
        loader = DataLoader(
            images,
            BATCH,
            collate_fn=lambda items: {
                "pixels": torch.stack([i["pixels"] for i in items]),
                "studies": [],
            },
        )
        trainer.fit(module, loader)
        gaps = [b - a for a, b in zip(clock.marks, clock.marks[1:])]
        return min(gaps)

    seconds(VQGAN)
    ratios = []
    for _ in range(ROUNDS):
        mine, theirs = seconds(VQGAN), seconds(TwiceRun)
        ratios.append(theirs / mine)
    print(
        f"Whole step, discriminator on: rate over taming's schedule, median of {ROUNDS} pairs: "
        f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    )


def encode() -> None:
    print(
        "| tokenizer | image by image, images/s | batches | × | compiled | × |\n| --- | --- | --- "
        "| --- | --- | --- |"
    )
    demo = {
        "image_size": 64,
        "channels": 32,
        "channel_multipliers": [1, 2, 3],
        "num_res_blocks": 1,
        "attention_resolutions": [8],
        "latent_dim": 64,
        "patch": 2,
    }
    half = {
        "image_size": SIZE,
        "channels": 64,
        "channel_multipliers": MULTIPLIERS,
        "latent_dim": LATENT,
    }
    for name, shape, count in (
        ("the demo's, 64²", demo, 512),
        (f"published shape at {SIZE}², 64 channels", half, 64),
    ):
        torch.manual_seed(0)
        net = Tokenizer(shape, {"codebook_size": CODES}).eval()
        compiled = copy.deepcopy(net)
        compiled.autoencoder.encoder.compile()
        pixels = torch.rand(count, 1, shape["image_size"], shape["image_size"]) * 2 - 1
        size = batch_size_for(net.autoencoder.config, "cpu")
        times: dict[str, list[float]] = {"one": [], "many": [], "compiled": []}
        for turn in range(ROUNDS + 1):
            for way, (encoder, batch) in zip(times, ((net, 1), (net, size), (compiled, size))):
                start = time.perf_counter()
                with torch.no_grad() if way == "one" else torch.inference_mode():
                    for part in pixels.split(batch):
                        encoder.encode(part)
                if turn:
                    times[way].append(time.perf_counter() - start)
        one, *others = ([count / seconds for seconds in times[way]] for way in times)
        row = [f"{statistics.median(one):.1f}"]
        for way in others:
            ratios = [mine / single for mine, single in zip(way, one)]
            row += [
                f"{statistics.median(way):.1f}",
                f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
            ]
        print(f"| {name}, {size} at once | {' | '.join(row)} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["step", "gan", "encode", "one_arm"])
    parser.add_argument("arm", nargs="?", choices=["ours", "diffusers"], help=argparse.SUPPRESS)
    torch.set_num_threads(int(THREADS))
    chosen = parser.parse_args()
    globals()[chosen.what](*([chosen.arm] if chosen.arm else []))
