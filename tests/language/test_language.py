"""Vocabulary, sequences, losses, regularizer and decoding, on two kinds of tiny models."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning import Trainer
from stages import build_stage, hidden_state_after, task_losses
from torch.nn.utils import clip_grad_norm_
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from mavilt_pl.data.records import Question
from mavilt_pl.errors import UserError
from mavilt_pl.language import ImageSampling, SamplingOptions, Stage2
from mavilt_pl.language.l2_regularization import L2SPRegularizer
from mavilt_pl.language.sequences import pack
from mavilt_pl.language.text_pretraining import train_tokenizer
from mavilt_pl.language.trees import Branch, Tree

TEXTS = [
    "The heart is enlarged. No pleural effusion or pneumothorax.",
    "Draw <image> and </image>.",
    "Is there an effusion? yes no",
] * 4


@pytest.fixture(scope="session", params=["llama-tied", "gpt2-untied"])
def backbone(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random language model with its own tokenizer, saved as Hugging Face saves it."""
    out = tmp_path_factory.mktemp("backbone")
    tokenizer = train_tokenizer(TEXTS, 300)
    rows = len(tokenizer) + 3  # models pad their vocabulary
    torch.manual_seed(0)
    if request.param == "llama-tied":
        config = LlamaConfig(
            vocab_size=rows,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            tie_word_embeddings=True,
        )
        model: torch.nn.Module = LlamaForCausalLM(config)
    else:
        config = GPT2Config(
            vocab_size=rows,
            n_embd=32,
            n_layer=2,
            n_head=2,
            n_positions=256,
            tie_word_embeddings=False,
        )
        model = GPT2LMHeadModel(config)
    model.save_pretrained(out)  # type: ignore[operator]
    tokenizer.save_pretrained(out)
    return out


@pytest.fixture
def stage2(backbone: Path, tokens: Path) -> Stage2:
    torch.manual_seed(0)
    module = build_stage(backbone, tokens, Stage2, lambda_reg=0.1, max_text_tokens=12).eval()
    torch.nn.init.normal_(module.model.grid_positions, std=0.2)
    return module


CODES = torch.tensor([[1, 2, 3, 4, 5, 6, 7, 8, 9], [11, 0, 0, 3, 19, 5, 5, 5, 2]])
ASK = [
    [("Is there an effusion?", ("yes", "no"))],
    [("Is there edema?", ("yes", "no")), ("Is there an effusion?", ("yes", "no"))],
]


def study(text: str) -> dict:
    question = Question("Is there an effusion?", "yes", "pleural effusion", ("yes", "no"))
    return {"text": text, "study": text, "questions": [question, question]}


def test_old_ids_keep_their_rows_and_meaning(stage2: Stage2, backbone: Path) -> None:
    before = AutoModelForCausalLM.from_pretrained(backbone)
    old = before.get_input_embeddings().weight
    assert torch.equal(stage2.model.backbone.get_input_embeddings().weight[: len(old)], old)
    ids = torch.tensor([stage2.prompts.tokenize("The heart is enlarged.")])
    with torch.no_grad():
        wanted = before(input_ids=ids).logits
        found = stage2.model.text_logits(
            stage2.model.transformer(inputs_embeds=stage2.model.embed(ids)).last_hidden_state
        )
    torch.testing.assert_close(found[..., : len(old)], wanted)


def test_text_that_looks_like_a_special_token_stays_text(stage2: Stage2) -> None:
    ids = stage2.prompts.tokenize("<image> </image> <end> <report>")
    assert max(ids) < stage2.model.vocabulary.num_used_rows


def test_codes_that_look_alike_start_alike(backbone: Path, tokens: Path) -> None:
    from mavilt_pl.data.token_cache import TokenCache

    module = build_stage(backbone, tokens, Stage2, lambda_reg=0)
    codebook = torch.from_numpy(TokenCache(tokens).codebook())
    rows = (
        module.model.backbone.get_input_embeddings()
        .weight[module.model.vocabulary.first_code :]
        .detach()
    )
    near = torch.corrcoef(torch.stack([torch.pdist(codebook), torch.pdist(rows)]))[0, 1]
    assert near > 0.9


