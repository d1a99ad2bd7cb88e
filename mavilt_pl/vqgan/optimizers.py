"""The optimizers of a VQ-GAN: AdamW for each network, with warm-up and cosine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from mavilt_pl.trainer.lr_schedule import warm_cosine


def build_optimizers(
    tokenizer: nn.Module, discriminator: nn.Module | None, settings: Mapping[str, Any], steps: int
) -> tuple[list[torch.optim.Optimizer], list[LambdaLR]]:
    """Optimizers and schedules: the tokenizer's first, then the discriminator's if there is one.

    Args:
        tokenizer: its frozen clinical encoder is left out.
        discriminator: None without an adversarial term.
        settings: arguments of `VQGAN`.
        steps: of the generator, in the whole training.
    """
    trained = [weight for weight in tokenizer.parameters() if weight.requires_grad]
    rate, warmup = settings["learning_rate"], settings["warmup"]
    # One kernel for all weights and operations.
    generator = torch.optim.AdamW(
        trained, rate, betas=settings["betas"], weight_decay=1e-4, fused=True
    )
    optimizers: list[torch.optim.Optimizer] = [generator]
    schedules = [warm_cosine(generator, warmup, steps)]
    if discriminator is not None:
        # β₁ of 0.5 as pix2pix and taming: less momentum, since its target moves.
        opt_disc = torch.optim.AdamW(discriminator.parameters(), rate, betas=(0.5, 0.9), fused=True)
        optimizers.append(opt_disc)
        # It takes its first step at `gan_start`, so its schedule is shorter.
        schedules.append(warm_cosine(opt_disc, warmup, steps - settings["gan_start"]))
    return optimizers, schedules
