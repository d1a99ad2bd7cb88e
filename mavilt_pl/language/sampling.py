"""Constrained, batched, cached decoding: an image is exactly N codes, a text has none, every output
is valid.

Whatever the model, what it may say next is fixed by the position, so nothing is ever retried.
Sampling draws its noise per sample from (seed, sample key, position): a sample does not depend on
the batch it was drawn in.

Shape legend: B samples, N codes an image, K codes in the book, S beams a sample, V words and
`<end>`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from inspect import signature
from typing import TYPE_CHECKING, Any, TypedDict

import torch
from torch import Tensor
from transformers import StaticCache

from mavilt_pl.errors import UserError

if TYPE_CHECKING:
    from mavilt_pl.language.module import LanguageModule


Scorer = Callable[
    [Tensor, Sequence[str]], Tensor
]  # codes [B,N] and their texts → scores [B], higher is better
# Guidance chooses among codes that are this likely, of the likeliest, without it (the plausibility
# constraint of contrastive decoding, arXiv 2210.15097, and its value): the ratio of two tiny
# probabilities says nothing, and cubed it drew frontal images for laterals.
PLAUSIBLE = 0.1


class TextDecoding(TypedDict, total=False):
    """How text is written; what is not given is greedy.

    Keys: `beams` kept by beam search (R2Gen and CvT2DistilGPT2 use 3 and 4); `length_penalty`, the
    power of the length that a beam's log-likelihood is divided by (1 as transformers);
    `temperature`, 0 for none; `top_k`, 0 for all; `top_p`, the nucleus (arXiv 1904.09751). Beams
    are not sampled from: either beams, or a temperature with what goes with it.
    """

    beams: int
    length_penalty: float
    temperature: float
    top_k: int
    top_p: float


TEXT: dict[str, Any] = {
    "beams": 1,
    "length_penalty": 1.0,
    "temperature": 0.0,
    "top_k": 0,
    "top_p": 1.0,
}


def text_decoding(given: TextDecoding | None) -> dict[str, Any]:
    """All settings of text decoding; raises `UserError` for unknown or impossible ones."""
    settings = {**TEXT, **(given or {})}
    if unknown := sorted(set(settings) - set(TEXT)):
        raise UserError(f"text_decoding: unknown key {unknown[0]}; the keys are {', '.join(TEXT)}")
    if settings["beams"] < 1:
        raise UserError(f"text_decoding: found beams {settings['beams']}; expected 1 or more")
    if settings["beams"] > 1 and settings["temperature"] > 0:
        raise UserError(
            "text_decoding: beams and temperature are both set; beams are searched, not sampled: "
            "drop one"
        )
    check_sampling("text_decoding", settings["temperature"], settings["top_k"], settings["top_p"])
    if settings["temperature"] == 0 and (settings["top_k"], settings["top_p"]) != (0, 1):
        raise UserError(
            f"text_decoding: found top_k {settings['top_k']}, top_p {settings['top_p']} and "
            f"temperature 0, without which nothing is "
            "sampled: set temperature (1 is the model's own), or drop them"
        )
    return settings


def check_sampling(name: str, temperature: float, top_k: int, top_p: float) -> None:
    """Raises `UserError`, with the setting's `name`, for what cannot be sampled with."""
    if not temperature >= 0 or top_k < 0 or not 0 < top_p <= 1:
        raise UserError(
            f"{name}: found temperature {temperature}, top_k {top_k}, top_p {top_p}; expected "
            f"temperature and top_k of 0 or "
            "more, and top_p in (0, 1]"
        )


