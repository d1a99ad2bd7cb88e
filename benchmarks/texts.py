"""Reports a second, greedy, against transformers' `generate` on the same prompts and lengths.

    python benchmarks/texts.py               # 16 reports of 128 tokens; 1,000 of 16 to 128
    python benchmarks/texts.py --reports 100

An untrained model never ends a text, so each text ends at a length drawn at random: by a stopping
criterion of each row for `generate`, by its limit for ours. Both get the same batches.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import transformers
from small_stage import build_stage, random_codes, seconds_in_turns, spread, write_inputs
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList

from mavilt_pl.language import Stage1, TextSampling
from mavilt_pl.language.cached_forward import left_pad
from mavilt_pl.language.generation import CACHED_POSITIONS, Generator
from mavilt_pl.language.sampling import sample_text

LONGEST, SHORTEST, TOGETHER = 128, 16, 16  # tokens, tokens, reports


class EndsAt(StoppingCriteria):
    """Ends each row at a length of its own."""

    def __init__(self, prompt: int, lengths: Sequence[int]):
        self.ends = prompt + torch.tensor(lengths)

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: object) -> Tensor:
        return input_ids.shape[1] >= self.ends


@torch.inference_mode()
def peer(generator: Generator, prompts: list[list[int]], lengths: Sequence[int]) -> None:
    """transformers' `generate`, as its documentation has it for a batch."""
    end = generator.model.vocabulary.end
    ids_BT, mask_BT = left_pad(prompts, end, generator.device)
    generator.model.backbone.generate(
        ids_BT,
        attention_mask=mask_BT,
        do_sample=False,
        max_new_tokens=max(lengths),
        pad_token_id=end,
        stopping_criteria=StoppingCriteriaList([EndsAt(ids_BT.shape[1], lengths)]),
    )


@torch.inference_mode()
def ours(generator: Generator, prompts: list[list[int]], lengths: Sequence[int]) -> None:
    """`sample_text` of the same batch."""
    streams = [torch.Generator()] * len(prompts)
    texts = sample_text(generator.model, prompts, lengths, TextSampling(), streams)
    assert [len(text) for text in texts] == list(lengths)


def main(reports: int) -> None:
    """Print both ratios."""
    with tempfile.TemporaryDirectory() as folder:
        write_inputs(Path(folder), width=384, layers=6)
        generator = build_stage(Stage1, Path(folder)).eval().generator
    prefix, report = generator.prompts.image_prefix, generator.prompts.report_prompt()
    prompts = [prefix(codes) + report for codes in random_codes(reports).tolist()]
    lengths = np.random.default_rng(0).integers(SHORTEST, LONGEST + 1, reports).tolist()
    rows = CACHED_POSITIONS // (len(prompts[0]) + LONGEST)

    def in_batches(way: object) -> None:
        for start in range(0, reports, rows):
            part = slice(start, start + rows)
            way(generator, prompts[part], lengths[part])  # type: ignore[operator]

    together = prompts[:TOGETHER], [LONGEST] * TOGETHER
    few = {"ours": lambda: ours(generator, *together), "peer": lambda: peer(generator, *together)}
    many = {"ours": lambda: in_batches(ours), "peer": lambda: in_batches(peer)}
    print("| reports | ours, a second | × generate |\n| --- | --- | --- |")
    for count, ways, rounds in ((TOGETHER, few, 5), (reports, many, 1)):
        times = seconds_in_turns(ways, rounds)
        ratios = [slow / fast for fast, slow in zip(times["ours"], times["peer"])]
        print(f"| {count:,} | {count / statistics.median(times['ours']):.1f} | {spread(ratios)} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--reports", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(given.threads)
    main(given.reports)
