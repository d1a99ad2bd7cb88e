"""Adapters, new rows, checkpointing and kernels against plain runs.

L2 regularization of adapters is compared with autograd of the materialised norm.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from stages import (
    build_stage,
    pack_batch,
    regularization_term,
    save_checkpoint,
    task_losses,
)
from transformers import AutoModelForCausalLM, AutoTokenizer

from mavilt_pl.data.records import Question
from mavilt_pl.errors import UserError
from mavilt_pl.inference.export import save_language_model
from mavilt_pl.language import Stage2
from mavilt_pl.language.adapters import list_adapters

CODES = torch.tensor([[1, 2, 3, 4, 5, 6, 7, 8, 9], [11, 0, 0, 3, 19, 5, 5, 5, 2]])


def build(backbone: Path, tokens: Path, **settings: Any) -> Stage2:
    torch.manual_seed(0)
    return build_stage(
        backbone,
        tokens,
        Stage2,
        **{"max_text_tokens": 12, "condition_dropout": 0.0, "lambda_reg": 0.1, **settings},
    )


def adapted(backbone: Path, tokens: Path, **settings: Any) -> Stage2:
    return build(
        backbone, tokens, method="lora", lora={"rank": 4, "alpha": 6, "dropout": 0.0}, **settings
    )


def batch() -> dict[str, Any]:
    ask = [
        Question(f"Is there {what}?", "no", what, ("yes", "no"))
        for what in ("edema", "an effusion")
    ]
    texts = ("No effusion.", "The heart is enlarged.")
    return {"codes": CODES, "studies": [{"text": t, "study": t, "questions": ask} for t in texts]}


def loss(module: Stage2) -> torch.Tensor:
    losses = task_losses(module, pack_batch(module, batch()))
    return torch.stack([*losses.values()]).sum()


def gradients(module: Stage2) -> dict[str, torch.Tensor]:
    module.zero_grad()
    loss(module).backward()
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def shake(module: Stage2) -> None:
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "lora_" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))


@pytest.mark.parametrize("since", ["backbone", "stage"])
def test_the_l2_term_of_adapters_is_autograd_of_the_whole_weights(
    any_backbone: Path, tokens: Path, tmp_path: Path, since: str
) -> None:
    """λ/2 ‖W − W₀‖² of weights that peft merges itself, θ₀ the backbone or an earlier stage's
    adapters.
    """
    earlier = adapted(any_backbone, tokens)
    shake(earlier)
    save_checkpoint(earlier, tmp_path / "earlier.ckpt")
    module = adapted(
        any_backbone, tokens, reference=since, init_from=str(tmp_path / "earlier.ckpt")
    )

    def delta(owner: Stage2, name: str) -> torch.Tensor:
        layer = owner.model.backbone.get_submodule(name)
        return (
            layer.scaling["default"]
            * layer.lora_B["default"].weight
            @ layer.lora_A["default"].weight
        )

    names = [name for name, *_ in list_adapters(module.model.backbone)]
    assert len(names) >= 8
    assert not any("head" in name or "embed" in name for name in names)
    layer = module.model.backbone.get_submodule(names[0])
    torch.testing.assert_close(delta(module, names[0]), _merged(layer), atol=1e-6, rtol=1e-5)
    shake(module)
    start = [delta(earlier, n).detach() if since == "stage" else 0.0 for n in names]
    term = sum(0.05 * (delta(module, n) - at).square().sum() for n, at in zip(names, start))
    pairs = [p for _, a, b, _ in list_adapters(module.model.backbone) for p in (a, b)]
    wanted = torch.autograd.grad(term, pairs)
    plain = gradients(module)
    module.regularizer.add_gradient()
    for (name, parameter), gradient in zip(_named(module, pairs), wanted):
        torch.testing.assert_close(parameter.grad - plain[name], gradient, atol=1e-6, rtol=1e-5)
    assert regularization_term(module) == pytest.approx(float(term), rel=1e-5)
    length = float((delta(module, names[1]) - start[1]).norm())
    assert module.regularizer.distances()[names[1]] == pytest.approx(length, rel=1e-5)


def _merged(layer: Any) -> torch.Tensor:
    """What peft adds to a layer's weight, as [out, in]."""
    added = layer.get_delta_weight("default")
    return added.T if layer.fan_in_fan_out else added


