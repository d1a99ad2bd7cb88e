"""Drift of adapters against autograd of the materialised norm; settings; checkpointing and kernels
against plain runs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from mavilt_pl.data.records import Question
from mavilt_pl.errors import UserError
from mavilt_pl.language import Stage2
from mavilt_pl.language.adapters import adapters

CODES = torch.tensor([[1, 2, 3, 4, 5, 6, 7, 8, 9], [11, 0, 0, 3, 19, 5, 5, 5, 2]])


def made(backbone: Path, tokens: Path, **settings: Any) -> Stage2:
    torch.manual_seed(0)
    return Stage2(
        str(backbone),
        str(tokens),
        **{"max_words": 12, "condition_dropout": 0.0, "drift": 0.1, **settings},
    )


def adapted(backbone: Path, tokens: Path, **settings: Any) -> Stage2:
    return made(
        backbone, tokens, tuning="lora", lora={"r": 4, "alpha": 6, "dropout": 0.0}, **settings
    )


def batch() -> dict[str, Any]:
    ask = [
        Question(f"Is there {what}?", "no", what, ("yes", "no"))
        for what in ("edema", "an effusion")
    ]
    texts = ("No effusion.", "The heart is enlarged.")
    return {"codes": CODES, "studies": [{"text": t, "study": t, "questions": ask} for t in texts]}


def loss(module: Stage2) -> torch.Tensor:
    losses = module.losses(module.on_before_batch_transfer(batch(), 0)["packed"])
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
def test_the_drift_of_adapters_is_autograd_of_the_whole_weights(
    any_backbone: Path, tokens: Path, tmp_path: Path, since: str
) -> None:
    """λ/2 ‖W − W₀‖² of weights that peft merges itself, θ₀ the backbone or an earlier stage's
    adapters.
    """
    earlier = adapted(any_backbone, tokens)
    shake(earlier)
    checkpoint = {"state_dict": earlier.state_dict(), "hyper_parameters": dict(earlier.hparams)}
    earlier.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, tmp_path / "earlier.ckpt")
    module = adapted(
        any_backbone, tokens, drift_from=since, init_from=str(tmp_path / "earlier.ckpt")
    )

    def delta(owner: Stage2, name: str) -> torch.Tensor:
        layer = owner.model.get_submodule(name)
        return (
            layer.scaling["default"]
            * layer.lora_B["default"].weight
            @ layer.lora_A["default"].weight
        )

    names = [name for name, *_ in adapters(module.model)]
    assert len(names) >= 8 and not any("head" in name or "embed" in name for name in names)
    layer = module.model.get_submodule(names[0])
    torch.testing.assert_close(delta(module, names[0]), _merged(layer), atol=1e-6, rtol=1e-5)
    shake(module)
    start = [delta(earlier, n).detach() if since == "stage" else 0.0 for n in names]
    term = sum(0.05 * (delta(module, n) - at).square().sum() for n, at in zip(names, start))
    pairs = [p for _, a, b, _ in adapters(module.model) for p in (a, b)]
    wanted = torch.autograd.grad(term, pairs)
    plain = gradients(module)
    module.drift.add_gradient()
    for (name, parameter), gradient in zip(_named(module, pairs), wanted):
        torch.testing.assert_close(parameter.grad - plain[name], gradient, atol=1e-6, rtol=1e-5)
    assert module.drift.term() == pytest.approx(float(term), rel=1e-5)
    length = float((delta(module, names[1]) - start[1]).norm())
    assert module.drift.per_layer()[names[1]] == pytest.approx(length, rel=1e-5)


def _merged(layer: Any) -> torch.Tensor:
    """What peft adds to a layer's weight, as [out, in]."""
    added = layer.get_delta_weight("default")
    return added.T if layer.fan_in_fan_out else added


def _named(
    module: Stage2, wanted: list[torch.nn.Parameter]
) -> list[tuple[str, torch.nn.Parameter]]:
    names = {id(p): name for name, p in module.named_parameters()}
    return [(names[id(p)], p) for p in wanted]