def left_padded(
    rows: Sequence[Sequence[int]], pad: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Ids [B,T] that end together, and their attention mask [B,T]."""
    width = max(map(len, rows))
    ids = torch.tensor([[pad] * (width - len(r)) + list(r) for r in rows], device=device)
    mask = torch.tensor([[0] * (width - len(r)) + [1] * len(r) for r in rows], device=device)
    return ids, mask


class _Stepper:
    """The model with its cache: feed ids, get the last hidden state."""

    def __init__(self, module: LanguageModule, mask_BT: Tensor):
        self.module, self.mask = module, mask_BT
        self.cache: Any = None
        # transformers 5.24 renamed the key; models that live outside it keep the older name
        self.key = (
            "cache" if "cache" in signature(module.body.forward).parameters else "past_key_values"
        )
        # Rows that have ended go along, past the context where others are longer: nothing of them
        # is read.
        self.last = 2**31 if module.context is None else module.context - 1
        self.position = (mask_BT.cumsum(1) - 1).clamp(min=0)

    def __call__(self, ids_BT: Tensor, places: Tensor | None = None) -> Tensor:
        if self.cache is not None:
            self.mask = torch.cat(
                [self.mask, self.mask.new_ones(len(self.mask), ids_BT.shape[1])], 1
            )
            self.position = (self.position[:, -1:] + 1).clamp(max=self.last)
        every = None if bool(self.mask.all()) else self.mask
        out = self._run(self.module.body, ids_BT, places, every)
        self.cache = out[self.key]
        return out.last_hidden_state[:, -1]

    def _run(self, body: Any, ids_BT: Tensor, places: Tensor | None, mask: Tensor | None) -> Any:
        return body(
            inputs_embeds=self.module.embed(ids_BT, places),
            attention_mask=mask,
            position_ids=self.position,
            use_cache=True,
            **{self.key: self.cache},
        )

    def take(self, rows: Tensor) -> None:
        """Go on with these rows of the batch, in this order; a row may be taken several times."""
        self.mask, self.position = self.mask[rows], self.position[rows]
        self.cache.reorder_cache(rows)  # type: ignore[attr-defined]


class _Compiled(_Stepper):
    """The same with a cache of fixed size, and steps of one token compiled; on a GPU they are a
    CUDA graph. A new batch size or another `BLOCK` of positions is compiled anew.
    """

    BLOCK = 128

    def __init__(self, module: LanguageModule, mask_BT: Tensor, more: int):
        super().__init__(module, mask_BT)
        length = -(-(mask_BT.shape[1] + more) // self.BLOCK) * self.BLOCK
        self.cache = StaticCache(module.model.config.get_text_config(), max_cache_len=length)
        # What is to come counts as seen: causality hides it. So the mask never changes its shape.
        self.mask = torch.cat(
            [mask_BT, mask_BT.new_ones(len(mask_BT), length - mask_BT.shape[1])], 1
        )
        self.graph = mask_BT.device.type == "cuda"
        mode = "reduce-overhead" if self.graph else "default"
        self.one = torch.compile(module.body, mode=mode, dynamic=False)
        self.begun = False

    def __call__(self, ids_BT: Tensor, places: Tensor | None = None) -> Tensor:
        if self.begun:
            self.position = self.position[:, -1:] + 1
            if self.graph:
                torch.compiler.cudagraph_mark_step_begin()
        out = self._run(self.one if self.begun else self.module.body, ids_BT, places, self.mask)
        self.begun = True
        return out.last_hidden_state[
            :, -1
        ].clone()  # a graph writes its next output to the same place


def _streams(
    seed: int, keys: Sequence[int] | None, count: int, draw: int = 0
) -> list[torch.Generator]:
    """A source of noise for each of `count` samples, from (seed, key) and which of several draws it
    is.
    """
    keys = range(count) if keys is None else keys
    if len(keys) != count:
        raise ValueError(f"found {len(keys)} keys and {count} prompts; expected one for each")
    names = [hashlib.sha256(f"{seed} {key} {draw}".encode()).digest() for key in keys]
    return [
        torch.Generator().manual_seed(int.from_bytes(name[:8], "little") >> 1) for name in names
    ]


def finite(outputs: Tensor) -> Tensor:
    """The outputs, of any shape. Raises `UserError` where one of them is NaN or infinite."""
    if not bool(outputs.isfinite().all()):
        raise UserError(
            "the model's outputs are not finite, so that nothing can be read from them: its "
            "weights hold NaN or infinity. Take an "
            "earlier checkpoint; a training that came to this wants a lower learning_rate"
        )
    return outputs


def _words(module: LanguageModule, hidden: Tensor) -> Tensor:
    """Log-probabilities of words and `<end>`, float32 [·,V]; rows that the tokenizer never uses are
    impossible.
    """
    vocabulary = module.vocabulary
    logits = module.text_logits(hidden).float()
    logits[:, vocabulary.words : vocabulary.text] = -torch.inf
    return logits.log_softmax(-1)


@torch.inference_mode()
def write(
    module: LanguageModule,
    prompts: Sequence[Sequence[int]],
    most: int,
    how: TextDecoding | None = None,
    seed: int = 0,
    keys: Sequence[int] | None = None,
) -> list[list[int]]:
    """Text after each prompt, up to `<end>` or `most` tokens (fewer where the model's context ends,
    which is told); ids of words only.

    Sampled text i is a function of (seed, keys[i]) and the prompt alone; keys default to 0, 1, …
    """
    settings = text_decoding(how)
    if not prompts:
        return []
    limits = [min(most, module.room(len(prompt), 1)) for prompt in prompts]
    if settings["beams"] > 1:
        texts = _search(module, prompts, limits, settings["beams"], settings["length_penalty"])
    else:
        texts = _say(module, prompts, limits, settings, _streams(seed, keys, len(prompts)))
    for text, limit in zip(texts, limits):
        if len(text) == limit < most:
            module.tell(
                "texts_broken_off",
                f"a text of {limit} tokens was broken off where the model's context ends",
            )
    return texts


def _say(
    module: LanguageModule,
    prompts: Sequence[Sequence[int]],
    limits: Sequence[int],
    how: dict[str, Any],
    streams: Sequence[torch.Generator],
) -> list[list[int]]:
    """The likeliest next word, or one that is sampled, until each text has ended or is as long as
    its limit.
    """
    end = module.vocabulary.end
    ids, mask = left_padded(prompts, end, module.device)
    step = _Stepper(module, mask)
    said: list[Tensor] = []
    open_B = torch.ones(len(ids), dtype=torch.bool, device=module.device)
    limit_B = torch.tensor(limits, device=module.device)
    for length in range(1, max(limits) + 1):
        hidden = step(ids)
        scores_BV = _words(module, hidden if said else finite(hidden))
        if how["temperature"] > 0:
            noise_BV = torch.stack(
                [torch.rand(scores_BV.shape[1], generator=stream) for stream in streams]
            )
            chosen = sample(
                scores_BV,
                noise_BV.to(scores_BV.device),
                how["temperature"],
                how["top_k"],
                how["top_p"],
            )
        else:
            chosen = scores_BV.argmax(-1)
        ids = torch.where(open_B, chosen, end)[:, None]
        said.append(ids[:, 0])
        open_B &= (ids[:, 0] != end) & (length < limit_B)
        if not bool(open_B.any()):
            break
    return [row[: row.index(end)] if end in row else row for row in torch.stack(said, 1).tolist()]


def _search(
    module: LanguageModule,
    prompts: Sequence[Sequence[int]],
    limits: Sequence[int],
    beams: int,
    penalty: float,
) -> list[list[int]]:
    """Beam search: the best finished text of each prompt, by log-likelihood / length ** penalty,
    `<end>` counted.

    A sample is closed when it has S finished texts and no open one can still beat the worst of them
    at its present length (transformers' `early_stopping=False`).
    """
    end, count = module.vocabulary.end, len(prompts)
    ids, mask = left_padded(prompts, end, module.device)
    step = _Stepper(module, mask)
    scores_BSV = _words(module, finite(step(ids)))[:, None]  # one beam before the first word
    total_BS = scores_BSV.new_zeros(count, 1)
    open_texts: list[list[list[int]]] = [[[]] for _ in prompts]
    finished: list[list[tuple[float, list[int]]]] = [[] for _ in prompts]
    done = [False] * count
    for length in range(1, max(limits) + 1):
        reach_BSV = total_BS[..., None] + scores_BSV
        width, words = reach_BSV.shape[1:]
        best = reach_BSV.flatten(1).topk(
            min(2 * beams, width * words)
        )  # S of them at least do not end here
        rows, chosen, totals = [], [], []
        for b, (values, places) in enumerate(zip(best.values.tolist(), best.indices.tolist())):
            kept: list[tuple[float, int, int]] = []
            for rank, (value, place) in enumerate(zip(values, places)):
                beam, word = divmod(place, words)
                if value == -torch.inf or done[b]:
                    break
                if word == end:
                    if rank < beams:
                        finished[b].append((value / length**penalty, open_texts[b][beam]))
                elif len(kept) < beams:
                    kept.append((value, beam, word))
            finished[b] = sorted(finished[b], key=lambda text: -text[0])[:beams]
            if len(finished[b]) == beams and (
                not kept or finished[b][-1][0] >= kept[0][0] / length**penalty
            ):
                done[b] = True
            if length == limits[b] and not done[b]:
                last = [
                    (value / length**penalty, [*open_texts[b][beam], word])
                    for value, beam, word in kept
                ]
                finished[b] = sorted([*finished[b], *last], key=lambda text: -text[0])[:beams]
                done[b] = True
            open_texts[b] = [[*open_texts[b][beam], word] for _, beam, word in kept]
            spare = (-torch.inf, 0, end)  # a closed sample's beams go along, unseen
            kept += [spare] * (beams - len(kept))
            open_texts[b] += [[]] * (beams - len(open_texts[b]))
            rows += [b * width + beam for _, beam, _ in kept]
            chosen += [word for *_, word in kept]
            totals.append([value for value, *_ in kept])
        if all(done):
            break
        step.take(torch.tensor(rows, device=module.device))
        total_BS = torch.tensor(totals, device=module.device)
        scores_BSV = _words(module, step(torch.tensor(chosen, device=module.device)[:, None])).view(
            count, beams, -1
        )
    return [texts[0][1] for texts in finished]


@torch.inference_mode()
def draw(
    module: LanguageModule,
    prompts: Sequence[Sequence[int]],
    unconditional: Sequence[Sequence[int]] | None = None,
    guidance: float = 1.0,
    temperature: float = 1.0,
    top_p: float = 0.92,
    seed: int = 0,
    keys: Sequence[int] | None = None,
    top_k: int = 0,
    number: int = 0,
) -> Tensor:
    """Exactly N codes after each prompt, int64 [B,N] in [0, K).

    Args:
        prompts: ids of each prompt, up to and with `<image>`.
        unconditional: each prompt without its condition, for guidance.
        guidance: s of arXiv 2207.12598 in logits: u + s (c − u), among the codes that are
            `PLAUSIBLE` under c; 1 is off.
        temperature: 0 takes the likeliest code.
        top_p: nucleus (arXiv 1904.09751); 0.92 as LLM-CXR.
        seed, keys: sample i is a function of (seed, keys[i]) and the prompt alone.
        top_k: of so many likeliest codes; 0 of all.
        number: which of several draws of the same sample this is; each has its own noise.
    """
    vocabulary = module.vocabulary
    count = len(prompts)
    if not count:
        return torch.empty(0, vocabulary.length, dtype=torch.long, device=module.device)
    check_sampling("drawing", temperature, top_k, top_p)
    free_rows = [*unconditional] if guidance != 1.0 and unconditional is not None else []
    guided = bool(free_rows)
    rows = [*prompts, *free_rows]
    module.room(max(map(len, rows)), vocabulary.length)
    ids, mask = left_padded(rows, vocabulary.end, module.device)
    compiled = module.hparams["compile_drawing"]
    step = _Compiled(module, mask, vocabulary.length) if compiled else _Stepper(module, mask)
    streams = _streams(seed, keys, count, number)
    noise = [
        torch.rand(vocabulary.length, vocabulary.codes, generator=stream) for stream in streams
    ]
    noise_BNK = torch.stack(noise).to(module.device)
    codes: list[Tensor] = []
    for n in range(vocabulary.length):
        # What is fed is code n - 1, and the cache hides from `embed` where on the grid it stands.
        hidden = step(ids, torch.full_like(ids, n - 1) if n else None)
        logits = module.code_logits(hidden if n else finite(hidden)).float()
        if guided:
            given, free = logits.chunk(2)
            likely = given >= given.amax(-1, keepdim=True) + math.log(PLAUSIBLE)
            logits = (free + guidance * (given - free)).masked_fill(~likely, -torch.inf)
        chosen = sample(logits, noise_BNK[:, n], temperature, top_k, top_p)
        codes.append(chosen)
        ids = (chosen + vocabulary.first_code).repeat(2 if guided else 1)[:, None]
    return torch.stack(codes, 1)


def sample(
    logits_BK: Tensor, noise_BK: Tensor, temperature: float, top_k: int, top_p: float
) -> Tensor:
    """Sampling from the k likeliest and the nucleus, by the Gumbel trick on given uniform noise;
    int64 [B].
    """
    if temperature == 0:
        return logits_BK.argmax(-1)
    logits_BK = logits_BK / temperature
    if 0 < top_k < logits_BK.shape[-1]:
        logits_BK = logits_BK.masked_fill(
            logits_BK < logits_BK.topk(top_k).values[:, -1:], -torch.inf
        )
    if top_p < 1:
        ordered, order = logits_BK.sort(-1, descending=True)
        share = ordered.softmax(-1)
        outside = share.cumsum(-1) - share > top_p  # the likeliest always stays
        logits_BK = logits_BK.masked_fill(
            torch.zeros_like(outside).scatter(-1, order, outside), -torch.inf
        )
    gumbel = -torch.log(-torch.log(noise_BK.clamp(1e-10, 1 - 1e-7)))
    return (logits_BK + gumbel).argmax(-1)
