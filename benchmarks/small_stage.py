"""A small Llama-style backbone, its token cache and batches, for the benchmarks of the stages."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from mavilt_pl.data.token_cache import write_tokens
from mavilt_pl.language import ModelOptions, RegularizationOptions, TuningOptions
from mavilt_pl.language.options import TASKS
from mavilt_pl.language.task_loss import count_targets, span_sums
from mavilt_pl.language.text_pretraining import train_tokenizer

CODES, GRID = 1024, 16  # size of the codebook, side of an image's grid of codes
ROWS = 50_304  # of the backbone's vocabulary
TEXT = (
    "The heart is enlarged. There is a small left pleural effusion. No pneumothorax is seen. " * 6
)
QUESTIONS = (
    ("Is there a pleural effusion?", "yes"),
    ("Is there a pneumothorax?", "no"),
    ("Is the heart enlarged?", "yes"),
    ("Which side is the effusion on?", "left"),
)
ROUNDS = 5


def write_inputs(
    folder: Path,
    width: int,
    layers: int,
    heads: int = 4,
    texts: Sequence[str] = (TEXT,),
    text_vocabulary: int = 300,
) -> None:
    """Write `backbone` and `tokens` of a stage into a folder."""
    tokenizer = train_tokenizer([*texts], text_vocabulary)
    config = LlamaConfig(
        vocab_size=ROWS,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder / "backbone")
    tokenizer.save_pretrained(folder / "backbone")
    random = np.random.default_rng(0)
    codebook = random.normal(size=(CODES, 8))
    codes = random.integers(0, CODES, (4, GRID**2))
    write_tokens(folder / "tokens", "corpus", "tokenizer", codebook, GRID, 4, [codes])


def build_stage(stage: type, folder: Path, lambda_reg: float = 0.0, **options: Any) -> Any:
    """A stage on the inputs of `write_inputs`.

    Args:
        stage: Stage1 or Stage2.
        folder: of the inputs.
        lambda_reg: λ_reg.
        options: `model` and `tuning`, if they differ from the defaults.
    """
    regularization = RegularizationOptions(lambda_reg=lambda_reg, condition_dropout=0.0)
    return stage(
        str(folder / "backbone"),
        str(folder / "tokens"),
        model=options.get("model", ModelOptions()),
        tuning=options.get("tuning", TuningOptions()),
        regularization=regularization,
    )


def random_codes(count: int) -> Tensor:
    """Codes int64 [count, N]."""
    return torch.randint(CODES, (count, GRID**2), generator=torch.Generator().manual_seed(0))


def long_reports(count: int) -> dict[str, Any]:
    """A batch of studies with one long report each."""
    studies = [{"text": TEXT, "study": str(i)} for i in range(count)]
    return {"codes": random_codes(count), "studies": studies}


def varied_reports(count: int) -> dict[str, Any]:
    """A batch of studies with a report of some twenty to sixty words and four questions each."""
    sentences = TEXT.split(". ")
    questions = [SimpleNamespace(question=text, answer=answer) for text, answer in QUESTIONS]
    studies = []
    for i in range(count):
        text = ". ".join(sentences[: 4 + 3 * i % 9]) + "."
        studies.append({"text": text, "study": str(i), "questions": questions})
    return {"codes": random_codes(count), "studies": studies}


def total_loss(module: Any, packed: Sequence[Any]) -> Tensor:
    """The sum of the tasks' mean losses, of all passes held at once."""
    return torch.stack([pass_loss(module, packed, one) for one in packed]).sum()


def pass_loss(module: Any, packed: Sequence[Any], one: Any) -> Tensor:
    """A pass's part of `total_loss`."""
    counts = dict(zip(TASKS, count_targets(packed)))
    sums = span_sums(module.model.token_losses(one), one)
    return torch.stack([nats / counts[task] for task, nats in sums]).sum()


def backward_by_pass(module: Any, packed: Sequence[Any]) -> None:
    """Add the gradient of `total_loss` pass by pass, as a training step does."""
    for one in packed:
        pass_loss(module, packed, one).backward()


def seconds_in_turns(
    ways: Mapping[str, Callable[[], Any]], rounds: int = ROUNDS
) -> dict[str, list[float]]:
    """Seconds of each way in each round, in turns, after one round to warm up."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for round_number in range(rounds + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            if round_number:
                times[name].append(time.perf_counter() - start)
    return times


def spread(ratios: Sequence[float]) -> str:
    """Median with the least and the most in brackets."""
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