def test_adapters_that_have_not_moved_do_not_drift(llama: Path, tokens: Path) -> None:
    module = adapted(llama, tokens)
    assert module.drift.term() == 0.0 and set(module.drift.per_layer().values()) == {0.0}
    assert made(llama, tokens, tuning="new_rows").drift.per_layer() == {}


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"rank": 4}, "unknown key rank; the keys are r, alpha"),
        ({"r": 0}, "r of 1 or more"),
        ({"targets": ["query"]}, r"targets: \['query'\] does not fit.*q_proj"),
        ({"targets": ["q_proj", "embed_tokens"]}, "takes in the embedding"),
        ({"targets": ["q_proj", "lm_head"]}, "takes in the head"),
    ],
)
def test_impossible_adapters_say_what_is_possible(
    llama: Path, tokens: Path, settings: dict, told: str
) -> None:
    with pytest.raises(UserError, match=told):
        made(llama, tokens, tuning="lora", lora=settings)


def test_named_targets_alone_are_adapted(llama: Path, tokens: Path) -> None:
    module = made(llama, tokens, tuning="lora", lora={"r": 2, "targets": ["v_proj"]})
    assert {name.rpartition(".")[2] for name, *_ in adapters(module.model)} == {"v_proj"}
    with pytest.raises(UserError, match="tuning is full"):
        made(llama, tokens, lora={"r": 2})


def test_a_checkpoint_of_another_way_of_tuning_is_refused(llama: Path, tokens: Path) -> None:
    checkpoint: dict[str, Any] = {"state_dict": {}, "hyper_parameters": {"tuning": "lora"}}
    module = made(llama, tokens)
    module.on_save_checkpoint(checkpoint)
    with pytest.raises(UserError, match="trained with tuning: lora, and here it is full"):
        module.on_load_checkpoint(checkpoint)


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_checkpointing_changes_no_gradient(any_backbone: Path, tokens: Path, tuning: str) -> None:
    from transformers.modeling_layers import GradientCheckpointingLayer

    plain = made(
        any_backbone, tokens, tuning=tuning, lora={"dropout": 0.0} if tuning == "lora" else None
    )
    again = made(
        any_backbone,
        tokens,
        tuning=tuning,
        lora={"dropout": 0.0} if tuning == "lora" else None,
        gradient_checkpointing=True,
    )
    again.load_state_dict(plain.state_dict())
    runs = []
    layer = next(
        part for part in again.body.modules() if isinstance(part, GradientCheckpointingLayer)
    )
    next(layer.children()).register_forward_pre_hook(lambda *_: runs.append(1))
    found, wanted = gradients(again), gradients(plain)
    assert (
        found.keys() == wanted.keys() and len(runs) > 2
    )  # two passes forward, and again when going back
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-5)


