"""Beams against transformers' own, sampling against the distribution it should have, and outputs
that are always valid.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import chisquare
from stages import build_stage
from transformers import LogitsProcessor, LogitsProcessorList
from transformers.generation.logits_process import (
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from mavilt_pl.errors import UserError
from mavilt_pl.language import (
    SamplingOptions,
    Stage1,
    Stage2,
    TextSampling,
    cached_forward,
    sampling,
)
from mavilt_pl.language.cached_forward import StaticCacheForward
from mavilt_pl.language.sampling import sample_from_logits

CODES = torch.tensor(
    [[1, 2, 3, 4, 5, 6, 7, 8, 9], [11, 0, 0, 3, 19, 5, 5, 5, 2], [4, 4, 4, 4, 4, 1, 1, 1, 1]]
)


def build(backbone: Path, tokens: Path, sharper: float = 1.0, **settings: Any) -> Stage2:
    """`sharper` scales the rows, so that a random model has preferences."""
    torch.manual_seed(0)
    module = build_stage(backbone, tokens, Stage2, max_text_tokens=12, **settings).eval()
    with torch.no_grad():
        module.model.backbone.get_output_embeddings().weight.mul_(sharper)
    return module


class OnlyText(LogitsProcessor):
    def __init__(self, module: Stage2):
        self.used = module.model.vocabulary.num_used_rows
        self.end = module.model.vocabulary.end
        self.text = module.model.vocabulary.num_text_rows

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores = scores.clone()
        scores[:, self.used : self.text] = -torch.inf
        scores[:, self.end + 1 :] = -torch.inf
        return scores


@pytest.mark.parametrize(("num_beams", "penalty"), [(2, 0.0), (4, 1.0), (3, 2.0)])
@pytest.mark.parametrize("kind", ["gpt2-untied", "llama-untied"])
def test_beams_are_those_of_transformers(
    kind: str,
    num_beams: int,
    penalty: float,
    tokens: Path,
    tmp_path: Path,
    make_backbone: Callable[..., Path],
) -> None:
    """Prompts of several lengths in one batch; an `<end>` that is likely enough to close texts at
    many lengths.
    """
    module = build(make_backbone(kind, tmp_path), tokens, 4.0, grid_positions=False)
    end = module.model.vocabulary.end
    random = torch.Generator().manual_seed(1)
    used = module.model.vocabulary.num_used_rows
    prompts = []
    for length in (3, 7, 9, 4, 6):
        prompts.append(torch.randint(used, (length,), generator=random).tolist())
    # Make `<end>` about as likely as the best token.
    with torch.no_grad():
        ids = torch.tensor([[i for prompt in prompts for i in prompt]])
        hidden = module.model.transformer(input_ids=ids).last_hidden_state[0]
        best = module.model.text_logits(hidden)[:, :used].amax(1).mean()
        mean = hidden.mean(0)
        head = module.model.backbone.get_output_embeddings().weight
        head[end] = best * mean / mean.square().sum()
    greedy = module.generator.generate_ids(prompts, 10)
    search = TextSampling(num_beams=num_beams, length_penalty=penalty)
    module.generator.sampling = SamplingOptions(text=search)
    found = module.generator.generate_ids(prompts, 10)
    wanted = []
    for prompt in prompts:
        out = module.model.backbone.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            num_beams=num_beams,
            length_penalty=penalty,
            early_stopping=False,
            do_sample=False,
            max_new_tokens=10,
            eos_token_id=end,
            pad_token_id=end,
            renormalize_logits=True,
            logits_processor=LogitsProcessorList([OnlyText(module)]),
        )[0, len(prompt) :].tolist()
        wanted.append(out[: out.index(end)] if end in out else out)
    assert found == wanted
    assert found != greedy
    # Some texts end before the limit.
    assert penalty > 1 or len({len(text) for text in found}) > 1


@pytest.mark.parametrize(
    ("temperature", "k", "p"), [(1.0, 0, 1.0), (0.7, 5, 1.0), (1.3, 0, 0.8), (1.0, 6, 0.7)]
)
def test_samples_are_distributed_as_transformers_would_have_them(
    temperature: float, k: int, p: float
) -> None:
    logits = torch.randn(12, generator=torch.Generator().manual_seed(3)) * 1.5
    scores = TemperatureLogitsWarper(temperature)(None, logits[None])
    scores = TopKLogitsWarper(k)(None, scores) if k else scores
    scores = TopPLogitsWarper(p)(None, scores) if p < 1 else scores
    wanted = scores.double().softmax(-1)[0]
    noise = torch.rand(20000, 12, generator=torch.Generator().manual_seed(0))
    counts = sample_from_logits(logits.expand(20000, -1), noise, temperature, k, p).bincount(
        minlength=12
    )
    possible = wanted > 0
    assert counts[~possible].sum() == 0
    assert bool(possible.sum() < 12) == (k > 0 or p < 1)
    assert chisquare(counts[possible], 20000 * wanted[possible]).pvalue > 0.001


def test_sampled_texts_do_not_depend_on_the_batch(any_backbone: Path, tokens: Path) -> None:
    how: dict[str, Any] = {"temperature": 1.0, "top_k": 200, "top_p": 0.95}
    module = build(any_backbone, tokens, text=how)
    generate = module.generator.generate_reports
    together = generate(CODES, seed=3, keys=[7, 8, 9])
    for i in range(3):
        assert generate(CODES[i : i + 1], seed=3, keys=[7 + i]) == together[i : i + 1]
    assert generate(CODES[[2, 0]], seed=3, keys=[9, 7]) == [together[2], together[0]]
    assert generate(CODES, seed=4, keys=[7, 8, 9]) != together
    assert len({*generate(CODES[[0, 0, 0]], seed=3, keys=[1, 2, 3])}) == 3


@pytest.mark.parametrize(
    "how", [{}, {"num_beams": 2}, {"temperature": 1.0}], ids=["greedy", "num_beams", "sampled"]
)
def test_a_long_prompt_does_not_shorten_other_texts(
    how: dict[str, Any], tokens: Path, tmp_path: Path, make_backbone: Callable[..., Path]
) -> None:
    """It gets the rest of the context, and a warning if that ends its text."""
    backbone = make_backbone("gpt2-tied", tmp_path, context=64)
    module = build_stage(backbone, tokens, Stage1, max_text_tokens=40, text=how).eval()
    short, long = "Why?", "Where is it? " * 2
    with pytest.warns(
        UserWarning,
        match=r"a generated text ended after \d+ tokens, at the end of the model's context",
    ):
        both = module.generator.generate_answers(CODES[:2], [[short], [long]], keys=[[1], [2]])
    assert module.prompts.counts == {"texts_cut_by_context": 1}
    assert len(both[0][0]) > len(both[1][0]) > 0
    assert module.generator.generate_answers(CODES[:1], [[short]], keys=[[1]])[0] == both[0]
    assert module.generator.generate_answers(CODES[1:2], [[long]], keys=[[2]])[0] == both[1]


def test_sampled_answers_do_not_depend_on_the_batch(llama: Path, tokens: Path) -> None:
    module = build(llama, tokens, text={"temperature": 1.0})
    asked = [[("Where is it?", ()), ("Why?", ())]] * 3
    answer = module.generator.answer_questions
    together = answer(CODES, asked, seed=3, keys=[7, 8, 9])
    assert answer(CODES[1:2], [asked[1][1:]], seed=3, keys=[8]) == [together[1][1:]]
    assert answer(CODES[[0, 0]], asked[:2], seed=3, keys=[7, 8])[1] != together[0]
    with pytest.raises(ValueError, match="1 keys and 2 prompts"):
        module.generator.generate_images(["a", "b"], keys=[1])


def test_special_tokens_of_the_tokenizer_do_not_appear_in_texts(
    tokens: Path, tmp_path: Path, make_backbone: Callable[..., Path]
) -> None:
    module = build(make_backbone("neox-untied", tmp_path), tokens)
    special = module.model.tokenizer.eos_token_id
    torch.nn.init.zeros_(module.model.backbone.get_output_embeddings().weight)
    with torch.no_grad():  # by far the most likely token
        module.model.backbone.get_output_embeddings().bias = torch.nn.Parameter(
            torch.zeros(module.model.vocabulary.num_rows)
        )
        module.model.backbone.get_output_embeddings().bias[special] = 9.0
    assert module.generator.generate_reports(CODES[:1]) == [""]


def test_the_scorer_chooses_the_best_of_several_images(llama: Path, tokens: Path) -> None:
    module = build(llama, tokens)
    texts, seen = ["No effusion.", "The heart is enlarged."], []

    def scorer(codes_BN: torch.Tensor, asked: list[str]) -> torch.Tensor:
        assert asked == texts
        seen.append(codes_BN)
        return codes_BN.float().mean(1)

    best = module.generator.generate_images(texts, seed=5, keys=[1, 2], best_of=4, scorer=scorer)  # type: ignore[arg-type]
    every = torch.stack(seen)
    assert len(seen) == 4
    assert len(every.unique(dim=0)) == 4
    assert torch.equal(every[0], module.generator.generate_images(texts, 5, [1, 2]))
    for i in range(2):
        assert torch.equal(best[i], every[every.float().mean(2)[:, i].argmax(), i])
    alone = module.generator.generate_images(
        texts[1:], 5, [2], 4, lambda codes, asked: codes.float().mean(1)
    )
    assert torch.equal(alone[0], best[1])
    with pytest.raises(UserError, match="best_of: found 4 and no scorer"):
        module.generator.generate_images(texts, best_of=4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_compiled_synthesis_gives_the_same_images(
    kind: str,
    tokens: Path,
    tmp_path: Path,
    make_backbone: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With guidance, texts of several lengths, and then another number of them; the cache is filled
    to its last position.
    """
    backbone = make_backbone(kind, tmp_path)
    texts = ["No edema.", "There is a large left pleural effusion.", ""]
    plain, compiled = (
        build(backbone, tokens, 4.0, guidance_scale=2.0, compile=yes) for yes in (False, True)
    )
    monkeypatch.setattr(StaticCacheForward, "BLOCK", 1)
    caches = []
    for some in (texts, texts[:2], texts[:2]):
        found = compiled.generator.generate_images(some, seed=3)
        assert torch.equal(found, plain.generator.generate_images(some, seed=3))
        caches.append(cached_forward._KEPT[compiled.model].cache)
    # A batch of the same shape takes the same cache, so that a graph is recorded once.
    assert caches[2] is caches[1] is not caches[0]
    images = plain.generator.generate_images(texts, seed=3)
    assert len(images.unique(dim=0)) == 3


