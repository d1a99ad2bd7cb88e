"""Any causal language model: five families, tied and untied, each with its own tokenizer, through
both stages' modules.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning import LightningDataModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from safetensors.torch import load_file, save_file
from stages import build_stage, hidden_state_after, pack_batch, task_losses
from tiny_runs import stage1
from torch.utils.data import DataLoader
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BloomConfig,
    CohereConfig,
    MambaConfig,
    RwkvConfig,
    T5Config,
    T5ForConditionalGeneration,
)

from mavilt_pl.cli import main
from mavilt_pl.config_files import CONFIGS
from mavilt_pl.data.records import Question
from mavilt_pl.errors import UserError
from mavilt_pl.language import Backbone, Stage1, Stage2
from mavilt_pl.language.vocabulary import SPECIAL_TOKENS

CODES = torch.tensor([[1, 2, 3, 4, 5, 6, 7, 8, 9], [11, 0, 0, 3, 19, 5, 5, 5, 2]])
WAYS = ["full", "lora", "new_rows"]


def build(kind: type, backbone: Path, tokens: Path, **settings: Any) -> Any:
    torch.manual_seed(0)
    fixed = {
        "lambda_reg": 0.1,
        "max_text_tokens": 12,
        "condition_dropout": 0.0,
        "learning_rate": 1e-2,
        "warmup_steps": 0,
    }
    if settings.get("method") == "lora":
        settings.setdefault("lora", {"rank": 4, "dropout": 0.0})
    return build_stage(backbone, tokens, kind, **{**fixed, **settings})


def batch(texts: tuple[str, ...] = ("No effusion.", "The heart is enlarged.")) -> dict[str, Any]:
    ask = [Question("Is there an effusion?", "yes", "pleural effusion", ("yes", "no"))]
    studies = [{"text": text, "study": f"s{i}", "questions": ask} for i, text in enumerate(texts)]
    return {"codes": CODES[: len(texts)], "studies": studies}


def is_added(name: str) -> bool:
    """Whether a weight is not the backbone's own."""
    return "lora_" in name or name.startswith(("model.new_rows.", "model.grid_positions"))


def step(module: Any, given: dict[str, Any]) -> torch.Tensor:
    losses = task_losses(module, pack_batch(module, given))
    return torch.stack([*losses.values()]).mean()


def fit(module: Any, folder: Path, resume: Path | None = None) -> None:
    """Four steps; the second leaves a checkpoint."""
    trainer = Trainer(
        max_steps=4,
        accelerator="cpu",
        logger=False,
        callbacks=[ModelCheckpoint(folder, "{step}", every_n_train_steps=2, save_top_k=-1)],
        enable_progress_bar=False,
        enable_model_summary=False,
        gradient_clip_val=1.0,
        default_root_dir=folder,
    )
    trainer.fit(module, DataLoader([batch() for _ in range(4)], batch_size=None), ckpt_path=resume)
    assert trainer.global_step == 4


@pytest.mark.parametrize("tuning", WAYS)
def test_the_vocabulary_grows_by_one_block_and_old_ids_stay(
    any_backbone: Path, tokens: Path, tuning: str
) -> None:
    """Old ids mean what they meant, and rows that only pad the model's vocabulary are not given
    away.
    """
    before = AutoModelForCausalLM.from_pretrained(any_backbone)
    tokenizer = AutoTokenizer.from_pretrained(any_backbone)
    module = build(Stage2, any_backbone, tokens, method=tuning).eval()
    v, old = module.model.vocabulary, before.get_input_embeddings().weight
    assert v.num_text_rows == len(old) >= len(tokenizer)
    assert v.num_used_rows <= v.num_text_rows
    assert v.num_rows == v.num_text_rows + len(SPECIAL_TOKENS) + 20
    assert torch.equal(module.model.backbone.get_input_embeddings().weight[: v.num_text_rows], old)
    head = module.model.backbone.get_output_embeddings().weight
    assert torch.equal(head[: v.num_text_rows], before.get_output_embeddings().weight)
    text = "The heart is enlarged. No edema.  The lungs are clear."
    assert module.prompts.tokenize(text) == tokenizer(text, add_special_tokens=False)["input_ids"]
    ids = torch.tensor([module.prompts.tokenize(text)])
    with torch.no_grad():
        hidden = module.model.transformer(inputs_embeds=module.model.embed(ids)).last_hidden_state
        wanted = before(input_ids=ids).logits
    found = module.model.text_logits(hidden)
    assert found.shape[-1] == v.num_text_rows + 1
    assert module.model.code_logits(hidden).shape[-1] == 20
    torch.testing.assert_close(found[..., : v.num_text_rows], wanted, atol=1e-5, rtol=1e-4)


