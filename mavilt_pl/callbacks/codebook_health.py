"""Figures of the tokenizer's health while it trains, and warnings when it fails.

Shape legend: B batch, C channels, H W height and width in pixels, K codes, W batches of the window.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from lightning import Callback, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from mavilt_pl.errors import MaviltWarning
from mavilt_pl.parallel.distributed import all_reduce_sum
from mavilt_pl.ranges import NonNegativeFloat, NonNegativeInt, PositiveInt, Probability
from mavilt_pl.vqgan.losses import forward_differences


class CodebookHealth(Callback):
    """Logs three figures over the last `window` batches of all processes, at every logged step.

    - `train/codebook_used`: share of the K codes that were used, in [0, 1];
    - `train/codebook_perplexity`: exp of the entropy of their use, in [1, K];
    - `train/sharpness`: ‖∇x̂‖² / ‖∇x‖², forward differences, summed over all images; 1 is as sharp
      as the original.

    It warns once for each failure, and again only after a recovery. Blurring and collapse are the
    failures that arXiv 2502.05926 names; a discriminator that always wins teaches nothing. The
    warnings are also in TensorBoard's text tab (`health`).

    The window is a ring buffer of counts, int32 [W,K]: exact, a few megabytes, and one scatter per
    batch. Only a logged step waits for the device. A checkpoint holds the sum over the processes,
    so that a resumed run logs what the uninterrupted one would have.

    Args:
        window: number of batches (of every process) that the figures cover.
        min_steps: generator steps before collapse and blur are reported: at first every tokenizer
            blurs.
        min_used: a share of used codes below this is a collapse.
        min_sharpness: a sharpness below this is a blur. Noise in the original counts as sharp and
            cannot be reconstructed.
        max_right: a discriminator wins if it is right on more than this share of patches, in a
            moving average over the logged steps that starts at one half.
    """

    def __init__(
        self,
        window: PositiveInt = 200,
        min_steps: NonNegativeInt = 1000,
        min_used: Probability = 0.1,
        min_sharpness: NonNegativeFloat = 0.5,
        max_right: Probability = 0.95,
    ):
        self.window, self.min_steps = window, min_steps
        self.min_used, self.min_sharpness, self.max_right = min_used, min_sharpness, max_right
        self.batches = 0
        self.last_step = 0  # of the figures
        # One half, a guessing discriminator, so the first logged steps cannot raise the warning.
        self.discriminator_right = 0.5
        self.failing: dict[str, bool] = {}
        self.counts_WK = torch.empty(0)
        self.energy_W2 = torch.empty(0)  # ‖∇x̂‖² and ‖∇x‖²
        self._resumed: dict[str, Tensor] = {}

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Make an empty window, or take over the resumed one."""
        # Only now are device and codebook size known.
        device, codebook_size = pl_module.device, pl_module.tokenizer.codebook_size
        self.counts_WK = torch.zeros(self.window, codebook_size, dtype=torch.int32, device=device)
        # float64, since energies of hundreds of batches are summed.
        self.energy_W2 = torch.zeros(self.window, 2, dtype=torch.float64, device=device)
        counts_WK = self._resumed.get("counts_WK")
        if counts_WK is None or counts_WK.shape != self.counts_WK.shape:
            # Another window or codebook: the buffer fills again.
            self.batches = 0
        elif trainer.is_global_zero:
            # The checkpoint holds the sum over the processes; one of them takes it.
            self.counts_WK.copy_(counts_WK)
            self.energy_W2.copy_(self._resumed["energy_W2"])
        self._resumed = {}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Record the batch; log and check at every logged step."""
        is_tokenizer = isinstance(outputs, dict) and {"codes", "reconstruction"} <= outputs.keys()
        if not is_tokenizer:
            return
        with torch.no_grad():
            self._record(outputs["codes"].flatten(), outputs["reconstruction"], batch["pixels"])
            step = trainer.global_step  # it does not change while gradients accumulate
            # Accumulated batches end with the same step, which is logged once.
            if step > self.last_step and step % trainer.log_every_n_steps == 0:
                self.last_step = step
                self._log_and_check(trainer, pl_module)

    def _record(self, codes: Tensor, recon_BCHW: Tensor, real_BCHW: Tensor) -> None:
        """Overwrite the oldest row of the window."""
        # A ring buffer gives exact counts of the last batches; a moving average would remember a
        # code long after its last use.
        row = self.batches % self.window
        # bincount would wait for the device.
        ones = torch.ones_like(codes, dtype=torch.int32)
        self.counts_WK[row].zero_().scatter_add_(0, codes, ones)
        energies = [_gradient_energy(recon_BCHW), _gradient_energy(real_BCHW)]
        self.energy_W2[row] = torch.stack(energies)
        self.batches += 1

    def _log_and_check(self, trainer: Trainer, module: Any) -> None:
        counts_K = all_reduce_sum(self.counts_WK.sum(0))
        energy_2 = all_reduce_sum(self.energy_W2.sum(0))
        # Means over the whole window: over one batch an ordinary code may be unused by chance.
        share_K = counts_K.double() / counts_K.sum()
        entropy = (-share_K * share_K.clamp(min=1e-30).log()).sum()
        used = float((counts_K > 0).double().mean())
        sharpness = float(energy_2[0] / energy_2[1].clamp(min=1e-12))
        figures = {
            "train/codebook_used": used,
            "train/codebook_perplexity": float(entropy.exp()),
            "train/sharpness": sharpness,
        }
        module.log_dict(figures, logger=False)
        for logger in trainer.loggers:
            logger.log_metrics(figures, trainer.global_step)
        self._update_discriminator_right(trainer)

        # Each warning names the keys to change with their current values.
        settings = module.hparams
        trained_enough = trainer.global_step >= self.min_steps
        collapses = trained_enough and used < self.min_used
        self._report(trainer, "collapse", collapses, self._collapse(used, len(counts_K), settings))
        blurs = trained_enough and sharpness < self.min_sharpness
        self._report(trainer, "blur", blurs, self._blur(sharpness, settings))
        wins = self.discriminator_right > self.max_right
        self._report(trainer, "discriminator", wins, self._discriminator_wins(settings))

    def _update_discriminator_right(self, trainer: Trainer) -> None:
        right = trainer.callback_metrics.get("train/discriminator_right")
        if right is not None:
            # The logged value is this rank's own.
            now = float(all_reduce_sum(right.double())) / trainer.world_size
            # Averaged over about five logged steps: single batches reach the limit by chance.
            self.discriminator_right = 0.8 * self.discriminator_right + 0.2 * now

    @property
    def _batches(self) -> str:
        return f"in the last {min(self.batches, self.window)} batches"

    def _collapse(self, used: float, codebook_size: int, settings: Mapping[str, Any]) -> str:
        quantizer = settings.get("quantizer") or {}
        return (
            f"the codebook collapses: {used:.1%} of its {codebook_size:,} codes were used "
            f"{self._batches} (below {self.min_used:.0%}). Lower learning_rate "
            f"({_current(settings, 'learning_rate')}), narrow quantizer.code_dim "
            f"({_current(quantizer, 'code_dim')}), raise quantizer.dead_code_threshold "
            f"({_current(quantizer, 'dead_code_threshold')}), or give a batch more images "
            "(data.batch_size)."
        )

    def _blur(self, sharpness: float, settings: Mapping[str, Any]) -> str:
        return (
            f"the reconstructions blur: their edges hold {sharpness:.0%} of the originals' energy "
            f"{self._batches} (below {self.min_sharpness:.0%}). Raise lambda_grad "
            f"({_current(settings, 'lambda_grad')}), or start the discriminator sooner: gan_start "
            f"({_current(settings, 'gan_start')})."
        )

    def _discriminator_wins(self, settings: Mapping[str, Any]) -> str:
        return (
            f"the discriminator wins: it is right on {self.discriminator_right:.1%} of the patches "
            f"(above {self.max_right:.0%}), and teaches the decoder little. Lower gan_weight "
            f"({_current(settings, 'gan_weight')}), or start it later: gan_start "
            f"({_current(settings, 'gan_start')})."
        )

    def _report(self, trainer: Trainer, failure: str, failing: bool, message: str) -> None:
        """Warn when a failure begins."""
        # Once per failure, or a collapsed codebook would fill the log.
        if failing and not self.failing.get(failure):
            text = f"step {trainer.global_step:,}: {message}"
            rank_zero_warn(text, stacklevel=2, category=MaviltWarning)
            for logger in trainer.loggers:
                if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero:
                    logger.experiment.add_text("health", text, trainer.global_step)
        # Recovered failures are forgotten, so that a second one warns again.
        self.failing[failure] = failing

    def state_dict(self) -> dict[str, Any]:
        """The window summed over the processes. Lightning calls it on all of them at once."""
        return {
            "batches": self.batches,
            "last_step": self.last_step,
            "discriminator_right": self.discriminator_right,
            "failing": dict(self.failing),
            "counts_WK": all_reduce_sum(self.counts_WK).cpu(),
            "energy_W2": all_reduce_sum(self.energy_W2).cpu(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the window until the device is known."""
        self.batches = state_dict["batches"]
        self.last_step = state_dict["last_step"]
        self.discriminator_right = state_dict["discriminator_right"]
        self.failing = dict(state_dict["failing"])
        self._resumed = {name: state_dict[name] for name in ("counts_WK", "energy_W2")}


def _gradient_energy(pixels_BCHW: Tensor) -> Tensor:
    """‖∇x‖² summed over a batch."""
    total = pixels_BCHW.new_zeros(())
    for differences in forward_differences(pixels_BCHW):
        total = total + differences.float().square().sum()
    return total


def _current(settings: Mapping[str, Any], key: str) -> str:
    # Defaults may be missing from the settings that Lightning saved.
    return f"now {settings[key]}" if key in settings else "now its default"
