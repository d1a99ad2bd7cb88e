"""How often the host waits for the device in a step, counted on a CPU by the calls that would."""

from __future__ import annotations

import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import LightningModule, Trainer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader

from mavilt_pl.data.records import Question
from mavilt_pl.language import ModelOptions, Stage1, Stage2
from mavilt_pl.vqgan import VQGAN

# Calls whose result, or its size, the host needs.
WAITING = {
    "aten._local_scalar_dense.default",
    "aten.nonzero.default",
    "aten._unique2.default",
    "aten.masked_select.default",
    "aten.bincount.default",
    "aten.equal.default",
}
BY_MASK = {"aten.index.Tensor", "aten.index_put_.default", "aten.index_put.default"}
STEPS = 6


class Waits(TorchDispatchMode):
    """Counts waits by the line of ours or Lightning's that makes them."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        waits = str(func) in WAITING
        if str(func) in BY_MASK:
            waits = any(index is not None and index.dtype == torch.bool for index in args[1])
        if waits:
            frame = [f for f in traceback.extract_stack() if "/torch/" not in f.filename][-2]
            self.found[f"{func} {frame.filename}:{frame.lineno}"] += 1
        return func(*args, **(kwargs or {}))


def waits_per_step(module: LightningModule, batch: dict[str, Any], folder: Path) -> Counter[str]:
    """Waits that come at every step; those of a start come once."""
    trainer = Trainer(
        max_steps=STEPS,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=100,
        default_root_dir=folder,
    )
    with Waits() as waits:
        trainer.fit(module, DataLoader([batch] * STEPS, batch_size=None))  # type: ignore[arg-type]
    assert trainer.global_step == STEPS
    return Counter({place: n // STEPS for place, n in waits.found.items() if n >= STEPS})


@pytest.mark.parametrize("kind", [Stage1, Stage2])
def test_a_step_of_a_stage_waits_for_nothing(kind: Any, chain: Path, tmp_path: Path) -> None:
    tokens = chain / "tokens"
    options = ModelOptions(max_text_tokens=20)
    module = kind(str(chain / "backbone/backbone"), str(tokens), model=options)
    codes = torch.randint(16, (4, module.model.vocabulary.codes_per_image))
    asked = [Question("Is there edema?", "no", "edema", ("yes", "no"))]
    studies = [{"text": "No edema. " * n, "study": str(n), "questions": asked} for n in range(1, 5)]
    batch: dict[str, Any] = {"codes": codes, "studies": studies}
    # Packed in a loader's worker, where nothing is on a device.
    batch["packed"] = module.collate.pack(batch, training=True)
    assert not waits_per_step(module, batch, tmp_path)


@pytest.mark.parametrize("clinical", [True, False])
def test_a_step_of_the_tokenizer_waits_once(clinical: bool, chain: Path, tmp_path: Path) -> None:
    """To see that its terms and gradients are finite."""
    settings: dict[str, Any] = {"lambda_feat": 0.0, "lambda_finding": 0.0, "finding_weight": 0.0}
    if clinical:
        encoder = str(chain / "encoder/checkpoints/last.ckpt")
        settings = {"encoder": encoder, "lambda_feat": 1.0, "lambda_finding": 1.0}
    module = VQGAN(
        autoencoder={
            "image_size": 32,
            "channels": 8,
            "channel_multipliers": [1, 2],
            "num_res_blocks": 1,
            "attention_resolutions": [],
            "latent_dim": 8,
        },
        quantizer={"codebook_size": 16, "code_dim": 4},
        clinical_input=clinical,
        gan_weight=0.1,
        gan_start=0,
        **settings,
    )
    batch = {"pixels": torch.rand(4, 1, 32, 32) * 2 - 1, "studies": [{"hidden_name": "x"}] * 4}
    waits = waits_per_step(module, batch, tmp_path)
    assert sum(waits.values()) == 1, waits