def test_both_ways_of_growing_start_the_same(any_backbone: Path, tokens: Path) -> None:
    """Rows of their own behind a fixed model give the losses of the grown model."""
    with torch.no_grad():
        full, apart = (
            step(build(Stage2, any_backbone, tokens, method=t).eval(), batch())
            for t in ("full", "new_rows")
        )
    torch.testing.assert_close(full, apart, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("tuning", WAYS)
def test_a_step_gives_everything_that_is_trained_a_gradient(
    any_backbone: Path, tokens: Path, tuning: str
) -> None:
    module = build(Stage1, any_backbone, tokens, method=tuning)
    loss = step(module, batch())
    loss.backward()
    assert torch.isfinite(loss)
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            assert tuning != "full"
            assert parameter.grad is None
        else:
            assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
            # B starts at 0, and so does the gradient of A.
            assert parameter.ndim == 1 or "lora_A" in name or bool(parameter.grad.any()), name
    trained = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    if tuning != "full":
        assert {"model.new_rows.embedding", "model.grid_positions"} <= trained
        assert all(map(is_added, trained))
        assert any("lora_" in name for name in trained) == (tuning == "lora")


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_images_are_codes_texts_are_tokens_and_the_cache_changes_nothing(
    any_backbone: Path, tokens: Path, tuning: str
) -> None:
    module = build(Stage2, any_backbone, tokens, method=tuning, temperature=0.0).eval()
    v = module.model.vocabulary
    torch.nn.init.normal_(module.model.grid_positions, std=0.2)
    images = module.generator.generate_images(
        ["No effusion.", "The heart is enlarged. No edema.", ""]
    )
    assert images.shape == (3, 9)
    assert images.min() >= 0
    assert images.max() < 20
    synthesis = module.prompts.synthesis_prompt("No effusion.")
    writing = module.prompts.image_prefix(CODES[0].tolist())
    start = len(writing)
    for _ in range(v.codes_per_image):
        logits = module.model.code_logits(hidden_state_after(module, synthesis))
        synthesis.append(v.first_code + int(logits.argmax()))
    while len(writing) < start + 12 and writing[-1] != v.end:
        logits = module.model.text_logits(hidden_state_after(module, writing)).detach()
        logits[v.num_used_rows : v.num_text_rows] = -torch.inf
        writing.append(int(logits.argmax()))
    assert (images[0] + v.first_code).tolist() == synthesis[-v.codes_per_image :]
    prompts = [
        module.prompts.image_prefix(CODES[0].tolist()),
        [5, *module.prompts.image_prefix(CODES[1].tolist())],
    ]
    texts = module.generator.generate_ids(prompts, 12)
    assert texts[0] == [i for i in writing[start:] if i != v.end]
    assert all(i < v.num_used_rows for row in texts for i in row)


@pytest.mark.slow
@pytest.mark.parametrize("tuning", WAYS)
def test_resuming_equals_never_stopping_and_fixed_rows_stay(
    any_backbone: Path, tokens: Path, tmp_path: Path, tuning: str
) -> None:
    """Bit by bit; with adapters or new rows no weight of the backbone has moved, decay or not."""
    whole = build(Stage1, any_backbone, tokens, method=tuning)
    fit(whole, tmp_path / "whole")
    resumed = build(Stage1, any_backbone, tokens, method=tuning)
    fit(resumed, tmp_path / "resumed", tmp_path / "whole" / "step=2.ckpt")
    begun = build(Stage1, any_backbone, tokens, method=tuning).state_dict()
    moved = set()
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
        if not torch.equal(value, begun[name]):
            moved.add(name)
    if tuning == "full":
        assert len(moved) == len(begun)
    else:
        assert {"model.new_rows.embedding", "model.grid_positions"} <= moved
        assert all(map(is_added, moved))


def test_text_that_looks_like_special_tokens_stays_text(any_backbone: Path, tokens: Path) -> None:
    module = build(Stage2, any_backbone, tokens)
    odd = " ".join([*SPECIAL_TOKENS, *module.model.tokenizer.all_special_tokens])
    ids = module.prompts.tokenize(odd)
    assert max(ids) < module.model.vocabulary.num_used_rows
    assert not set(ids) & set(module.model.tokenizer.all_special_ids)
    assert module.model.tokenizer.decode(ids).strip() == odd


def test_a_tokenizer_larger_than_its_model_is_refused(
    llama: Path, tokens: Path, tmp_path: Path
) -> None:
    """Its tokens would have the ids of our special tokens. A special token of the tokenizer beyond
    the model's rows is fine: text never contains it.
    """
    out = shutil.copytree(llama, tmp_path / "grown")
    tokenizer = AutoTokenizer.from_pretrained(llama)
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    tokenizer.save_pretrained(out)
    module = build(Stage2, out, tokens)
    vocabulary = module.model.vocabulary
    assert max(module.prompts.tokenize("a <pad> b")) < vocabulary.num_used_rows
    assert vocabulary.num_used_rows == vocabulary.num_text_rows
    tokenizer.add_tokens(["pneumothorax"])
    tokenizer.save_pretrained(out)
    with pytest.raises(
        UserError, match=r"1 tokens without a row .*'pneumothorax'.*resize_token_embeddings"
    ):
        build(Stage2, out, tokens)


def test_a_head_that_is_more_than_linear_is_refused(
    tmp_path: Path, tokens: Path, llama: Path
) -> None:
    config = CohereConfig(
        vocab_size=400,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        logit_scale=0.1,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(llama).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="CohereForCausalLM are not a linear map"):
        build(Stage2, tmp_path, tokens)


def copied(llama: Path, out: Path, weights: dict[str, Any] | None = None) -> Path:
    """A backbone of its own in `out`, with other weights where they are given."""
    shutil.copytree(llama, out)
    if weights is not None:
        save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    return out


def test_an_unreadable_folder_is_reported(llama: Path, tokens: Path, tmp_path: Path) -> None:
    torn = copied(llama, tmp_path / "torn")
    (torn / "model.safetensors").write_bytes((torn / "model.safetensors").read_bytes()[:-100])
    wordless = copied(llama, tmp_path / "wordless")
    for file in wordless.glob("token*"):
        file.unlink()
    unknown = copied(llama, tmp_path / "unknown")
    (unknown / "config.json").write_text('{"model_type": "abacus"}')
    encoder = copied(llama, tmp_path / "encoder")
    T5ForConditionalGeneration(
        T5Config(vocab_size=330, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    ).save_pretrained(encoder)
    for folder, reason in (
        (torn, r"it cannot be loaded \(SafetensorError: .*Expected a causal language model"),
        (wordless, r"no readable tokenizer .*Expected tokenizer.json"),
        (unknown, r"it cannot be loaded .*`abacus`.*Expected a causal language model"),
        (encoder, r"it cannot be loaded .*T5Config.*Expected a causal language model"),
    ):
        with pytest.raises(UserError, match=f"backbone {folder}: {reason}"):
            build(Stage2, folder, tokens)


def test_weights_that_would_be_random_are_refused(
    llama: Path, tokens: Path, tmp_path: Path
) -> None:
    whole = load_file(llama / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    for case, weights in (
        ("missing", {key: value for key, value in whole.items() if key != name}),
        ("small", {**whole, name: whole[name][:3].clone()}),
    ):
        folder = copied(llama, tmp_path / case, weights)
        with pytest.raises(
            UserError, match=rf"1 of its weights are missing, or not of the size .*{name}"
        ):
            build(Stage2, folder, tokens)
        assert build(Stage2, folder, tokens, pretrained=False)  # none of them is read


@pytest.mark.filterwarnings("error:backbone")
def test_weights_that_are_not_used_are_warned_of(llama: Path, tokens: Path, tmp_path: Path) -> None:
    whole = load_file(llama / "model.safetensors")
    head = {
        "lm_head.weight": whole["model.embed_tokens.weight"].clone()
    }  # a tied head, saved all the same
    old = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4)}
    assert build(Stage2, copied(llama, tmp_path / "harmless", {**whole, **head, **old}), tokens)
    folder = copied(llama, tmp_path / "more", {**whole, "value_head.weight": torch.zeros(4)})
    with pytest.raises(
        UserWarning, match=r"1 weights of its files belong to no part .*value_head.weight"
    ):
        build(Stage2, folder, tokens)


@pytest.mark.parametrize("kind", [BloomConfig, MambaConfig, RwkvConfig])
def test_models_that_know_eager_attention_only(
    kind: type, llama: Path, tokens: Path, tmp_path: Path
) -> None:
    """It is used with a warning; a model without a cache is refused."""
    folder = copied(llama, tmp_path / "model")
    model = AutoModelForCausalLM.from_config(
        kind(vocab_size=330, hidden_size=32, num_hidden_layers=2)
    )
    model.save_pretrained(folder)
    with pytest.raises(
        UserError,
        match=r"does not support attention=sdpa; set --model.init_args.model.attention eager",
    ):
        build(Stage2, folder, tokens)
    if kind is RwkvConfig:
        with pytest.raises(UserError, match="RwkvForCausalLM returns no key-value cache"):
            build(Stage2, folder, tokens, attention="eager")
    else:
        module = build(Stage2, folder, tokens, attention="eager").eval()
        assert module.generator.generate_images(["No effusion."]).shape == (1, 9)


def test_a_resumed_backbone_keeps_its_tokenizer(tmp_path: Path) -> None:
    """A tokenizer of the same size, learned from other texts, would give rows other tokens."""

    class Texts(LightningDataModule):
        def __init__(self, *texts: str):
            super().__init__()
            self.lines = [*texts] * 8

        def texts(self, split: str) -> list[str]:
            return self.lines

        def train_dataloader(self) -> DataLoader:
            return DataLoader([{"text": self.lines}] * 4, batch_size=None)

    def fitted(out: str, steps: int, data: Texts, resume: Path | None = None) -> Any:
        backbone = Backbone(vocabulary_size=270, width=32, layers=1, heads=2, block=16)
        trainer = Trainer(
            max_steps=steps,
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[ModelCheckpoint(tmp_path / out, save_last=True)],
            default_root_dir=tmp_path / out,
        )
        trainer.fit(backbone, data, ckpt_path=resume)
        return AutoTokenizer.from_pretrained(tmp_path / out / "backbone")

    lungs = Texts("the lungs are clear", "lung volumes are low")
    heart = Texts("cardiomegaly of moderate degree", "no edema")
    first, other = fitted("first", 2, lungs), fitted("other", 2, heart)
    assert len(first) == len(other)
    assert first.get_vocab() != other.get_vocab()
    resumed = fitted("resumed", 3, heart, tmp_path / "first" / "last.ckpt")
    assert resumed.get_vocab() == first.get_vocab()


def test_a_folder_with_code_of_its_own_runs_none(
    llama: Path, tokens: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unknown architecture with `auto_map` is refused at once, without a question."""
    folder = copied(llama, tmp_path / "code")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Evil"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()")
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    with pytest.raises(UserError, match=r"backbone .*code: it cannot be loaded"):
        build_stage(folder, tokens)
    assert not (tmp_path / "ran").exists()


SHIPPED = sorted((CONFIGS / "backbones").glob("*.yaml"))
# Of each shipped config of a backbone: its family, as a random model of two layers.
FAMILIES = {
    "smollm2": {"model_type": "llama", "tie_word_embeddings": True},
    "llama": {"model_type": "llama", "tie_word_embeddings": True},
    "qwen3": {"model_type": "qwen3", "head_dim": 8, "tie_word_embeddings": True},
    "phi": {"model_type": "phi3", "tie_word_embeddings": True},
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "config", sorted((CONFIGS / "backbones").glob("*.yaml")), ids=lambda path: path.stem
)
def test_a_shipped_backbone_trains(
    config: Path, llama: Path, chain: Path, corpus_path: Path, tmp_path: Path
) -> None:
    """The config as `mavilt fit` takes it, over a model of its family in place of the hub's."""
    shutil.copytree(llama, tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(llama)
    family = AutoConfig.for_model(
        **FAMILIES[config.stem.split("-")[0]],
        **{"vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 48},
        **{"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2},
        **{"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
    )
    AutoModelForCausalLM.from_config(family).save_pretrained(tmp_path / "model")
    settings = yaml.safe_load(config.read_text())["model"]["init_args"]
    words = stage1(chain, corpus_path, tmp_path / "run", f"--config=backbones/{config.name}")
    words.append(f"--model.init_args.backbone={tmp_path}/model")
    # The demo's optimizer is for full tuning of small models.
    words += ["--model.init_args.tuning.optimizer=adamw", "--trainer.max_steps=2"]
    assert main(words) == 0
    saved = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)
    tuning = saved["hyper_parameters"]["tuning"]
    expected = {"method": "full", "gradient_checkpointing": False, **settings.get("tuning", {})}
    assert {key: tuning[key] for key in expected} == expected
    # What the overlay does not name is the config's.
    assert tuning["task_weights"]["report"] == 2.0