def _named(
    module: Stage2, wanted: list[torch.nn.Parameter]
) -> list[tuple[str, torch.nn.Parameter]]:
    names = {id(p): name for name, p in module.named_parameters()}
    return [(names[id(p)], p) for p in wanted]


def test_adapters_that_have_not_moved_have_no_l2_term(llama: Path, tokens: Path) -> None:
    module = adapted(llama, tokens)
    assert regularization_term(module) == 0.0
    assert set(module.regularizer.distances().values()) == {0.0}
    assert build(llama, tokens, method="new_rows").regularizer.distances() == {}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 4}, "unknown key size; the keys are rank, alpha"),
        ({"rank": 0}, "rank: found 0; expected a value greater than or equal to 1"),
        ({"targets": ["query"]}, r"targets: \['query'\] does not fit.*q_proj"),
        ({"targets": ["q_proj", "embed_tokens"]}, "includes the embedding"),
        ({"targets": ["q_proj", "lm_head"]}, "includes the head"),
    ],
)
def test_impossible_adapters_say_what_is_possible(
    llama: Path, tokens: Path, settings: dict, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        build(llama, tokens, method="lora", lora=settings)


def test_named_targets_alone_are_adapted(llama: Path, tokens: Path) -> None:
    module = build(llama, tokens, method="lora", lora={"rank": 2, "targets": ["v_proj"]})
    adapted_layers = {name.rpartition(".")[2] for name, *_ in list_adapters(module.model.backbone)}
    assert adapted_layers == {"v_proj"}
    with pytest.raises(UserError, match=r"tuning.method is full"):
        build(llama, tokens, lora={"rank": 2})


def test_a_checkpoint_of_another_way_of_tuning_is_refused(llama: Path, tokens: Path) -> None:
    checkpoint: dict[str, Any] = {
        "state_dict": {},
        "hyper_parameters": {"tuning": {"method": "lora"}},
    }
    module = build(llama, tokens)
    module.on_save_checkpoint(checkpoint)
    with pytest.raises(UserError, match=r"trained with tuning.method: lora, and here it is full"):
        module.on_load_checkpoint(checkpoint)


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_checkpointing_changes_no_gradient(any_backbone: Path, tokens: Path, tuning: str) -> None:
    from transformers.modeling_layers import GradientCheckpointingLayer

    plain = build(
        any_backbone, tokens, method=tuning, lora={"dropout": 0.0} if tuning == "lora" else {}
    )
    again = build(
        any_backbone,
        tokens,
        method=tuning,
        lora={"dropout": 0.0} if tuning == "lora" else {},
        gradient_checkpointing=True,
    )
    again.load_state_dict(plain.state_dict())
    runs = []
    layer = next(
        part
        for part in again.model.transformer.modules()
        if isinstance(part, GradientCheckpointingLayer)
    )
    next(layer.children()).register_forward_pre_hook(lambda *_: runs.append(1))
    found, wanted = gradients(again), gradients(plain)
    # two passes forward, and again when going back
    assert found.keys() == wanted.keys()
    assert len(runs) > 2
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-5)