def test_a_branch_sees_its_prefix_and_itself_only(stage2: Stage2) -> None:
    """Perturbing one branch changes nothing in another; and each branch alone gives the same
    losses.
    """
    a, b, c = Branch([5, 6], [7, 8, 9]), Branch([10], [11, 12]), Branch([13, 14], [15])
    prefix = stage2.prompts.image_prefix(CODES[0].tolist())
    with torch.no_grad():
        together = stage2.model.token_losses(pack([Tree(prefix, [a, b, c]), Tree(prefix, [b])]))
        alone = torch.cat(
            [stage2.model.token_losses(pack([Tree(prefix, [part])])) for part in (a, b, c, b)]
        )
        changed = stage2.model.token_losses(
            pack([Tree(prefix, [a, Branch([20], [21, 22]), c]), Tree(prefix, [b])])
        )
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(
        changed[[0, 1, 2, 5, 6, 7]], together[[0, 1, 2, 5, 6, 7]], atol=1e-6, rtol=1e-5
    )


def test_losses_are_those_of_the_model_s_own_logits(stage2: Stage2) -> None:
    """Against full logits from the model's own forward pass, restricted afterwards."""
    v, codes = stage2.model.vocabulary, CODES[:1].tolist()[0]
    tree = stage2.prompts.synthesis_tree(codes, "An effusion.", "k")
    packed = pack([tree])
    with torch.no_grad():
        found = stage2.model.token_losses(packed)
        logits = stage2.model.backbone(inputs_embeds=stage2.model.embed(packed.ids_BT)).logits[
            0, len(tree.prefix) - 1 : tree.length - 1, v.first_code : v.num_rows
        ]
    torch.testing.assert_close(
        found, F.cross_entropy(logits, CODES[0], reduction="none"), atol=1e-5, rtol=1e-4
    )


def test_each_task_has_its_own_mean_and_an_image_that_of_codes(stage2: Stage2) -> None:
    batch = {
        "codes": CODES,
        "studies": [study("No effusion."), study("The heart is enlarged. No effusion. No edema.")],
    }
    losses = task_losses(
        stage2, [pack(group) for group in stage2.prompts.trees(batch, training=False)]
    )
    assert set(losses) == {"report", "synthesis", "vqa"}
    # Over K = 20 codes, not over V.
    assert losses["synthesis"].item() == pytest.approx(math.log(20), rel=0.3)