def test_few_codes_are_the_likeliest(llama: Path, tokens: Path) -> None:
    """top_k of 1 is greedy; with 2, only two codes are ever sampled."""
    one, greedy = (
        build(llama, tokens, **how).generator.generate_images(["Edema."] * 2)
        for how in ({"top_k": 1}, {"temperature": 0.0})
    )
    assert torch.equal(one, greedy)
    first = build(llama, tokens, top_k=2).generator.generate_images(["Edema."] * 50)[:, 0]
    assert len(first.unique()) == 2
    assert greedy[0, 0] in first


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"text": {"beam": 2}}, "unknown key beam; the keys are num_beams, length_penalty"),
        ({"text": {"num_beams": 0}}, "num_beams: found 0"),
        ({"text": {"num_beams": 2, "temperature": 1.0}}, "drop one"),
        (
            {"text": {"top_p": 0.9}},
            "top_p 0.9 and temperature 0, which samples nothing",
        ),
        (
            {"text": {"top_p": 0.0}},
            "sampling.text.top_p: found 0.0; expected a value greater than 0",
        ),
        (
            {"top_p": 1.5},
            "sampling.image.top_p: found 1.5; expected a value less than or equal to 1",
        ),
    ],
)
def test_impossible_sampling_is_refused(
    llama: Path, tokens: Path, settings: dict, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        build(llama, tokens, **settings)


@pytest.mark.slow
@pytest.mark.parametrize(
    "how", [{"temperature": 1.5}, {"num_beams": 2}], ids=["sampled", "num_beams"]
)
def test_ten_thousand_outputs_of_an_untrained_model_are_valid(
    llama: Path, tokens: Path, how: dict[str, Any]
) -> None:
    """10,000 images of exactly nine codes, and 10,000 texts without a code or a special token."""
    module = build(llama, tokens, temperature=1.5, top_p=1.0, guidance_scale=1.5, text=how)
    v, seen = module.model.vocabulary, Counter[int]()
    for start in range(0, 10_000, 1000):
        keys = range(start, start + 1000)
        images = module.generator.generate_images(
            [f"Report {key}." for key in keys], seed=1, keys=keys
        )
        assert images.shape == (1000, 9)
        assert images.min() >= 0
        assert images.max() < 20
        prompts = [
            [
                v.special_token_id("<begin>"),
                *module.prompts.tokenize(str(key)),
                v.special_token_id("<report>"),
            ]
            for key in keys
        ]
        for row in module.generator.generate_ids(prompts, 12, seed=1, keys=keys):
            assert len(row) <= 12
            seen.update(row)
    assert max(seen) < v.num_used_rows
    # At this temperature every token is sampled.
    assert "num_beams" in how or len(seen) == v.num_used_rows


def test_guidance_samples_only_codes_that_are_plausible_without_it(
    llama: Path, tokens: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Strong guidance of a model with preferences, each code against the likelihoods of a pass
    without a cache.
    """
    module = build(llama, tokens, 8.0, guidance_scale=6.0, top_p=1.0)
    texts = ["No edema.", "The heart is enlarged.", "Is there an effusion?"] * 4

    def least() -> float:
        """Smallest ratio of a sampled code's probability to that of the most likely code."""
        images = module.generator.generate_images(texts, seed=1)
        trees = [
            module.prompts.synthesis_tree(codes.tolist(), text, key="")
            for text, codes in zip(texts, images)
        ]
        packed = module.generator.pack(trees)
        with torch.no_grad():
            logits_MK = module.model.code_logits(module.model.hidden_states(packed))
        log_probs_MK = logits_MK.log_softmax(-1)
        sampled_M = log_probs_MK.gather(1, images.reshape(-1, 1))[:, 0]
        return float((sampled_M - log_probs_MK.amax(1)).min().exp())

    assert 0.0999 < least() < 1.0
    monkeypatch.setattr(sampling, "PLAUSIBLE", 1e-30)
    assert least() < 0.05