def test_every_kernel_gives_the_same_loss(any_backbone: Path, tokens: Path) -> None:
    """Eager attention; and, as for kernels without masks, an image for each question."""
    with torch.no_grad():
        wanted = loss(build(any_backbone, tokens).eval())
        eager = build(any_backbone, tokens, attention="eager").eval()
        apart = build(any_backbone, tokens).eval()
        apart.generator.shares_prefix = False
        packed = pack_batch(apart, batch())
        assert eager.model.backbone.config._attn_implementation == "eager"
        assert all(group.segments_BT is None for group in packed)
        assert sum(len(group.ids_BT) for group in packed) == 8
        torch.testing.assert_close(loss(eager), wanted, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(loss(apart), wanted, atol=1e-5, rtol=1e-5)


def test_a_kernel_that_is_not_installed_is_reported(llama: Path, tokens: Path) -> None:
    try:
        import flash_attn  # noqa: F401
    except ImportError:
        with pytest.raises(
            UserError, match=r"attention=flash_attention_2 is not available here.*use sdpa"
        ):
            build(llama, tokens, attention="flash_attention_2")
    else:
        assert not build(llama, tokens, attention="flash_attention_2").generator.shares_prefix


@pytest.mark.parametrize("tuning", ["lora", "new_rows"])
def test_a_stage_trained_in_full_is_tuned_on_with_fixed_weights(
    any_backbone: Path, tokens: Path, tmp_path: Path, tuning: str
) -> None:
    """It starts at that stage's losses, its old weights are that stage's, and only what is added is
    trained.
    """
    earlier = build(any_backbone, tokens).eval()
    with torch.no_grad():
        for parameter in earlier.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    path = save_checkpoint(earlier, tmp_path / "full.ckpt")
    module = build(
        any_backbone, tokens, method=tuning, init_from=str(path), reference="stage"
    ).eval()
    torch.testing.assert_close(loss(module), loss(earlier), atol=1e-5, rtol=1e-5)
    old = earlier.model.backbone.get_input_embeddings().weight
    v = module.model.vocabulary
    assert torch.equal(module.model.backbone.get_input_embeddings().weight, old[: v.num_text_rows])
    assert torch.equal(module.model.new_rows.embedding, old[v.num_text_rows :])
    assert torch.equal(module.model.grid_positions, earlier.model.grid_positions)
    assert regularization_term(module) == 0
    if tuning == "lora":
        with pytest.raises(
            UserError,
            match=r"set regularization.reference to stage, or regularization.lambda_reg to 0",
        ):
            build(any_backbone, tokens, method=tuning, init_from=str(path))
    with pytest.raises(UserError, match=r"trained with tuning.method: lora"):
        adapted_path = tmp_path / "adapted.ckpt"
        state = adapted(any_backbone, tokens)
        save_checkpoint(state, adapted_path)
        build(any_backbone, tokens, init_from=str(adapted_path))


@pytest.mark.parametrize("tuning", ["full", "lora", "new_rows"])
def test_the_plain_folder_is_the_same_model(
    any_backbone: Path, tokens: Path, tmp_path: Path, tuning: str
) -> None:
    """Loaded by transformers alone, it gives the module's logits."""
    module = build(any_backbone, tokens, method=tuning).eval()
    shake(module)
    torch.nn.init.normal_(module.model.grid_positions, std=0.2)
    kept = {name: value.clone() for name, value in module.state_dict().items()}
    save_language_model(module.model, tmp_path)
    # What was merged is a copy.
    for name, value in module.state_dict().items():
        assert torch.equal(value, kept[name])
    plain = AutoModelForCausalLM.from_pretrained(tmp_path)
    facts = json.loads((tmp_path / "visual.json").read_text())
    v = module.model.vocabulary
    assert facts["first_code"] == v.first_code
    assert facts["codebook_size"] == 20
    assert facts["special_tokens"]["<end>"] == v.num_text_rows
    text = module.prompts.tokenize("No edema.")
    ids = torch.tensor([text + module.prompts.image_prefix(CODES[0].tolist())])
    embedded = plain.get_input_embeddings()(ids)
    where = int((ids[0] >= v.first_code).int().argmax())
    embedded[:, where : where + 9] += load_file(tmp_path / "grid_positions.safetensors")[
        "grid_positions"
    ]
    with torch.no_grad():
        hidden = module.model.transformer(inputs_embeds=module.model.embed(ids)).last_hidden_state
        wanted = torch.cat(
            [
                module.model.text_logits(hidden)[..., : v.num_text_rows + 1],
                module.model.code_logits(hidden),
            ],
            -1,
        )
        found = plain(inputs_embeds=embedded).logits
    assert found.shape[-1] == v.num_rows
    torch.testing.assert_close(
        torch.cat([found[..., : v.num_text_rows + 1], found[..., v.first_code :]], -1),
        wanted,
        atol=1e-4,
        rtol=1e-4,
    )
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer("No edema.")["input_ids"] == module.model.tokenizer("No edema.")["input_ids"]