def test_every_kernel_gives_the_same_loss(any_backbone: Path, tokens: Path) -> None:
    """Eager attention; and, as for kernels without masks, each question with an image of its own."""
    with torch.no_grad():
        wanted = loss(made(any_backbone, tokens).eval())
        eager = made(any_backbone, tokens, attention="eager").eval()
        apart = made(any_backbone, tokens).eval()
        apart.shares_prefix = False
        packed = apart.on_before_batch_transfer(batch(), 0)["packed"]
        assert eager.model.config._attn_implementation == "eager"
        assert (
            all(group.segments_BT is None for group in packed)
            and sum(len(group.ids_BT) for group in packed) == 8
        )
        torch.testing.assert_close(loss(eager), wanted, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(loss(apart), wanted, atol=1e-5, rtol=1e-5)


def test_a_kernel_that_is_not_there_is_told(llama: Path, tokens: Path) -> None:
    try:
        import flash_attn  # noqa: F401
    except ImportError:
        with pytest.raises(UserError, match=r"flash_attention_2 cannot be had here.*use sdpa"):
            made(llama, tokens, attention="flash_attention_2")
    else:
        assert not made(llama, tokens, attention="flash_attention_2").shares_prefix


@pytest.mark.parametrize("tuning", ["lora", "new_rows"])
def test_a_stage_trained_in_full_is_tuned_on_with_fixed_weights(
    any_backbone: Path, tokens: Path, tmp_path: Path, tuning: str
) -> None:
    """It starts at that stage's losses, its old weights are that stage's, and only what is added is
    trained.
    """
    earlier = made(any_backbone, tokens).eval()
    with torch.no_grad():
        for parameter in earlier.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    checkpoint = {"state_dict": earlier.state_dict(), "hyper_parameters": dict(earlier.hparams)}
    earlier.on_save_checkpoint(checkpoint)
    path = tmp_path / "full.ckpt"
    torch.save(checkpoint, path)
    module = made(
        any_backbone, tokens, tuning=tuning, init_from=str(path), drift_from="stage"
    ).eval()
    torch.testing.assert_close(loss(module), loss(earlier), atol=1e-5, rtol=1e-5)
    old = earlier.model.get_input_embeddings().weight
    v = module.vocabulary
    assert torch.equal(module.model.get_input_embeddings().weight, old[: v.text])
    assert torch.equal(module.new_rows.embedding, old[v.text :]) and torch.equal(
        module.place, earlier.place
    )
    assert module.drift.term() == 0
    if tuning == "lora":
        with pytest.raises(UserError, match="set drift_from to stage, or drift to 0"):
            made(any_backbone, tokens, tuning=tuning, init_from=str(path))
    with pytest.raises(UserError, match="trained with tuning: lora"):
        adapted_path = tmp_path / "adapted.ckpt"
        state = adapted(any_backbone, tokens)
        saved = {"state_dict": state.state_dict(), "hyper_parameters": dict(state.hparams)}
        state.on_save_checkpoint(saved)
        torch.save(saved, adapted_path)
        made(any_backbone, tokens, init_from=str(adapted_path))


@pytest.mark.parametrize("tuning", ["full", "lora", "new_rows"])
def test_the_plain_folder_is_the_same_model(
    any_backbone: Path, tokens: Path, tmp_path: Path, tuning: str
) -> None:
    """Loaded by transformers alone, it gives the logits of the module over words, marks and codes."""
    module = made(any_backbone, tokens, tuning=tuning).eval()
    shake(module)
    torch.nn.init.normal_(module.place, std=0.2)
    kept = {name: value.clone() for name, value in module.state_dict().items()}
    module.save_plain(tmp_path)
    assert all(
        torch.equal(value, kept[name]) for name, value in module.state_dict().items()
    )  # it is a copy
    plain, facts = (
        AutoModelForCausalLM.from_pretrained(tmp_path),
        json.loads((tmp_path / "visual.json").read_text()),
    )
    v = module.vocabulary
    assert (facts["first_code"], facts["codes"], facts["marks"]["<end>"]) == (
        v.first_code,
        20,
        v.text,
    )
    ids = torch.tensor([[*module.words("No edema."), *module.image_prefix(CODES[0].tolist())]])
    embedded = plain.get_input_embeddings()(ids)
    where = int((ids[0] >= v.first_code).int().argmax())
    embedded[:, where : where + 9] += load_file(tmp_path / "places.safetensors")["place"]
    with torch.no_grad():
        hidden = module.body(inputs_embeds=module.embed(ids)).last_hidden_state
        wanted = torch.cat(
            [module.text_logits(hidden)[..., : v.text + 1], module.code_logits(hidden)], -1
        )
        found = plain(inputs_embeds=embedded).logits
    assert found.shape[-1] == v.total
    torch.testing.assert_close(
        torch.cat([found[..., : v.text + 1], found[..., v.first_code :]], -1),
        wanted,
        atol=1e-4,
        rtol=1e-4,
    )
    assert (
        AutoTokenizer.from_pretrained(tmp_path)("No edema.")["input_ids"]
        == module.tokenizer("No edema.")["input_ids"]
    )
