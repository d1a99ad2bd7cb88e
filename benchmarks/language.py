"""The language stages' speed and memory, each as a ratio to a named peer within one run.

python benchmarks/language.py memory     # a step of Stage 1 at a vocabulary of 50k, against logits
for every position python benchmarks/language.py tokens     # target tokens a second, against
LLM-CXR's recipe on the same model and studies python benchmarks/language.py groups     # a batch in
passes of like lengths (`length_groups`), against one pass padded to its longest python
benchmarks/language.py draw       # 32 images, against transformers' generate with a logits
processor python benchmarks/language.py drift      # what λ/2 ‖θ − θ₀‖² costs of a step, and of
memory
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import resource
import statistics
import tarfile
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

THREADS = os.environ.setdefault("OMP_NUM_THREADS", "2")

import numpy as np
import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM, LogitsProcessor, LogitsProcessorList

from mavilt_pl.data.token_cache import write_tokens
from mavilt_pl.language import Stage1, Stage2
from mavilt_pl.language.backbone import train_tokenizer
from mavilt_pl.language.l2_regularization import PIECE
from mavilt_pl.language.sampling import left_padded
from mavilt_pl.language.sequences import Tree, by_length, length_of
from mavilt_pl.phantom.indiana import reports_archive

ROWS, WIDTH, LAYERS, CODES, GRID, BATCH = 50_304, 64, 2, 1024, 16, 2
TEXT = (
    "The heart is enlarged. There is a small left pleural effusion. No pneumothorax is seen. " * 6
)
ROUNDS = 5
ARMS = {
    "logits of every position": "all",
    "of the targets, in memory (`F.cross_entropy`)": "whole",
    "of the targets, `F.linear_cross_entropy` of torch": "torch",
    "of the targets, chunk by chunk (ours)": "ours",
}


def backbone(
    out: Path,
    width: int = WIDTH,
    layers: int = LAYERS,
    rows: int = ROWS,
    heads: int = 4,
    texts: Sequence[str] = (TEXT,),
    words: int = 300,
) -> None:
    tokenizer = train_tokenizer([*texts], words)
    config = LlamaConfig(
        vocab_size=rows,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(out / "backbone")
    tokenizer.save_pretrained(out / "backbone")
    random = np.random.default_rng(0)
    book = random.normal(size=(CODES, 8))
    write_tokens(
        out / "tokens",
        "corpus",
        "tokenizer",
        book,
        GRID,
        4,
        [random.integers(0, CODES, (4, GRID**2))],
    )


def peak() -> float:
    """Peak resident memory of this process so far, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def all_logits(module: Stage1, groups: list[Any]) -> torch.Tensor:
    """Every position's logits over the whole vocabulary in float32, those that are no target
    ignored: the usual way.
    """
    losses = []
    for packed in groups:
        labels = torch.full_like(packed.ids_BT, -100)
        labels[packed.row_M, packed.column_M] = packed.target_M
        logits = module.model(
            inputs_embeds=module.embed(packed.ids_BT), use_cache=False
        ).logits.float()
        losses.append(F.cross_entropy(logits.flatten(0, 1), labels.flatten()))
    return torch.stack(losses).sum()


def arm(name: str, folder: Path) -> tuple[float, float]:
    """Peak of a step forward and back, in MB above the loaded model with its gradients, and of the
    process.
    """
    from mavilt_pl.language import loss
    from mavilt_pl.language import module as language

    whole = "full" if name == "all" else "modality"
    module = Stage1(
        str(folder / "backbone"),
        str(folder / "tokens"),
        drift=0.0,
        loss_vocabulary=whole,
        condition_dropout=0.0,
    )  # type: ignore[arg-type]
    if name == "whole":
        loss.CHUNK = 2**62
    if name == "torch":

        def of_torch(
            hidden: torch.Tensor, head: list[loss.Rows], target: torch.Tensor
        ) -> torch.Tensor:
            (rows,) = head
            options = torch.nn.LinearCrossEntropyOptions()
            weight = rows.weight[rows.first : rows.last]
            return F.linear_cross_entropy(hidden, weight, target, reduction="none", options=options)

        language.linear_cross_entropy = of_torch  # type: ignore[assignment]
    codes = torch.randint(CODES, (BATCH, GRID**2), generator=torch.Generator().manual_seed(0))
    studies = [{"text": TEXT, "study": str(i)} for i in range(BATCH)]
    for (
        parameter
    ) in module.parameters():  # gradients are kept between steps, as an optimizer's states are
        parameter.grad = torch.zeros_like(parameter)
    before = peak()
    packed = module.on_before_batch_transfer({"codes": codes, "studies": studies}, 0)["packed"]
    value = (
        all_logits(module, packed)
        if name == "all"
        else torch.stack([*module.losses(packed).values()]).sum()
    )
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


