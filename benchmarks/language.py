"""The language stages' memory, as a ratio to a named peer within one run.

python benchmarks/language.py memory     # a step of Stage 1 at a vocabulary of 50k, against logits for every position
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import resource
import tempfile
import warnings
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from mavilt_pl.data.tokens import write_tokens
from mavilt_pl.language import Stage1
from mavilt_pl.language.backbone import train_tokenizer

ROWS, WIDTH, LAYERS, CODES, GRID, BATCH = 50_304, 64, 2, 1024, 16, 2
TEXT = "The heart is enlarged. There is a small left pleural effusion. No pneumothorax is seen. " * 6
ARMS = {
    "logits of every position": "all",
    "of the targets, in memory (`F.cross_entropy`)": "whole",
    "of the targets, `F.linear_cross_entropy` of torch": "torch",
    "of the targets, chunk by chunk (ours)": "ours",
}


def backbone(out: Path) -> None:
    tokenizer = train_tokenizer([TEXT], 300)
    config = LlamaConfig(
        vocab_size=ROWS, hidden_size=WIDTH, intermediate_size=2 * WIDTH, num_hidden_layers=LAYERS,
        num_attention_heads=4, max_position_embeddings=1024, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(out / "backbone")
    tokenizer.save_pretrained(out / "backbone")
    random = np.random.default_rng(0)
    book = random.normal(size=(CODES, 8))
    write_tokens(out / "tokens", "corpus", "tokenizer", book, GRID, 4, [random.integers(0, CODES, (4, GRID**2))])


def peak() -> float:
    """Peak resident memory of this process so far, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def all_logits(module: Stage1, groups: list[Any]) -> torch.Tensor:
    """Every position's logits over the whole vocabulary in float32, those that are no target ignored: the usual way."""
    losses = []
    for packed in groups:
        labels = torch.full_like(packed.ids_BT, -100)
        labels[packed.row_M, packed.column_M] = packed.target_M
        logits = module.model(inputs_embeds=module.embed(packed.ids_BT), use_cache=False).logits.float()
        losses.append(F.cross_entropy(logits.flatten(0, 1), labels.flatten()))
    return torch.stack(losses).sum()


def arm(name: str, folder: Path) -> tuple[float, float]:
    """Peak of a step forward and back, in MB above the loaded model with its gradients, and of the process."""
    from mavilt_pl.language import loss
    from mavilt_pl.language import module as language

    whole = "full" if name == "all" else "modality"
    module = Stage1(
        str(folder / "backbone"), str(folder / "tokens"), drift=0.0, loss_vocabulary=whole, condition_dropout=0.0
    )  # type: ignore[arg-type]
    if name == "whole":
        loss.CHUNK = 2**62
    if name == "torch":

        def of_torch(hidden: torch.Tensor, head: list[loss.Rows], target: torch.Tensor) -> torch.Tensor:
            (rows,) = head
            options = torch.nn.LinearCrossEntropyOptions()
            weight = rows.weight[rows.first : rows.last]
            return F.linear_cross_entropy(hidden, weight, target, reduction="none", options=options)

        language.linear_cross_entropy = of_torch  # type: ignore[assignment]
    codes = torch.randint(CODES, (BATCH, GRID**2), generator=torch.Generator().manual_seed(0))
    studies = [{"text": TEXT, "study": str(i)} for i in range(BATCH)]
    for parameter in module.parameters():  # gradients are kept between steps, as an optimizer's states are
        parameter.grad = torch.zeros_like(parameter)
    before = peak()
    packed = module.on_before_batch_transfer({"codes": codes, "studies": studies}, 0)["packed"]
    value = all_logits(module, packed) if name == "all" else torch.stack([*module.losses(packed).values()]).sum()
    value.backward()
    return peak() - before, peak()


def memory() -> None:
    with tempfile.TemporaryDirectory() as folder:
        backbone(Path(folder))
        print("| loss | step, MB | × | process, MB | × |\n| --- | --- | --- | --- | --- |")
        fork = multiprocessing.get_context("fork")
        first: tuple[float, float] | None = None
        for words, name in ARMS.items():
            if name == "torch" and not hasattr(F, "linear_cross_entropy"):
                continue
            with fork.Pool(1) as process:  # a process of its own, so that its peak is its own
                step, whole = process.apply(arm, (name, Path(folder)))
            first = first or (step, whole)
            row = f"{step:,.0f} | {step / first[0]:.2f} | {whole:,.0f} | {whole / first[1]:.2f}"
            print(f"| {words} | {row} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["memory"])
    parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)  # processes are forked after torch has run
    memory()
