"""The tokenizer's health while it trains: said in figures, and in words when it fails."""

from __future__ import annotations

from typing import Any

import torch
from lightning import Callback, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from mavilt_pl.parallel.distributed import all_reduce_sum
from mavilt_pl.vqgan.losses import forward_differences


class CodebookHealth(Callback):
    """Logs, over the last `window` batches of all processes, at every step that is logged:

    - `train/codebook_used`: share of the K codes that were used, in [0, 1];
    - `train/codebook_perplexity`: exp of the entropy of their use, in [1, K];
    - `train/sharpness`: ‖∇x̂‖² / ‖∇x‖², forward differences, sums over all images; 1 is as sharp as
      the original.

    It warns once for each failure, and again only after a recovery: blurring and collapse are the
    failures that arXiv 2502.05926 names; a discriminator that always wins teaches nothing. The
    words stand in TensorBoard too (`health`).

    The window is a ring of counts, int32 [window,K]: exact, a few megabytes, and one scatter a
    batch; nothing waits for the device before a step that is logged. A checkpoint holds the sum
    over the processes, so that a resumed run logs what the uninterrupted one would have.

    Args:
        window: batches (of every process) that the figures are over.
        patience: steps of the generator before collapse and blur are called so: at first every
            tokenizer blurs.
        min_used: codes used below this share are a collapse.
        min_sharpness: sharpness below this is a blur. Noise in the original counts as sharp and
            cannot be kept.
        max_right: a discriminator that is right on more than this share of patches, in a moving
            average over the logged steps that starts at one half, wins.
    """

    def __init__(
        self,
        window: int = 200,
        patience: int = 1000,
        min_used: float = 0.1,
        min_sharpness: float = 0.5,
        max_right: float = 0.95,
    ):
        self.window, self.patience = window, patience
        self.min_used, self.min_sharpness, self.max_right = min_used, min_sharpness, max_right
        self.batches = 0
        self.looked = 0
        self.right = 0.5
        self.failing: dict[str, bool] = {}
        self.counts_WK = torch.empty(0)
        self.energy_W2 = torch.empty(0)  # of x̂ and of x
        self._resumed: dict[str, Tensor] = {}

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        device = pl_module.device
        self.counts_WK = torch.zeros(
            self.window, pl_module.tokenizer.codebook_size, dtype=torch.int32, device=device
        )
        self.energy_W2 = torch.zeros(self.window, 2, dtype=torch.float64, device=device)
        counts = self._resumed.get("counts_WK")
        if (
            counts is None or counts.shape != self.counts_WK.shape
        ):  # another window or codebook: it fills anew
            self.batches = 0
        elif trainer.is_global_zero:  # what all processes had counted
            self.counts_WK.copy_(counts)
            self.energy_W2.copy_(self._resumed["energy_W2"])
        self._resumed = {}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not isinstance(outputs, dict) or not {"codes", "reconstruction"} <= outputs.keys():
            return
        with torch.no_grad():
            row = self.batches % self.window
            codes = outputs["codes"].flatten()
            # bincount would wait for the device.
            self.counts_WK[row].zero_().scatter_add_(
                0, codes, torch.ones_like(codes, dtype=torch.int32)
            )
            self.energy_W2[row] = torch.stack(
                [_energy(outputs["reconstruction"]), _energy(batch["pixels"])]
            )
            self.batches += 1
            step = trainer.global_step  # which does not move while gradients accumulate
            if step > self.looked and step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
                self.looked = step
                self._look(trainer, pl_module)

    def _look(self, trainer: Trainer, module: Any) -> None:
        counts_K, energy_2 = (
            all_reduce_sum(self.counts_WK.sum(0)),
            all_reduce_sum(self.energy_W2.sum(0)),
        )
        share_K = counts_K.double() / counts_K.sum()
        used = float((counts_K > 0).double().mean())
        sharpness = float(energy_2[0] / energy_2[1].clamp(min=1e-12))
        figures = {
            "train/codebook_used": used,
            "train/codebook_perplexity": float(
                (-share_K * share_K.clamp(min=1e-30).log()).sum().exp()
            ),
            "train/sharpness": sharpness,
        }
        module.log_dict(figures, logger=False)
        for logger in trainer.loggers:
            logger.log_metrics(figures, trainer.global_step)
        right = trainer.callback_metrics.get("train/discriminator_right")
        if right is not None:
            now = float(all_reduce_sum(right.double())) / trainer.world_size
            self.right = 0.8 * self.right + 0.2 * now
        grown, h = trainer.global_step >= self.patience, module.hparams
        quantizer = h.get("quantizer") or {}
        batches = f"in the last {min(self.batches, self.window)} batches"
        self._say(
            trainer,
            "collapse",
            grown and used < self.min_used,
            (
                f"the codebook collapses: {used:.1%} of its {len(counts_K):,} codes were used "
                f"{batches} (below "
                f"{self.min_used:.0%}). Lower learning_rate ({_now(h, 'learning_rate')}), narrow "
                f"quantizer.code_width "
                f"({_now(quantizer, 'code_width')}), raise quantizer.dead_code_threshold "
                f"({_now(quantizer, 'dead_code_threshold')}), or give "
                "a batch more images (data.batch_size)."
            ),
        )
        self._say(
            trainer,
            "blur",
            grown and sharpness < self.min_sharpness,
            (
                f"the reconstructions blur: their edges hold {sharpness:.0%} of the originals' "
                f"energy {batches} (below "
                f"{self.min_sharpness:.0%}). Raise lambda_grad ({_now(h, 'lambda_grad')}), or "
                f"start the discriminator sooner: "
                f"gan_start ({_now(h, 'gan_start')})."
            ),
        )
        self._say(
            trainer,
            "discriminator",
            self.right > self.max_right,
            (
                f"the discriminator wins: it is right on {self.right:.1%} of the patches (above "
                f"{self.max_right:.0%}), and "
                f"teaches the decoder little. Lower gan_weight ({_now(h, 'gan_weight')}), or start "
                f"it later: gan_start "
                f"({_now(h, 'gan_start')})."
            ),
        )

    def _say(self, trainer: Trainer, failure: str, failing: bool, words: str) -> None:
        if failing and not self.failing.get(failure):
            text = f"step {trainer.global_step:,}: {words}"
            rank_zero_warn(text, stacklevel=2)
            for logger in trainer.loggers:
                if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero:
                    logger.experiment.add_text("health", text, trainer.global_step)
        self.failing[failure] = failing

    def state_dict(self) -> dict[str, Any]:
        """Called on every process at once, as Lightning does when it saves."""
        return {
            "batches": self.batches,
            "looked": self.looked,
            "right": self.right,
            "failing": dict(self.failing),
            "counts_WK": all_reduce_sum(self.counts_WK).cpu(),
            "energy_W2": all_reduce_sum(self.energy_W2).cpu(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.batches, self.looked, self.right = (
            state_dict[name] for name in ("batches", "looked", "right")
        )
        self.failing = dict(state_dict["failing"])
        self._resumed = {name: state_dict[name] for name in ("counts_WK", "energy_W2")}


def _energy(pixels_BCHW: Tensor) -> Tensor:
    return sum(
        (d.float().square().sum() for d in forward_differences(pixels_BCHW)),
        start=pixels_BCHW.new_zeros(()),
    )


def _now(settings: Any, key: str) -> str:
    return f"now {settings[key]}" if key in settings else "now its default"
