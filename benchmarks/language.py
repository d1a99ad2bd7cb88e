"""The language stages' speed and memory, each as a ratio to a named peer within one run.

python benchmarks/language.py memory     # a step of Stage 1, against logits of every position
python benchmarks/language.py passes     # a step, against one backward for all passes
python benchmarks/language.py tokens     # target tokens a second, against LLM-CXR's recipe
python benchmarks/language.py groups     # passes of similar length, against one padded pass
python benchmarks/language.py answers    # questions a second, against one sequence a candidate
python benchmarks/language.py generate   # 32 images, against transformers' `generate`
python benchmarks/language.py l2         # the share of λ/2 ‖θ − θ₀‖² in a step
"""

from __future__ import annotations

import argparse
import ctypes
import logging
import multiprocessing
import os
import resource
import statistics
import tarfile
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

THREADS = os.environ.setdefault("OMP_NUM_THREADS", "2")

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from small_stage import (
    backward_by_pass,
    build_stage,
    long_reports,
    random_codes,
    seconds_in_turns,
    spread,
    total_loss,
    varied_reports,
    write_inputs,
)
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from mavilt_pl.language import ModelOptions, Stage1, Stage2
from mavilt_pl.language import chunked_cross_entropy as chunked
from mavilt_pl.language import model as language_model
from mavilt_pl.language import trees as trees_module
from mavilt_pl.language.cached_forward import left_pad
from mavilt_pl.language.l2_regularization import PIECE
from mavilt_pl.language.likelihoods import branch_log_likelihoods, candidate_branches
from mavilt_pl.language.sequences import pack
from mavilt_pl.language.trees import Tree, group_by_length, separate_branches
from mavilt_pl.phantom.indiana import reports_archive
from mavilt_pl.trainer.cpu_memory import M_MMAP_THRESHOLD

WAYS = ("memory", "passes", "tokens", "groups", "answers", "generate", "l2")
FINDINGS = [f"{size} {kind}" for size in ("small", "large") for kind in "ABCDEFGH"]
LOSSES = {
    "every": "logits of every position",
    "whole": "of the targets, in memory (`F.cross_entropy`)",
    "torch": "of the targets, `F.linear_cross_entropy` of torch",
    "ours": "of the targets, chunk by chunk (ours)",
}


def every_position(module: Stage1, packed: list[Any]) -> Tensor:
    """The usual loss: float32 logits of every position over the whole vocabulary."""
    losses = []
    for group in packed:
        labels_BT = torch.full_like(group.ids_BT, -100)
        labels_BT[group.row_M, group.column_M] = group.target_M
        embedded_BTD = module.model.embed(group.ids_BT)
        logits_BTV = module.model.backbone(inputs_embeds=embedded_BTD, use_cache=False).logits
        losses.append(F.cross_entropy(logits_BTV.float().flatten(0, 1), labels_BT.flatten()))
    return torch.stack(losses).sum()


def torch_cross_entropy(hidden_MD: Tensor, head: list[Any], target_M: Tensor) -> Tensor:
    """torch's fused loss, with the arguments of ours."""
    (rows,) = head
    weight = rows.weight[rows.start : rows.stop]
    options = torch.nn.LinearCrossEntropyOptions()
    return F.linear_cross_entropy(hidden_MD, weight, target_M, reduction="none", options=options)


