"""The training of the tokenizer through the command line: ranks, a killed run, accumulation,
precision, bad batches.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from words import DATA, QUIET

from mavilt_pl.cli import main
from mavilt_pl.data.corpus import Corpus
from mavilt_pl.vqgan.module import VQGAN

SMALL = {
    "image_size": 16,
    "channels": 8,
    "channel_multipliers": [1, 2],
    "num_res_blocks": 1,
    "attention_resolutions": [8],
    "latent_dim": 8,
}
EMA = [
    "--trainer.callbacks+=lightning.pytorch.callbacks.EMAWeightAveraging",
    "--trainer.callbacks.decay=0.9",
    "--trainer.callbacks.use_buffers=false",
]


def words(chain: Path, corpus: Path, out: Path, batch: int, *more: str) -> list[str]:
    model = {
        "autoencoder": "{image_size: 32, channels: 8, channel_multipliers: [1, 2], "
        "num_res_blocks: 1, attention_resolutions: [16], latent_dim: 16}",
        "quantizer": "{codebook_size: 32, code_dim: 4}",
        "encoder": f"{chain}/encoder/checkpoints/last.ckpt",
        "gan_start": "4",
        # At the demo's 3, rounding alone grows to 2e-4 of the loss within 20 steps
        "lambda_feat": "0.05",
        "lambda_finding": "0.03",
        "discriminator": "{channels: 8, layers: 1}",
    }
    return [
        "fit",
        "--config=demo/vqgan.yaml",
        *QUIET,
        DATA,
        f"--data.corpora=[{corpus}]",
        "--data.weights=null",
        "--data.num_workers=0",
        f"--data.batch_size={batch}",
        *(f"--model.init_args.{k}={v}" for k, v in model.items()),
        f"--trainer.default_root_dir={out}",
        "--trainer.log_every_n_steps=1",
        "--trainer.val_check_interval=3",
        "--trainer.limit_val_batches=1",
        "--trainer.num_sanity_val_steps=0",
        *more,
    ]


def elsewhere(arguments: list[str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "mavilt_pl.cli", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        start_new_session=True,
    )


def checkpoint(out: Path) -> dict[str, Any]:
    return torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)


def logged(out: Path, tag: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(out / "tensorboard"))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


@pytest.mark.slow
def test_two_ranks_train_as_one_does(chain: Path, corpus_path: Path, tmp_path: Path) -> None:
    """20 steps, the discriminator from step 4 on: the same losses and the same codebook."""
    runs = {}
    for name, batch, more in (
        ("one", 8, ()),
        ("two", 4, ("--trainer.devices=2", "--trainer.strategy=ddp_find_unused_parameters_true")),
    ):
        out = tmp_path / name
        running = elsewhere(
            words(
                chain,
                corpus_path,
                out,
                batch,
                "--trainer.max_steps=20",
                "--trainer.limit_val_batches=0",
                *more,
            )
        )
        message, _ = running.communicate(timeout=240)
        assert running.returncode == 0, message[-3000:]
        runs[name] = (
            checkpoint(out)["state_dict"],
            [dict(logged(out, f"train/{tag}")) for tag in ("loss", "adversarial", "discriminator")],
        )
    (one, losses), (two, others) = runs["one"], runs["two"]
    # The discriminator amplifies rounding: 7e-4 after 16 steps on one processor, below 1e-4 on
    # another. A rank that learned something else would differ in the first digit.
    for mine, other, relative in zip(losses, others, (1e-4, 5e-3, 5e-3)):
        assert mine.keys() == other.keys()
        assert len(mine) >= 16
        expected = pytest.approx([*mine.values()], abs=1e-5, rel=relative)
        assert [other[step] for step in mine] == expected
    torch.testing.assert_close(
        one["tokenizer.quantizer.codebook"], two["tokenizer.quantizer.codebook"], atol=1e-5, rtol=0
    )


@pytest.mark.slow
def test_killed_and_resumed_is_bit_for_bit_as_never_killed(
    chain: Path, corpus_path: Path, tmp_path: Path
) -> None:
    """kill -9 between two steps, then the same command again: weights, averages, both optimizers,
    schedules, codebook.
    """

    def command(out: Path) -> list[str]:
        more = [
            "--trainer.max_steps=12",
            "--model.init_args.accumulate_grad_batches=2",
            "--checkpoint_every=1",
            "--ckpt_path=last",
        ]
        return words(chain, corpus_path, out, 4, *more, *EMA)

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    message, _ = elsewhere(command(whole)).communicate(timeout=240)
    running = elsewhere(command(broken))
    while running.poll() is None and not (broken / "checkpoints" / "step=5.ckpt").exists():
        time.sleep(0.01)
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    reached = checkpoint(broken)["global_step"]
    assert 0 < reached < 12, message[-2000:]
    again = elsewhere(command(broken))
    message, _ = again.communicate(timeout=240)
    assert again.returncode == 0, message[-3000:]

    first, second = checkpoint(whole), checkpoint(broken)
    assert first["global_step"] == second["global_step"] == 12
    assert first["lr_schedulers"] == second["lr_schedulers"]
    for key in ("state_dict", "current_model_state"):
        for name, value in first[key].items():
            assert torch.equal(value, second[key][name]), (key, name)
    changed = []
    for name, value in first["state_dict"].items():
        if not torch.equal(value, first["current_model_state"][name]):
            changed.append(name)
    # Weights are averaged, codes are not.
    assert changed
    assert not any("codebook" in name for name in changed)
    for mine, other in zip(first["optimizer_states"], second["optimizer_states"]):
        for number, state in mine["state"].items():
            for name, value in state.items():
                assert torch.equal(value, other["state"][number][name]), (number, name)
    steps = [step for step, _ in logged(broken, "train/loss")]
    assert sorted(set(steps)) == list(range(1, 13))


@pytest.mark.slow
def test_accumulated_batches_are_one_batch(corpus_path: Path, tmp_path: Path) -> None:
    """Codes held still: three steps of 2 × 4 images and of 8 end at the same weights, and both say
    three steps.
    """
    ends = []
    for name, batch, each in (("whole", 8, 1), ("parts", 4, 2)):
        out = tmp_path / name
        plain = {
            "autoencoder": "{image_size: 32, channels: 8, channel_multipliers: [1, 2], "
            "num_res_blocks: 1, attention_resolutions: [], latent_dim: 8}",
            "quantizer": "{codebook_size: 16, code_dim: 4, decay: 1.0, "
            "dead_code_threshold: 0, kmeans: false}",
            "accumulate_grad_batches": each,
            "gan_weight": 0,
            "warmup": 0,
            "lambda_feat": 0,
            "lambda_finding": 0,
            "finding_weight": 0,
            "clinical_input": "false",
        }
        arguments = [
            "fit",
            "--config=demo/vqgan.yaml",
            *QUIET,
            DATA,
            f"--data.corpora=[{corpus_path}]",
            "--data.weights=null",
            f"--data.batch_size={batch}",
            *(f"--model.init_args.{k}={v}" for k, v in plain.items()),
            f"--trainer.default_root_dir={out}",
            "--trainer.log_every_n_steps=1",
            "--trainer.limit_val_batches=0",
            "--trainer.max_steps=3",
        ]
        assert main(arguments) == 0
        assert [step for step, _ in logged(out, "train/loss")] == [1, 2, 3]
        ends.append(checkpoint(out))
    assert ends[0]["global_step"] == ends[1]["global_step"] == 3
    for name, value in ends[0]["state_dict"].items():
        if name.endswith("_extra_state"):
            continue  # how often codes were drawn: once a batch
        torch.testing.assert_close(
            value, ends[1]["state_dict"][name], atol=1e-5, rtol=1e-4, msg=name
        )


@pytest.mark.slow
def test_bf16_keeps_the_codes_in_float32(chain: Path, corpus_path: Path, tmp_path: Path) -> None:
    more = [
        "--trainer.precision=bf16-mixed",
        "--trainer.max_steps=6",
        "--model.init_args.channels_last=true",
    ]
    assert main(words(chain, corpus_path, tmp_path, 4, *more)) == 0
    state = checkpoint(tmp_path)["state_dict"]
    lengths = state["tokenizer.quantizer.codebook"].norm(dim=1)
    assert state["tokenizer.quantizer.codebook"].dtype == torch.float32
    torch.testing.assert_close(lengths, torch.ones_like(lengths), atol=1e-6, rtol=0)


@pytest.mark.slow
def test_compiled_networks_train_as_plain_ones_and_keep_their_names(
    chain: Path, corpus_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through AOTAutograd, which frees what a backward pass has used, with logged steps among those
    with the discriminator.
    """
    compiled, whole = [], torch.nn.Module.compile
    monkeypatch.setattr(
        torch.nn.Module,
        "compile",
        lambda self, **_: (compiled.append(self), whole(self, backend="aot_eager")),
    )
    more = ["--trainer.max_steps=7", "--trainer.log_every_n_steps=3"]
    assert main(words(chain, corpus_path, tmp_path / "plain", 4, *more)) == 0
    more.append("--model.init_args.compile=true")
    assert main(words(chain, corpus_path, tmp_path / "compiled", 4, *more)) == 0
    assert len(compiled) == 3
    plain, state = (checkpoint(tmp_path / name)["state_dict"] for name in ("plain", "compiled"))
    assert state.keys() == plain.keys()
    torch.testing.assert_close(
        state["tokenizer.autoencoder.out.weight"],
        plain["tokenizer.autoencoder.out.weight"],
        atol=1e-4,
        rtol=0,
    )