class Descent(Stage2):
    """Plain gradient descent at rate 1, so that what a step changes is its gradient."""

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=1.0)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_trainer_s_step_has_the_l2_gradient_once(
    llama: Path, tokens: Path, tmp_path: Path, precision: Any
) -> None:
    """Of two batches accumulated, clipped, under AMP: the step is that of autograd with the term,
    and of it alone to 1e-6.
    """
    torch.manual_seed(0)
    free, held = (
        build_stage(
            llama, tokens, Descent, lambda_reg=weight, max_text_tokens=12, condition_dropout=0.0
        )
        for weight in (0.0, 0.3)
    )
    with torch.no_grad():
        for one, other in zip(free.parameters(), held.parameters()):
            one.add_(0.02 * torch.randn_like(one))
            other.copy_(one)
    start = copy.deepcopy(held.state_dict())
    batches = [
        {"codes": CODES[k : k + 1], "studies": [study(f"An effusion in {k}.")]} for k in range(2)
    ]

    def stepped(module: Descent, clip: float | None) -> list[torch.Tensor]:
        module.load_state_dict(start)
        trainer = Trainer(
            accelerator="cpu",
            max_steps=1,
            accumulate_grad_batches=2,
            gradient_clip_val=clip,
            precision=precision,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
        )
        trainer.fit(module, DataLoader(batches, batch_size=None))  # type: ignore[arg-type]
        return [start[name] - value.detach() for name, value in module.named_parameters()]

    gradients, with_term, clipped = stepped(free, None), stepped(held, None), stepped(held, 0.5)
    rows = held.model.vocabulary.num_text_rows
    grown = held.model.backbone.get_input_embeddings().weight
    origin = {
        id(p): r.view(-1, *p.shape[1:]).float()
        for p, r in zip(held.regularizer.parameters, held.regularizer.reference)
    }
    for (name, parameter), gradient, found in zip(held.named_parameters(), gradients, with_term):
        wanted = gradient.clone()
        if id(parameter) in origin:
            old = slice(0, rows) if parameter is grown else slice(None)
            wanted[old] += 0.3 * (start[name][old] - origin[id(parameter)])
        torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-5)
    norm = torch.stack([step.norm() for step in with_term]).norm()
    assert norm > 0.5
    for found, whole in zip(clipped, with_term):
        torch.testing.assert_close(found, whole * 0.5 / norm, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(("dtype", "device"), [("bfloat16", "device"), ("float32", "host")])
def test_regularizer_is_autograd_of_its_term(
    stage2: Stage2, monkeypatch: pytest.MonkeyPatch, dtype: Any, device: Any
) -> None:
    """Equal to the gradient of λ/2‖θ − θ₀‖² to 1e-6, under accumulation and clipping, in pieces
    that fit and that do not.
    """
    monkeypatch.setattr("mavilt_pl.language.l2_regularization.PIECE", 1000)
    model = stage2.model.backbone
    stage2.regularizer = regularizer = L2SPRegularizer(
        model, 0.1, stage2.model.vocabulary.num_text_rows, dtype, device
    )
    assert all(kept.dtype == getattr(torch, dtype) for kept in regularizer.reference)
    assert regularizer.term(regularizer.distances()) < (1e-3 if dtype == "bfloat16" else 1e-12)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    batches = [pack([Tree([1, 2], [Branch([3], [4 + i, 5])])]) for i in range(2)]
    rows = stage2.model.vocabulary.num_text_rows

    def penalty() -> torch.Tensor:
        grown = {id(model.get_input_embeddings().weight), id(model.get_output_embeddings().weight)}
        parts = [
            (p[:rows] if id(p) in grown else p, r)
            for p, r in zip(regularizer.parameters, regularizer.reference)
        ]
        return sum(0.05 * (p - r.view_as(p).float()).square().sum() for p, r in parts)  # type: ignore[return-value]

    model.zero_grad()
    sum((stage2.model.token_losses(b).mean() for b in batches), start=penalty()).backward()
    wanted = [p.grad.clone() for p in regularizer.parameters]
    norm = clip_grad_norm_(model.parameters(), 0.5)
    clipped = [p.grad.clone() for p in regularizer.parameters]
    model.zero_grad()
    for batch in batches:
        stage2.model.token_losses(batch).mean().backward()
    regularizer.add_gradient()
    for parameter, gradient in zip(regularizer.parameters, wanted):
        torch.testing.assert_close(parameter.grad, gradient, atol=1e-6, rtol=1e-5)
    assert clip_grad_norm_(model.parameters(), 0.5) == pytest.approx(norm.item(), rel=1e-5)
    for parameter, gradient in zip(regularizer.parameters, clipped):
        torch.testing.assert_close(parameter.grad, gradient, atol=1e-6, rtol=1e-5)
    assert regularizer.term(regularizer.distances()) == pytest.approx(penalty().item(), rel=1e-5)
    assert L2SPRegularizer(model, 0.0, rows).reference == []


def test_an_image_is_n_codes_and_does_not_depend_on_the_batch(stage2: Stage2) -> None:
    texts = ["No effusion.", "The heart is enlarged. No edema and no pneumothorax.", ""]
    stage2.generator.sampling = SamplingOptions(ImageSampling(guidance_scale=2.0))
    generate = stage2.generator.generate_images
    together = generate(texts, seed=3, keys=[7, 8, 9])
    assert together.shape == (3, 9)
    assert together.min() >= 0
    assert together.max() < 20
    for i, text in enumerate(texts):
        assert torch.equal(generate([text], seed=3, keys=[7 + i])[0], together[i])
    assert not torch.equal(generate(texts, seed=4, keys=[7, 8, 9]), together)


def test_cached_synthesis_is_that_of_a_model_without_cache(stage2: Stage2) -> None:
    """The likeliest codes, one after another, each from a whole forward pass."""
    stage2.generator.sampling = SamplingOptions(ImageSampling(temperature=0.0))
    v, ids = stage2.model.vocabulary, stage2.prompts.synthesis_prompt("An effusion.")
    for _ in range(v.codes_per_image):
        logits = stage2.model.code_logits(hidden_state_after(stage2, ids))
        ids.append(v.first_code + int(logits.argmax()))
    codes = stage2.generator.generate_images(["An effusion."])[0]
    assert (codes + v.first_code).tolist() == ids[-v.codes_per_image :]


def test_cached_greedy_text_is_that_of_a_model_without_cache(stage2: Stage2) -> None:
    prefix = stage2.prompts.image_prefix(CODES[0].tolist())
    prompt = prefix + stage2.prompts.report_prompt("", training=False)
    ids = list(prompt)
    v = stage2.model.vocabulary
    for _ in range(12):
        logits = stage2.model.text_logits(hidden_state_after(stage2, ids)).detach()
        logits[v.num_used_rows : v.num_text_rows] = -torch.inf
        chosen = int(logits.argmax())
        if chosen == v.end:
            break
        ids.append(chosen)
    report = stage2.model.tokenizer.decode(ids[len(prompt) :])
    assert stage2.generator.generate_reports(CODES)[0] == report


def test_answers_are_normalised_likelihoods(stage2: Stage2) -> None:
    both = stage2.generator.answer_questions(CODES, ASK)
    assert [len(row) for row in both] == [1, 2]
    assert all(sum(given) == pytest.approx(1) for row in both for given in row)
    alone = stage2.generator.answer_questions(CODES[1:], ASK[1:])
    torch.testing.assert_close(torch.tensor(alone[0]), torch.tensor(both[1]))


def test_awkward_input_is_defined(stage2: Stage2) -> None:
    # cut, and counted
    assert len(stage2.prompts.text_target("word " * 5000)) == 13
    assert stage2.prompts.counts["texts_truncated"] == 1
    assert stage2.prompts.text_target("") == [stage2.model.vocabulary.end]
    with pytest.raises(UserError, match="9 codes in"):
        stage2.prompts.trees(
            {"codes": CODES + 10, "studies": [study("a"), study("b")]}, training=False
        )
    with pytest.raises(UserError, match="9 codes in"):
        stage2.model.vocabulary.check_codes(CODES[:, :4])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("max_text_tokens", 0),
        ("condition_dropout", 1.7),
        ("view_dropout", -3.0),
        ("learning_rate", -1.0),
        ("warmup_steps", -5),
        ("guidance_scale", float("nan")),
        ("lambda_reg", -1.0),
        ("task_weights", {"report": -1.0}),
        ("task_weights", dict.fromkeys(("report", "synthesis", "vqa", "text"), 0.0)),
    ],
)
def test_settings_out_of_range_are_refused_by_name(
    llama: Path, tokens: Path, key: str, value: Any
) -> None:
    with pytest.raises(
        UserError, match=f"{key}.*: found .*{'' if isinstance(value, dict) else value}.*expected"
    ):
        build_stage(llama, tokens, Stage2, **{key: value})


