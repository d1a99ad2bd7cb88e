"""Constrained sampling: an image is exactly N codes, a text has none, every output is valid.

Whatever the model, the position determines which rows it may predict, so nothing is ever retried.
Noise comes from (seed, sample key, position): a sample does not depend on its batch.

Shape legend: B samples, N codes an image, K codes of the codebook, V rows of text and `<end>`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mavilt_pl.language.cached_forward import (
    CachedForward,
    StaticCacheForward,
    check_finite,
    left_pad,
)
from mavilt_pl.language.model import VisualLanguageModel
from mavilt_pl.language.options import ImageSampling, TextSampling

# Guidance chooses among codes that are at least this likely relative to the most likely one without
# it (the plausibility constraint of contrastive decoding, arXiv 2210.15097, and its value). The
# ratio of two tiny probabilities means nothing, and guidance raises it to a power: without the
# constraint, frontal images were generated for lateral ones.
PLAUSIBLE = 0.1
# Finished texts leave the batch when at most this share of its rows is open: a smaller batch costs
# less, and the copy of the cache for it is paid once.
LEAVING = 0.7


def noise_streams(
    seed: int, keys: Sequence[int] | None, count: int, number: int = 0
) -> list[torch.Generator]:
    """A source of noise for each of `count` samples.

    Args:
        seed: of the call.
        keys: of the samples; 0, 1, … by default.
        count: number of samples.
        number: which of several images of the same sample this is.

    Raises:
        ValueError: keys and samples differ in number.
    """
    keys = range(count) if keys is None else keys
    if len(keys) != count:
        raise ValueError(f"found {len(keys)} keys and {count} prompts; expected one for each")
    streams = []
    for key in keys:
        # A hash, not `seed + key`: seed 1 with key 0 must not repeat seed 0 with key 1.
        digest = hashlib.sha256(f"{seed} {key} {number}".encode()).digest()
        # Shifted to 63 bits: `manual_seed` takes a signed integer.
        state = int.from_bytes(digest[:8], "little") >> 1
        streams.append(torch.Generator().manual_seed(state))
    return streams


def sample_from_logits(
    logits_BK: Tensor, noise_BK: Tensor, temperature: float, top_k: int, top_p: float
) -> Tensor:
    """Sample from the k most likely rows and the nucleus; int64 [B].

    Gumbel-max on given uniform noise in [0, 1).

    >>> logits = torch.tensor([[0.0, 2.0, 1.0]])
    >>> sample_from_logits(logits, torch.full((1, 3), 0.5), 0.0, 0, 1.0).tolist()
    [1]
    """
    if temperature == 0:
        return logits_BK.argmax(-1)
    # Temperature first, so top-p is the nucleus of the distribution that is sampled (as
    # transformers orders its warpers).
    logits_BK = logits_BK / temperature
    if 0 < top_k < logits_BK.shape[-1]:
        smallest = logits_BK.topk(top_k).values[:, -1:]
        logits_BK = logits_BK.masked_fill(logits_BK < smallest, -torch.inf)
    if top_p < 1:
        ordered, order = logits_BK.sort(-1, descending=True)
        probability = ordered.softmax(-1)
        # Probability before each row; so the most likely row always stays.
        outside = probability.cumsum(-1) - probability > top_p
        outside = torch.zeros_like(outside).scatter(-1, order, outside)
        logits_BK = logits_BK.masked_fill(outside, -torch.inf)
    # Clamped away from 0 and 1, where the double logarithm is infinite.
    gumbel = -torch.log(-torch.log(noise_BK.clamp(1e-10, 1 - 1e-7)))
    return (logits_BK + gumbel).argmax(-1)


def text_logits(model: VisualLanguageModel, hidden: Tensor) -> Tensor:
    """Logits of text rows and `<end>`, float32 [B,V].

    Rows that the tokenizer never uses are impossible.
    """
    vocabulary = model.vocabulary
    logits = model.text_logits(hidden).float()
    logits[:, vocabulary.num_used_rows : vocabulary.num_text_rows] = -torch.inf
    return logits


def text_log_probs(model: VisualLanguageModel, hidden: Tensor) -> Tensor:
    """Log-probabilities of text rows and `<end>`, float32 [B,V]."""
    return text_logits(model, hidden).log_softmax(-1)


def sample_text(
    model: VisualLanguageModel,
    prompts: Sequence[Sequence[int]],
    limits: Sequence[int],
    sampling: TextSampling,
    streams: Sequence[torch.Generator],
) -> list[list[int]]:
    """Text after each prompt, up to `<end>` or its limit; greedy or sampled.

    Args:
        model: in evaluation mode.
        prompts: ids of each prompt.
        limits: tokens of each text at most.
        sampling: temperature, top_k and top_p.
        streams: noise of each sample.
    """
    end, device = model.vocabulary.end, model.device
    ids_BT, mask_BT = left_pad(prompts, end, device)
    forward = CachedForward(model, mask_BT)
    # By prompt: rows leave the batch, prompts keep their place.
    texts: list[list[int]] = [[] for _ in prompts]
    rows = list(range(len(prompts)))  # that are still in the batch
    for length in range(1, max(limits) + 1):
        hidden_BD = forward(ids_BT)
        # Once is enough: NaN weights show in the first step.
        if length == 1:
            check_finite(hidden_BD)
        chosen_B = _choose_token(model, hidden_BD, sampling, [streams[row] for row in rows])
        is_open = []
        for row, chosen in zip(rows, chosen_B.tolist()):
            # A finished row is fed on until it leaves; nothing of it is read.
            continues = length <= limits[row] and not (texts[row] and texts[row][-1] == end)
            if continues:
                texts[row].append(chosen)
            is_open.append(continues and chosen != end and length < limits[row])
        if not any(is_open):
            break
        # Only the new token is fed: the cache holds everything before it.
        ids_BT = chosen_B[:, None]
        if sum(is_open) <= LEAVING * len(rows):
            kept = [index for index, stays in enumerate(is_open) if stays]
            rows = [rows[index] for index in kept]
            kept_B = torch.tensor(kept, device=device)
            forward.reorder(kept_B)
            ids_BT = ids_BT[kept_B]
    return [text[:-1] if text and text[-1] == end else text for text in texts]


def _choose_token(
    model: VisualLanguageModel,
    hidden_BD: Tensor,
    sampling: TextSampling,
    streams: Sequence[torch.Generator],
) -> Tensor:
    """The next token of each row, int64 [B]."""
    # The normaliser changes no maximum.
    if sampling.temperature == 0:
        return text_logits(model, hidden_BD).argmax(-1)
    log_probs_BV = text_log_probs(model, hidden_BD)
    width = log_probs_BV.shape[1]
    # A stream for each row, so a text does not depend on its batch. On the CPU, since a GPU's
    # generator would give other texts.
    noise_BV = torch.stack([torch.rand(width, generator=stream) for stream in streams])
    return sample_from_logits(
        log_probs_BV,
        noise_BV.to(hidden_BD.device),
        sampling.temperature,
        sampling.top_k,
        sampling.top_p,
    )


@torch.inference_mode()
def sample_image(
    model: VisualLanguageModel,
    prompts: Sequence[Sequence[int]],
    sampling: ImageSampling,
    unconditional: Sequence[Sequence[int]] | None = None,
    seed: int = 0,
    keys: Sequence[int] | None = None,
    number: int = 0,
) -> Tensor:
    """Exactly N codes after each prompt, int64 [B,N] in [0, K).

    Args:
        model: in evaluation mode.
        prompts: ids of each prompt, up to and including `<image>`; they and N codes fit the
            context.
        sampling: guidance, temperature, top_k and top_p.
        unconditional: each prompt without its condition, for guidance.
        seed: of the noise; sample i is a function of (seed, keys[i]) and its prompt alone.
        keys: of the samples (default 0, 1, …).
        number: which of several images of the same sample this is; each has its own noise.
    """
    vocabulary, device, count = model.vocabulary, model.device, len(prompts)
    num_codes = vocabulary.codes_per_image
    if not count:
        return torch.empty(0, num_codes, dtype=torch.long, device=device)
    rows = [*prompts]
    is_guided = sampling.guidance_scale != 1.0 and bool(unconditional)
    # Both halves of classifier-free guidance run as one batch: [conditional; unconditional].
    if is_guided and unconditional is not None:
        rows += unconditional
    ids_BT, mask_BT = left_pad(rows, vocabulary.end, device)
    forward: CachedForward
    if sampling.compile:
        forward = StaticCacheForward(model, mask_BT, num_codes)
    else:
        forward = CachedForward(model, mask_BT)
    streams = noise_streams(seed, keys, count, number)
    shape = (num_codes, vocabulary.codebook_size)
    # All noise at once: N × K uniform numbers a sample, so each step needs no transfer to the
    # device.
    noise = [torch.rand(*shape, generator=stream) for stream in streams]
    noise_BNK = torch.stack(noise).to(device)
    codes: list[Tensor] = []
    for n in range(num_codes):
        # The id fed is code n - 1; the cache hides from `embed` where on the grid it stands.
        grid_index = torch.full_like(ids_BT, n - 1) if n else None
        hidden = forward(ids_BT, grid_index)
        if n == 0:
            check_finite(hidden)
        logits = model.code_logits(hidden).float()
        if is_guided:
            logits = _guide(logits, sampling.guidance_scale)
        chosen_B = sample_from_logits(
            logits, noise_BNK[:, n], sampling.temperature, sampling.top_k, sampling.top_p
        )
        codes.append(chosen_B)
        ids_B = chosen_B + vocabulary.first_code
        # Both halves read the code that was sampled from their combination.
        ids_BT = ids_B.repeat(2 if is_guided else 1)[:, None]
    return torch.stack(codes, 1)


def _guide(logits: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance on logits, u + s (c − u), among plausible codes.

    Logits [2B,K], conditional first → [B,K].
    """
    conditional, free = logits.chunk(2)
    # A ratio of probabilities is a difference of logits; the normaliser cancels.
    threshold = conditional.amax(-1, keepdim=True) + math.log(PLAUSIBLE)
    guided = free + scale * (conditional - free)
    # `~(>=)` instead of `<`: a NaN logit is masked too.
    return guided.masked_fill(~(conditional >= threshold), -torch.inf)