def test_a_weight_of_zero_costs_nothing() -> None:
    """No encoder is loaded, no discriminator is built, and only the plain terms are computed."""
    module = VQGAN(SMALL, {"codebook_size": 16, "kmeans": False}, lambda_grad=0, gan_weight=0)
    assert module.phi is None
    assert module.discriminator is None
    terms, *_ = module.terms(torch.zeros(2, 1, 16, 16))
    assert set(terms) == {"l1", "commitment"}


@pytest.mark.slow
def test_a_batch_that_is_not_finite_stops_and_leaves_the_last_checkpoint_good(
    chain: Path,
    corpus_path: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain = VQGAN.terms

    def spoiled(self: VQGAN, pixels: torch.Tensor) -> Any:
        terms, recon, codes = plain(self, pixels)
        if self.global_step == 3:
            terms["gradient"] = terms["gradient"] * float("inf")
        return terms, recon, codes

    monkeypatch.setattr(VQGAN, "terms", spoiled)
    more = ["--trainer.max_steps=6", "--checkpoint_every=1"]
    assert main(words(chain, corpus_path, tmp_path, 4, *more)) == 1
    message = " ".join(capsys.readouterr().err.split())
    assert "step 3: not finite: gradient; studies of the batch: " in message
    corpus = Corpus(corpus_path)
    studies = {study.study for study in corpus}
    # Findable with the corpus alone, and not by its identifiers.
    named = message.partition("studies of the batch: ")[2].partition(".")[0].split(", ")
    assert {*named} - {"…"} <= {corpus.hidden_name(study) for study in studies}
    assert not any(study in message for study in studies)
    assert "--ckpt_path last" in message
    kept = checkpoint(tmp_path)
    assert kept["global_step"] == 3
    for value in kept["state_dict"].values():
        assert not value.is_floating_point() or value.isfinite().all()