def test_a_model_of_nan_says_so_instead_of_anything_else(llama: Path, tokens: Path) -> None:
    module = build_stage(llama, tokens, Stage2, max_text_tokens=12).eval()
    torch.nn.init.constant_(module.model.backbone.base_model.norm.weight, float("nan"))
    for ask in (
        lambda: module.generator.generate_images(["a"]),
        lambda: module.generator.generate_reports(CODES),
        lambda: module.generator.answer_questions(CODES, ASK),
    ):
        with pytest.raises(UserError, match="not finite"):
            ask()


def test_checkpoints_of_others_are_refused(stage2: Stage2) -> None:
    with pytest.raises(UserError, match="another module"):
        stage2.on_load_checkpoint({"state_dict": {}})
    with pytest.raises(UserError, match="its codes mean different things"):
        stage2.on_load_checkpoint({"state_dict": {}, "visual_tokenizer": "tokenizer-b"})
    state = stage2.state_dict() | {"model.grid_positions": torch.zeros(4, 32)}
    with pytest.raises(
        UserError, match=r"model.grid_positions is \(4, 32\) there and \(9, 32\) here"
    ):
        stage2.on_load_checkpoint({"state_dict": state, "visual_tokenizer": "tokenizer-a"})


def test_a_missing_backbone_says_what_to_do(tokens: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"backbone\.yaml"):
        build_stage(tmp_path / "absent", tokens, Stage2)
