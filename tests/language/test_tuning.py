"""Drift of adapters against autograd of the materialised norm; settings; checkpointing and kernels against plain runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mavilt_pl.data.study import DataError, Question
from mavilt_pl.language import Stage2
from mavilt_pl.language.tuning import adapters

CODES = torch.tensor([[1, 2, 3, 4, 5, 6, 7, 8, 9], [11, 0, 0, 3, 19, 5, 5, 5, 2]])


def made(backbone: Path, tokens: Path, **settings: Any) -> Stage2:
    torch.manual_seed(0)
    return Stage2(str(backbone), str(tokens), **{"max_words": 12, "condition_dropout": 0.0, "drift": 0.1, **settings})


def adapted(backbone: Path, tokens: Path, **settings: Any) -> Stage2:
    return made(backbone, tokens, tuning="lora", lora={"r": 4, "alpha": 6, "dropout": 0.0}, **settings)


def batch() -> dict[str, Any]:
    ask = [Question(f"Is there {what}?", "no", what, ("yes", "no")) for what in ("edema", "an effusion")]
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
    """λ/2 ‖W − W₀‖² of weights that peft merges itself, θ₀ the backbone or an earlier stage's adapters."""
    earlier = adapted(any_backbone, tokens)
    shake(earlier)
    checkpoint = {"state_dict": earlier.state_dict(), "hyper_parameters": dict(earlier.hparams)}
    earlier.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, tmp_path / "earlier.ckpt")
    module = adapted(any_backbone, tokens, drift_from=since, init_from=str(tmp_path / "earlier.ckpt"))

    def delta(owner: Stage2, name: str) -> torch.Tensor:
        layer = owner.model.get_submodule(name)
        return layer.scaling["default"] * layer.lora_B["default"].weight @ layer.lora_A["default"].weight

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


def _named(module: Stage2, wanted: list[torch.nn.Parameter]) -> list[tuple[str, torch.nn.Parameter]]:
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
def test_impossible_adapters_say_what_is_possible(llama: Path, tokens: Path, settings: dict, told: str) -> None:
    with pytest.raises(DataError, match=told):
        made(llama, tokens, tuning="lora", lora=settings)


def test_named_targets_alone_are_adapted(llama: Path, tokens: Path) -> None:
    module = made(llama, tokens, tuning="lora", lora={"r": 2, "targets": ["v_proj"]})
    assert {name.rpartition(".")[2] for name, *_ in adapters(module.model)} == {"v_proj"}
    with pytest.raises(DataError, match="tuning is full"):
        made(llama, tokens, lora={"r": 2})


def test_a_checkpoint_of_another_way_of_tuning_is_refused(llama: Path, tokens: Path) -> None:
    checkpoint: dict[str, Any] = {"state_dict": {}, "hyper_parameters": {"tuning": "lora"}}
    module = made(llama, tokens)
    module.on_save_checkpoint(checkpoint)
    with pytest.raises(DataError, match="trained with tuning: lora, and here it is full"):
        module.on_load_checkpoint(checkpoint)


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_checkpointing_changes_no_gradient(any_backbone: Path, tokens: Path, tuning: str) -> None:
    from transformers.modeling_layers import GradientCheckpointingLayer

    plain = made(any_backbone, tokens, tuning=tuning, lora={"dropout": 0.0} if tuning == "lora" else None)
    again = made(
        any_backbone,
        tokens,
        tuning=tuning,
        lora={"dropout": 0.0} if tuning == "lora" else None,
        gradient_checkpointing=True,
    )
    again.load_state_dict(plain.state_dict())
    runs = []
    layer = next(part for part in again.body.modules() if isinstance(part, GradientCheckpointingLayer))
    next(layer.children()).register_forward_pre_hook(lambda *_: runs.append(1))
    found, wanted = gradients(again), gradients(plain)
    assert found.keys() == wanted.keys() and len(runs) > 2  # two passes forward, and again when going back
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
        assert all(group.segments_BT is None for group in packed) and len(packed[0].ids_BT) == 6
        torch.testing.assert_close(loss(eager), wanted, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(loss(apart), wanted, atol=1e-5, rtol=1e-5)


def test_a_kernel_that_is_not_there_is_told(llama: Path, tokens: Path) -> None:
    try:
        import flash_attn  # noqa: F401
    except ImportError:
        with pytest.raises(DataError, match=r"flash_attention_2 cannot be had here.*use sdpa"):
            made(llama, tokens, attention="flash_attention_2")
    else:
        assert not made(llama, tokens, attention="flash_attention_2").shares_prefix