def peak_mb() -> float:
    """Peak resident memory of this process so far, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure_loss(loss: str, folder: Path) -> tuple[float, float]:
    """Peak of a step in MB above the loaded model with its gradients, and of the process."""
    vocabulary: Any = "full" if loss == "every" else "modality"
    module = build_stage(Stage1, folder, model=ModelOptions(loss_vocabulary=vocabulary))
    if loss == "whole":
        chunked.CHUNK = 2**62
    if loss == "torch":
        language_model.linear_cross_entropy = torch_cross_entropy  # type: ignore[assignment]
    # Gradients are kept between steps, as an optimizer's states are.
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    packed = module.collate.pack(long_reports(2), training=True)
    before = peak_mb()
    value = every_position(module, packed) if loss == "every" else total_loss(module, packed)
    value.backward()
    return peak_mb() - before, peak_mb()


def memory() -> None:
    """Memory of a step under four ways to compute the loss."""
    with tempfile.TemporaryDirectory() as folder:
        write_inputs(Path(folder), width=64, layers=2)
        print("| loss | step, MB | × | process, MB | × |\n| --- | --- | --- | --- | --- |")
        first: tuple[float, float] | None = None
        for loss, words in LOSSES.items():
            if loss == "torch" and not hasattr(F, "linear_cross_entropy"):
                continue
            # A process of its own, so that its peak is its own.
            with multiprocessing.get_context("fork").Pool(1) as process:
                step, whole = process.apply(measure_loss, (loss, Path(folder)))
            first = first or (step, whole)
            ratios = step / first[0], whole / first[1]
            print(f"| {words} | {step:,.0f} | {ratios[0]:.2f} | {whole:,.0f} | {ratios[1]:.2f} |")


def measure_passes(stage: type, folder: Path, held: bool) -> float:
    """Peak of a step of 16 studies in MB above the loaded model."""
    # Freed blocks go back at once, or the peak would be that of the allocator.
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 2**17)
    module = build_stage(stage, folder)
    packed = module.collate.pack(varied_reports(16), training=True)
    before = peak_mb()
    if held:
        total_loss(module, packed).backward()
    else:
        backward_by_pass(module, packed)
    return peak_mb() - before


def passes() -> None:
    """Memory of a step whose passes go backward one by one, against all of them at once."""
    print("| stage | one backward, MB | a backward a pass, MB | × |\n| --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        write_inputs(Path(folder), width=384, layers=6)
        for stage in (Stage1, Stage2):
            peaks = []
            for held in (True, False):
                with multiprocessing.get_context("fork").Pool(1) as process:
                    peaks.append(process.apply(measure_passes, (stage, Path(folder), held)))
            ratio = peaks[1] / peaks[0]
            print(f"| {stage.__name__} | {peaks[0]:,.0f} | {peaks[1]:,.0f} | {ratio:.2f} |")


def tokens() -> None:
    """Target tokens a second; the peer has a padded sequence for every target."""
    print("| stage | target tokens/s | LLM-CXR's recipe | × |\n| --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        write_inputs(Path(folder), width=384, layers=6)
        for stage in (Stage1, Stage2):
            module = build_stage(stage, Path(folder))
            batch = varied_reports(4)
            mine = module.collate.pack(batch, training=False)
            alone = []
            for trees in module.prompts.trees(batch, training=False):
                alone += separate_branches(trees)
            theirs = [pack(alone, module.model.vocabulary.end)]
            targets = sum(len(group.target_M) for group in mine)
            assert targets == sum(len(group.target_M) for group in theirs)

            def ours(module: Any = module, packed: Any = mine) -> None:
                total_loss(module, packed).backward()
                module.zero_grad()

            def peer(module: Any = module, packed: Any = theirs) -> None:
                every_position(module, packed).backward()
                module.zero_grad()

            times = seconds_in_turns({"ours": ours, "peer": peer})
            rates = [targets / statistics.median(seconds) for seconds in times.values()]
            ratios = [theirs / ours for ours, theirs in zip(times["ours"], times["peer"])]
            print(f"| {stage.__name__} | {rates[0]:,.0f} | {rates[1]:,.0f} | {spread(ratios)} |")


def indiana_findings() -> list[str]:
    """The findings of the real Indiana reports."""
    found = []
    with tarfile.open(reports_archive()) as archive:
        for member in archive:
            file = archive.extractfile(member) if member.name.endswith(".xml") else None
            if file is None:
                continue
            for node in ElementTree.parse(file).getroot().iter("AbstractText"):
                if node.get("Label") == "FINDINGS" and node.text:
                    found.append(node.text)
    return found


def groups() -> None:
    """Batches of 16 studies with real Indiana reports, in one to four passes a direction."""
    texts = indiana_findings()
    print("| stage | passes | padding, % of positions | × one pass |\n| --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        write_inputs(Path(folder), width=384, layers=6, texts=texts, text_vocabulary=8000)
        for stage in (Stage1, Stage2):
            module = build_stage(stage, Path(folder)).eval()
            batch = varied_reports(16)
            numbers = np.random.default_rng(0).integers(0, len(texts), 16)
            for study, number in zip(batch["studies"], numbers):
                study["text"] = texts[number]
            directions = module.prompts.trees(batch, training=False)
            used = sum(tree.length for trees in directions for tree in trees)
            ways, padding = {}, {}
            for count in (1, 2, 3, 4):
                packed = []
                for trees in directions:
                    for group in group_by_length(trees, count):
                        packed.append(pack(group, module.model.vocabulary.end))
                positions = sum(group.ids_BT.numel() for group in packed)
                padding[count] = 100 * (1 - used / positions)

                def step(module: Any = module, packed: Any = packed) -> None:
                    total_loss(module, packed).backward()
                    module.zero_grad()

                ways[str(count)] = step
            times = seconds_in_turns(ways)
            for passes, seconds in times.items():
                ratios = [one / several for one, several in zip(times["1"], seconds)]
                row = f"| {stage.__name__} | {passes} | {padding[int(passes)]:.1f} |"
                print(f"{row} {spread(ratios)} |")


def answers() -> None:
    """Questions a second, read once, against a question repeated for each candidate answer."""
    with tempfile.TemporaryDirectory() as folder:
        write_inputs(Path(folder), width=384, layers=6)
        module = build_stage(Stage2, Path(folder)).eval()
    questions = [(f"Is there {finding} in this image?", ("yes", "no")) for finding in FINDINGS]
    branches = candidate_branches(module.prompts, questions)
    prefixes = [module.prompts.image_prefix(codes) for codes in random_codes(8).tolist()]
    shared = [Tree(prefix, branches) for prefix in prefixes]
    # Apart from one another, the candidates of a question do not share it.
    repeated = [Tree(prefix, [*branches[::2], *branches[1::2]]) for prefix in prefixes]

    @torch.no_grad()
    def score(given: list[Tree], smallest_part: int) -> None:
        trees_module.SMALLEST_PART = smallest_part
        list(branch_log_likelihoods(module.model, given, module.generator.pack))

    # Parts as they were when each repeated the image.
    ways = {"read once": lambda: score(shared, 1024), "repeated": lambda: score(repeated, 512)}
    times = seconds_in_turns(ways)
    asked = len(prefixes) * len(questions)
    print("| a question is | questions/s | × |\n| --- | --- | --- |")
    for name, seconds in times.items():
        ratios = [slow / fast for slow, fast in zip(times["repeated"], seconds)]
        print(f"| {name} | {asked / statistics.median(seconds):,.0f} | {spread(ratios)} |")


class OnlyCodes(LogitsProcessor):
    """The usual way to constrain `generate`: everything but the codes is impossible."""

    def __init__(self, first: int):
        self.first = first

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        scores[:, : self.first] = -torch.inf
        return scores


def generate() -> None:
    """32 images, plain and compiled, against transformers' `generate`."""
    with tempfile.TemporaryDirectory() as folder:
        write_inputs(Path(folder), width=384, layers=6)
        generator = build_stage(Stage1, Path(folder)).eval().generator
    model, vocabulary = generator.model, generator.model.vocabulary
    texts = [study["text"] for study in varied_reports(32)["studies"]]
    prompts = [generator.prompts.synthesis_prompt(text) for text in texts]
    ids_BT, mask_BT = left_pad(prompts, vocabulary.end, model.device)
    count = vocabulary.codes_per_image

    def peer() -> Tensor:
        with torch.inference_mode():
            out = model.backbone.generate(
                ids_BT,
                attention_mask=mask_BT,
                do_sample=True,
                top_p=0.92,
                top_k=0,
                min_new_tokens=count,
                max_new_tokens=count,
                pad_token_id=vocabulary.end,
                logits_processor=LogitsProcessorList([OnlyCodes(vocabulary.first_code)]),
            )
        return out[:, -count:] - vocabulary.first_code

    plain = generator.sampling
    compiled = replace(plain, image=replace(plain.image, compile=True))

    def ours(sampling: Any) -> Tensor:
        generator.sampling = sampling
        return generator.generate_images(texts)

    drawn = peer()
    assert drawn.min() >= 0 and drawn.shape == ours(plain).shape
    ways = {"ours": lambda: ours(plain), "compiled": lambda: ours(compiled), "peer": peer}
    times = seconds_in_turns(ways)
    for name, seconds in times.items():
        ratios = [theirs / own for own, theirs in zip(seconds, times["peer"])]
        print(f"{name}: {len(texts) / statistics.median(seconds):.2f} images/s, × {spread(ratios)}")


