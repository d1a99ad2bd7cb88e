"""CodebookHealth on a stand-in whose codes and sharpness are known, through Lightning's own
trainer.
"""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import DataLoader

from mavilt_pl.callbacks import CodebookHealth

K = 16


class StandIn(LightningModule):
    """Codes and the reconstruction come with the batch."""

    def __init__(
        self, learning_rate: float = 0.1, lambda_grad: float = 2.0, gan_weight: float = 0.3
    ):
        super().__init__()
        self.save_hyperparameters()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.tokenizer = SimpleNamespace(codebook_size=K)

    def training_step(self, batch: dict, index: int) -> dict:
        self.log("train/discriminator_right", batch["right"].mean())
        made = batch["pixels"] * batch["scale"][:, None, None, None]
        return {"loss": self.weight.square(), "codes": batch["codes"], "reconstruction": made}

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1)


class Epochs(LightningDataModule):
    """Rows in epochs, so that a checkpoint after the first is one in the middle of the training."""

    def __init__(self, rows: list[dict], batch: int, epochs: int):
        super().__init__()
        self.rows, self.batch, self.epochs = rows, batch, epochs

    def train_dataloader(self) -> DataLoader:
        size, epoch = len(self.rows) // self.epochs, self.trainer.current_epoch  # type: ignore[union-attr]
        rows = self.rows[epoch * size : (epoch + 1) * size]
        return DataLoader(rows[self.trainer.global_rank :: self.trainer.world_size], self.batch)  # type: ignore[union-attr]


def images(count: int, codes: Any = None, scale: Any = None, right: Any = None) -> list[dict]:
    random = torch.Generator().manual_seed(0)
    pixels = torch.rand(count, 1, 8, 8, generator=random) * 2 - 1
    drawn = torch.randint(0, K, (count, 4), generator=random)
    return [
        {
            "pixels": pixels[i],
            "codes": torch.tensor(codes[i]) if codes else drawn[i],
            "scale": torch.tensor(float(scale[i]) if scale else 0.5),
            "right": torch.tensor(float(right[i]) if right else i % 3 / 2),
        }
        for i in range(count)
    ]


def train(
    root: Path, data: list[dict], health: CodebookHealth, batch: int = 2, **more: Any
) -> dict[str, Any]:
    """What TensorBoard has in the end: scalars as {tag: {step: value}}, and the words."""
    ckpt, every, epochs = more.pop("ckpt", None), more.pop("every", 2), more.pop("epochs", 1)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        log_every_n_steps=every,
        logger=TensorBoardLogger(root, "", "tb"),
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=root,
        reload_dataloaders_every_n_epochs=1,
        use_distributed_sampler=False,
        callbacks=[
            health,
            ModelCheckpoint(root / "ckpt", "{step}", every_n_train_steps=3, save_top_k=-1),
        ],
        **more,
    )
    trainer.fit(
        StandIn(), datamodule=Epochs(data, batch, epochs), ckpt_path=ckpt, weights_only=True
    )
    reader = EventAccumulator(str(root / "tb"))
    reader.Reload()
    found: dict[str, Any] = {
        tag: {event.step: event.value for event in reader.Scalars(tag)}
        for tag in reader.Tags()["scalars"]
    }
    words = (
        reader.Tensors("health/text_summary")
        if "health/text_summary" in reader.Tags()["tensors"]
        else []
    )
    return found | {"health": [event.tensor_proto.string_val[0].decode() for event in words]}


def test_figures_by_hand(tmp_path: Path) -> None:
    """A window of two batches of two images: what the third and fourth batch hold, and nothing
    else.
    """
    codes = [
        [0] * 4,
        [1] * 4,
        [2] * 4,
        [3] * 4,
        [4, 4, 4, 4],
        [4, 4, 5, 5],
        [6, 6, 6, 6],
        [6, 6, 6, 6],
    ]
    data = images(8, codes, scale=[1, 1, 1, 1, 0.5, 0.5, 0.25, 0.25])
    found = train(tmp_path, data, CodebookHealth(window=2))
    assert found["train/codebook_used"] == {2: 4 / K, 4: 3 / K}
    share = torch.tensor([6, 2, 8]) / 16
    assert found["train/codebook_perplexity"][4] == pytest.approx(
        math.exp(-(share * share.log()).sum())
    )
    pixels = torch.stack([row["pixels"] for row in data[4:]])
    energy = torch.stack([pixels.diff(dim=d).square().sum((1, 2, 3)) for d in (-1, -2)]).sum(0)
    expected = (energy * torch.tensor([0.25, 0.25, 0.0625, 0.0625])).sum() / energy.sum()
    assert found["train/sharpness"][4] == pytest.approx(float(expected), rel=1e-6)


