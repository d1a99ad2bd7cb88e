"""Constrained, batched, cached decoding: an image is exactly N codes, a text has none, every output is valid.

Whatever the model, what it may say next is fixed by the position, so nothing is ever retried. Sampling draws its noise
per sample from (seed, sample key, position): a sample does not depend on the batch it was drawn in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from mavilt_pl.language.module import LanguageModule


def left_padded(rows: Sequence[Sequence[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids [B,T] that end together, and their attention mask [B,T]."""
    width = max(map(len, rows))
    ids = torch.tensor([[pad] * (width - len(r)) + list(r) for r in rows], device=device)
    mask = torch.tensor([[0] * (width - len(r)) + [1] * len(r) for r in rows], device=device)
    return ids, mask


class _Stepper:
    """The model with its cache: feed ids, get the last hidden state."""

    def __init__(self, module: LanguageModule, mask_BT: Tensor):
        self.module, self.mask, self.cache = module, mask_BT, None
        self.position = (mask_BT.cumsum(1) - 1).clamp(min=0)

    def __call__(self, ids_BT: Tensor, places: Tensor | None = None) -> Tensor:
        if self.cache is not None:
            self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), ids_BT.shape[1])], 1)
            self.position = self.position[:, -1:] + 1
        every = None if bool(self.mask.all()) else self.mask
        out = self.module.body(
            inputs_embeds=self.module.embed(ids_BT, places),
            attention_mask=every,
            position_ids=self.position,
            past_key_values=self.cache,
            use_cache=True,
        )
        self.cache = out.past_key_values
        return out.last_hidden_state[:, -1]


@torch.inference_mode()
def write(module: LanguageModule, prompts: Sequence[Sequence[int]], most: int) -> list[list[int]]:
    """Greedy text after each prompt, up to `<end>` or `most` tokens; ids of words only."""
    vocabulary = module.vocabulary
    ids, mask = left_padded(prompts, vocabulary.end, module.device)
    step = _Stepper(module, mask)
    said: list[Tensor] = []
    open_B = torch.ones(len(ids), dtype=torch.bool, device=module.device)
    for _ in range(most):
        logits = module.text_logits(step(ids))
        logits[:, vocabulary.words : vocabulary.text] = -torch.inf  # rows that the tokenizer never uses
        ids = torch.where(open_B, logits.argmax(-1), vocabulary.end)[:, None]
        open_B &= ids[:, 0] != vocabulary.end
        said.append(ids[:, 0])
        if not bool(open_B.any()):
            break
    rows = torch.stack(said, 1).tolist() if said else [[] for _ in prompts]
    return [row[: row.index(vocabulary.end)] if vocabulary.end in row else row for row in rows]


def _uniform(seed: int, keys: Sequence[int], length: int, codes: int) -> list[Tensor]:
    """One stream of uniform noise a sample, [length, codes]."""
    return [
        torch.rand(length, codes, generator=torch.Generator().manual_seed(hash((seed, key)) % 2**63)) for key in keys
    ]


@torch.inference_mode()
def draw(
    module: LanguageModule,
    prompts: Sequence[Sequence[int]],
    unconditional: Sequence[int] | None = None,
    guidance: float = 1.0,
    temperature: float = 1.0,
    top_p: float = 0.92,
    seed: int = 0,
    keys: Sequence[int] | None = None,
) -> Tensor:
    """Exactly N codes after each prompt, int64 [B,N] in [0, K).

    Args:
        prompts: ids of each prompt, up to and with `<image>`.
        unconditional: the prompt without its condition, for guidance.
        guidance: s of arXiv 2207.12598 in logits: u + s (c − u); 1 is off.
        temperature: 0 takes the likeliest code.
        top_p: nucleus (arXiv 1904.09751); 0.92 as LLM-CXR.
        seed, keys: sample i is a function of (seed, keys[i]) alone.
    """
    vocabulary = module.vocabulary
    count = len(prompts)
    free_rows = [unconditional] * count if guidance != 1.0 and unconditional is not None else []
    guided = bool(free_rows)
    rows = [*prompts, *free_rows]
    ids, mask = left_padded(rows, vocabulary.end, module.device)
    step = _Stepper(module, mask)
    noise = _uniform(seed, keys if keys is not None else range(count), vocabulary.length, vocabulary.codes)
    noise_BNK = torch.stack(noise).to(module.device)
    codes: list[Tensor] = []
    for n in range(vocabulary.length):
        # What is fed is code n - 1, and the cache hides from `embed` where on the grid it stands.
        logits = module.code_logits(step(ids, torch.full_like(ids, n - 1) if n else None)).float()
        if guided:
            given, free = logits.chunk(2)
            logits = free + guidance * (given - free)
        chosen = _sample(logits, noise_BNK[:, n], temperature, top_p)
        codes.append(chosen)
        ids = (chosen + vocabulary.first_code).repeat(2 if guided else 1)[:, None]
    return torch.stack(codes, 1)


def _sample(logits_BK: Tensor, noise_BK: Tensor, temperature: float, top_p: float) -> Tensor:
    """Nucleus sampling by the Gumbel trick on given uniform noise."""
    if temperature == 0:
        return logits_BK.argmax(-1)
    logits_BK = logits_BK / temperature
    if top_p < 1:
        ordered, order = logits_BK.sort(-1, descending=True)
        share = ordered.softmax(-1)
        outside = share.cumsum(-1) - share > top_p  # the likeliest always stays
        logits_BK = logits_BK.masked_fill(torch.zeros_like(outside).scatter(-1, order, outside), -torch.inf)
    gumbel = -torch.log(-torch.log(noise_BK.clamp(1e-10, 1 - 1e-7)))
    return (logits_BK + gumbel).argmax(-1)