QUESTIONS = (
    ("Is there a pleural effusion?", "yes"),
    ("Is there a pneumothorax?", "no"),
    ("Is the heart enlarged?", "yes"),
    ("Which side is the effusion on?", "left"),
)


def batch(count: int) -> dict[str, Any]:
    """Studies with a report of some twenty to sixty words each and four questions."""
    sentences = TEXT.split(". ")
    codes = torch.randint(CODES, (count, GRID**2), generator=torch.Generator().manual_seed(0))
    asked = [SimpleNamespace(question=question, answer=answer) for question, answer in QUESTIONS]
    studies = [
        {"text": ". ".join(sentences[: 4 + 3 * i % 9]) + ".", "study": str(i), "questions": asked}
        for i in range(count)
    ]
    return {"codes": codes, "studies": studies}


def pairs_of(ways: dict[str, Callable[[], Any]]) -> dict[str, list[float]]:
    """Seconds of each way, in turns, after one turn to warm up."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(ROUNDS + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            if turn:
                times[name].append(time.perf_counter() - start)
    return times


def told(ratios: list[float]) -> str:
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def tokens() -> None:
    print("| stage | target tokens/s | LLM-CXR's recipe | × |\n| --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        backbone(Path(folder), 384, 6)
        for stage, name in (
            (Stage1, "Stage 1: report, image"),
            (Stage2, "Stage 2: report, image, four questions"),
        ):
            module = stage(str(Path(folder) / "backbone"), str(Path(folder) / "tokens"), drift=0.0)
            groups = module.trees(batch(4), training=False)
            mine = [
                module.pack(part)
                for group in groups
                for part in by_length(group, module.hparams["length_groups"])
            ]
            # One sequence a target, all padded to the longest.
            alone = [
                Tree(tree.prefix, [branch])
                for group in groups
                for tree in group
                for branch in tree.branches
            ]
            theirs = [module.pack(alone)]
            targets = sum(len(packed.target_M) for packed in mine)
            assert targets == sum(len(packed.target_M) for packed in theirs)

            def ours(module: Any = module, packed: Any = mine) -> None:
                torch.stack([*module.losses(packed).values()]).sum().backward()
                module.zero_grad()

            def peer(module: Any = module, packed: Any = theirs) -> None:
                all_logits(module, packed).backward()
                module.zero_grad()

            times = pairs_of({"ours": ours, "peer": peer})
            rates = [targets / statistics.median(seconds) for seconds in times.values()]
            ratios = [b / a for a, b in zip(times["ours"], times["peer"])]
            print(f"| {name} | {rates[0]:,.0f} | {rates[1]:,.0f} | {told(ratios)} |", flush=True)


def groups() -> None:
    """Batches of 16 studies with the real Indiana reports, 256 codes an image; Stage 2 with four
    questions.
    """
    with tarfile.open(reports_archive()) as archive:
        files = [archive.extractfile(member) for member in archive if member.name.endswith(".xml")]
        roots = [ElementTree.parse(file).getroot() for file in files if file is not None]
    found = [
        node.text
        for root in roots
        for node in root.iter("AbstractText")
        if node.get("Label") == "FINDINGS"
    ]
    texts = [text for text in found if text]
    print("| stage | passes | padding, % of positions | × one pass |\n| --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        backbone(Path(folder), 384, 6, texts=texts, words=8000)
        for stage in (Stage1, Stage2):
            module = stage(
                str(Path(folder) / "backbone"), str(Path(folder) / "tokens"), drift=0.0
            ).eval()
            random, ways, padding = np.random.default_rng(0), {}, {}
            given = batch(16)
            for study, number in zip(given["studies"], random.integers(0, len(texts), 16)):
                study["text"] = texts[number]
            for count in (1, 2, 3, 4):
                module.hparams["length_groups"] = count
                packed = module.on_before_batch_transfer(given, 0)["packed"]
                rows = [len(group.ids_BT) for group in packed]
                used = sum(
                    sum(map(length_of, trees)) for trees in module.trees(given, training=False)
                )
                laid = sum(group.ids_BT.numel() for group in packed)
                padding[count] = (
                    f"{100 * (1 - used / laid):.1f} ({' + '.join(map(str, rows))} rows)"
                )

                def step(module: Any = module, packed: Any = packed) -> None:
                    torch.stack([*module.losses(packed).values()]).sum().backward()
                    module.zero_grad()

                ways[str(count)] = step
            times = pairs_of(ways)
            for name, seconds in times.items():
                ratio = told([a / b for a, b in zip(times["1"], seconds)])
                print(f"| {stage.__name__} | {name} | {padding[int(name)]} | {ratio} |", flush=True)


class OnlyCodes(LogitsProcessor):
    """The usual way to constrain `generate`: everything but the codes is impossible."""

    def __init__(self, first: int):
        self.first = first

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores[:, : self.first] = -torch.inf
        return scores


def draw() -> None:
    with tempfile.TemporaryDirectory() as folder:
        backbone(Path(folder), 384, 6)
        module = Stage1(
            str(Path(folder) / "backbone"), str(Path(folder) / "tokens"), drift=0.0
        ).eval()
        texts = [study["text"] for study in batch(32)["studies"]]
        ids, mask = left_padded(
            [module.draw_prompt(text) for text in texts], module.vocabulary.end, module.device
        )
        count = module.vocabulary.length

        def peer() -> torch.Tensor:
            with torch.inference_mode():
                out = module.model.generate(
                    ids,
                    attention_mask=mask,
                    do_sample=True,
                    top_p=0.92,
                    top_k=0,
                    min_new_tokens=count,
                    max_new_tokens=count,
                    pad_token_id=module.vocabulary.end,
                    logits_processor=LogitsProcessorList([OnlyCodes(module.vocabulary.first_code)]),
                )
            return out[:, -count:] - module.vocabulary.first_code

        drawn = peer()
        assert drawn.min() >= 0 and drawn.shape == module.draw(texts).shape

        def compiled() -> torch.Tensor:
            module.hparams["compile_drawing"] = True
            try:
                return module.draw(texts)
            finally:
                module.hparams["compile_drawing"] = False

        times = pairs_of({"ours": lambda: module.draw(texts), "compiled": compiled, "peer": peer})
        rates = [len(texts) / statistics.median(seconds) for seconds in times.values()]
        for name, rate in zip(times, rates):
            ratios = [b / a for a, b in zip(times[name], times["peer"])]
            print(f"{name}: {rate:.2f} images/s, × {told(ratios)}")


def drift() -> None:
    with tempfile.TemporaryDirectory() as folder:
        backbone(Path(folder), 384, 6)
        module = Stage1(str(Path(folder) / "backbone"), str(Path(folder) / "tokens"), drift=0.01)
        optimizer = torch.optim.AdamW(module.parameters(), 1e-5, foreach=True)
        packed = module.on_before_batch_transfer(batch(8), 0)["packed"]

        def step() -> None:
            torch.stack([*module.losses(packed).values()]).sum().backward()
            optimizer.step()
            optimizer.zero_grad()

        def term() -> None:
            module.drift.add_gradient()

        torch.stack([*module.losses(packed).values()]).sum().backward()
        kept = [parameter.grad for parameter in module.parameters()]

        def again() -> None:
            for parameter, gradient in zip(module.parameters(), kept):
                parameter.grad = gradient
            term()

        times = pairs_of({"step": step, "term": again})
        share = [b / (a + b) for a, b in zip(times["step"], times["term"])]
        held = sum(reference.numel() for reference in module.drift.reference)
        size = sum(reference.nbytes for reference in module.drift.reference)
        print(
            f"share of a step's time: {told([100 * part for part in share])} %; θ₀ "
            f"{size / held:.1f} bytes a weight, and {4 * PIECE / 2**20:.0f} MB while it is added"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["memory", "tokens", "groups", "draw", "drift"])
    chosen = parser.parse_args().what
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(
        1 if chosen == "memory" else int(THREADS)
    )  # memory forks processes after torch has run
    globals()[chosen]()