def test_resumed_equals_never_stopped(tmp_path: Path) -> None:
    """From the checkpoint of step 3 of 9, with a window of four; what was reported before is not
    reported again.
    """
    data, more = images(18, right=[1] * 18), {"min_steps": 10**9, "max_right": 0.6}
    whole = train(tmp_path / "whole", data, CodebookHealth(4, **more), every=1, epochs=3)  # type: ignore[arg-type]
    point = {"ckpt": str(tmp_path / "whole/ckpt/step=3.ckpt"), "every": 1, "epochs": 3}
    second = train(tmp_path / "second", data, CodebookHealth(4, **more), **point)  # type: ignore[arg-type]
    for tag in ("train/codebook_used", "train/codebook_perplexity", "train/sharpness"):
        assert second[tag] == {step: value for step, value in whole[tag].items() if step > 3}
        assert len(second[tag]) == 6
    assert len(whole["health"]) == 1
    assert not second["health"]
    other = train(tmp_path / "other", data, CodebookHealth(5, **more), **point)  # type: ignore[arg-type]
    assert (
        other["train/codebook_used"][4] < whole["train/codebook_used"][4]
    )  # another window fills again


@pytest.mark.slow
def test_two_processes_equal_one_also_when_resumed(tmp_path: Path) -> None:
    data = images(36)
    two = {"devices": 2, "strategy": "ddp_fork", "epochs": 3, "every": 1}
    one = train(tmp_path / "one", data, CodebookHealth(4), batch=4, epochs=3, every=1)
    pair = train(tmp_path / "pair", data, CodebookHealth(4), **two)
    again = train(
        tmp_path / "again",
        data,
        CodebookHealth(4),
        ckpt=str(tmp_path / "pair/ckpt/step=3.ckpt"),
        **two,
    )
    for tag in ("train/codebook_used", "train/codebook_perplexity", "train/sharpness"):
        assert len(one[tag]) == 9
        assert one[tag] == pytest.approx(pair[tag], rel=1e-6)
        assert again[tag] == pytest.approx(
            {step: value for step, value in one[tag].items() if step > 3}, rel=1e-6
        )


def test_a_failure_is_reported_once_with_its_key_and_again_after_a_recovery(tmp_path: Path) -> None:
    """Sound, collapsed and blurred, sound, collapsed and blurred: two images a stretch of four
    steps.
    """
    sound, poor = [[i % K, (i + 5) % K, 3, 9] for i in range(4)], [[7] * 4] * 4
    data = images(16, [*sound, *poor] * 2, [1, 1, 1, 1, 0.5, 0.5, 0.5, 0.5] * 2, [0.5] * 16)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = train(tmp_path, data, CodebookHealth(window=1, min_steps=2), batch=1, every=1)
    message = [str(w.message) for w in caught if str(w.message).startswith("step ")]
    assert [text.split(":")[0] for text in message] == ["step 5", "step 5", "step 13", "step 13"]
    assert message[0].startswith("step 5: the codebook collapses: 6.2% of its 16 codes")
    assert "below 10%" in message[0]
    for key in (
        "learning_rate (now 0.1)",
        "quantizer.code_dim",
        "quantizer.dead_code_threshold",
        "data.batch_size",
    ):
        assert key in message[0]
    assert "25% of the originals' energy" in message[1]
    assert "lambda_grad (now 2.0)" in message[1]
    assert "gan_start" in message[1]
    assert found["health"] == message

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(tmp_path / "patient", data, CodebookHealth(window=1, min_steps=13), batch=1, every=1)
    assert [str(w.message)[:8] for w in caught if "codebook" in str(w.message)] == ["step 13:"]


def test_a_discriminator_that_always_wins_is_named(tmp_path: Path) -> None:
    data = images(30, right=[1] * 30)
    with pytest.warns(
        UserWarning, match=r"step 11: the discriminator wins: .*gan_weight \(now 0\.3\).*gan_start"
    ):
        train(
            tmp_path, data, CodebookHealth(min_steps=10**9), batch=1, every=1
        )  # 1 − 0.5 · 0.8¹¹ = 0.957


def test_a_step_that_returns_nothing_is_ignored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StandIn, "training_step", lambda self, batch, index: self.weight.square())
    assert "train/codebook_used" not in train(tmp_path, images(4), CodebookHealth())