def l2() -> None:
    """The share of a step that adding the gradient of λ/2 ‖θ − θ₀‖² takes, and its memory."""
    with tempfile.TemporaryDirectory() as folder:
        write_inputs(Path(folder), width=384, layers=6)
        module = build_stage(Stage1, Path(folder), lambda_reg=0.01)
    optimizer = torch.optim.AdamW(module.parameters(), 1e-5, foreach=True)
    packed = module.collate.pack(varied_reports(8), training=True)

    def step() -> None:
        total_loss(module, packed).backward()
        optimizer.step()
        optimizer.zero_grad()

    total_loss(module, packed).backward()
    gradients = [parameter.grad for parameter in module.parameters()]

    def term() -> None:
        for parameter, gradient in zip(module.parameters(), gradients):
            parameter.grad = gradient
        module.regularizer.add_gradient()

    times = seconds_in_turns({"step": step, "term": term})
    shares = [100 * added / (rest + added) for rest, added in zip(times["step"], times["term"])]
    reference = module.regularizer.reference
    weights, size = sum(t.numel() for t in reference), sum(t.nbytes for t in reference)
    print(
        f"share of a step's time: {spread(shares)} %; θ₀ {size / weights:.1f} bytes a weight, and "
        f"{4 * PIECE / 2**20:.0f} MB while it is added"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "what", choices=["memory", "passes", "tokens", "groups", "answers", "generate", "l2"]
    )
    chosen = parser.parse_args().what
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    transformers.utils.logging.disable_progress_bar()
    # Two fork processes after torch has run, which allows one thread only.
    torch.set_num_threads(1 if chosen in ("memory", "passes") else int(THREADS))
    globals()[chosen]()
