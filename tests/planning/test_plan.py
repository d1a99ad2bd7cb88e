"""`mavilt plan`: weights to the number, activations as autograd saves them, one message for what cannot be planned."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from mavilt_pl.cli import main
from mavilt_pl.planning.memory import Step, language, tokenizer
from mavilt_pl.planning.transformer import KNOWN, from_config
from mavilt_pl.vqgan.module import VQGAN

SMALL = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}
CONFIGS: list[dict[str, Any]] = [
    {"model_type": "llama", **SMALL, "tie_word_embeddings": True},
    {"model_type": "llama", **SMALL, "num_key_value_heads": 2, "tie_word_embeddings": False},
    {"model_type": "mistral", **SMALL, "num_key_value_heads": 2},
    {"model_type": "qwen2", **SMALL, "num_key_value_heads": 2, "tie_word_embeddings": True},
    {"model_type": "gpt_neox", **SMALL, "tie_word_embeddings": False},
    {
        "model_type": "gpt2",
        "vocab_size": 300,
        "n_embd": 64,
        "n_layer": 3,
        "n_head": 4,
        "n_positions": 128,
        "attn_pdrop": 0.0,
        "bos_token_id": 0,
        "eos_token_id": 0,
    },
]


def built(config: dict[str, Any]) -> Any:
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(**config), attn_implementation="sdpa")


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c['model_type']}-{c.get('num_key_value_heads', 'all')}")
def test_weights_and_activations_are_the_models_own(config: dict[str, Any]) -> None:
    """Weights to the number; what one layer more saves within a tenth."""
    saved = []
    for more in (0, 1):
        key = "n_layer" if "n_layer" in config else "num_hidden_layers"
        model = built({**config, key: config[key] + more})
        model.train()
        kept: dict[int, int] = {}

        def keep(tensor: torch.Tensor, kept: dict[int, int] = kept) -> torch.Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor  # which keeps it, so that no address is given twice

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            out = model.base_model(inputs_embeds=torch.randn(2, 50, 64, requires_grad=True), use_cache=False)
        weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
        saved.append(sum(size for address, size in kept.items() if address not in weights))
        del out
    planned = from_config(config, "small")
    assert planned.weights == sum(p.numel() for p in built(config).parameters())
    assert 100 * planned.saved("full", 4, 4, masked=False) == pytest.approx(saved[1] - saved[0], rel=0.1)


def test_weights_of_a_tokenizer_are_its_own() -> None:
    shape = {
        "image_size": 64,
        "channels": 32,
        "multipliers": [1, 2, 3],
        "blocks": 1,
        "attention": [8],
        "latent": 64,
        "patch": 2,
    }
    for settings in ({"autoencoder": shape, "quantizer": {"codes": 256, "code_width": 8}, "discriminator": {"channels": 16, "layers": 2}}, {"gan_weight": 0.0}):  # fmt: skip
        with torch.device("meta" if "gan_weight" in settings else "cpu"):
            module = VQGAN(**settings)  # type: ignore[arg-type]
        assert tokenizer(settings, 4).trained == sum(p.numel() for p in module.parameters() if p.requires_grad)


def test_what_helps_helps() -> None:
    """Checkpointing takes activations away; FSDP2 states; adapters gradients and θ₀; DDP's buckets and θ₀ come on top."""
    full = language(KNOWN["7"], Step(), gpus=8)
    kept = language(KNOWN["7"], Step(), gpus=8, checkpointing=True)
    assert kept.activations < full.activations / 4 and kept.step == full.step
    sharded = language(KNOWN["7"], Step(), gpus=8, strategy="fsdp", checkpointing=True)
    assert sharded.step < kept.step / 7 and sharded.gathered > 0
    lora = language(KNOWN["7"], Step(), gpus=8, tuning="lora", checkpointing=True)
    assert lora.reference == 0 and lora.trained < 0.02 * lora.parameters and lora.peak < kept.peak / 4
    assert full.gradients - language(KNOWN["7"], Step()).gradients == 4 * full.trained
    assert full.reference == 4 * KNOWN["7"].weights and language(KNOWN["7"], Step(), drift=False).reference == 0


def test_a_run_is_planned_from_its_configs_at_once(tmp_path: Path) -> None:
    """No torch is imported for it."""
    (tmp_path / "config.json").write_text(json.dumps(CONFIGS[0]))
    words = ["plan", "--config", "stage2.yaml", "--config", "trainer/gpu.yaml", "--model.init_args.backbone", str(tmp_path), "--data.batch_size=4", "--json"]  # fmt: skip
    code = f"import sys; from mavilt_pl.cli import main; code = main({words}); sys.exit(code or 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["title"].startswith("Stage2 of ") and "4 studies" in said["title"] and "bf16-mixed" in said["title"]
    first = next(iter(said["plans"].values()))
    assert first["peak"] == max(first["forward"], first["step"]) > first["weights"] > 0


def test_tables_and_messages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--size", "7", "--gpus", "8"]) == 0
    shown = capsys.readouterr().out
    assert "Llama 2 7B" in shown and "θ₀" in shown and "FSDP" in shown and "positions/s" in shown
    assert main(["plan", "--config", "vqgan.yaml"]) == 0 and "activations" in capsys.readouterr().out
    (tmp_path / "config.json").write_text('{"model_type": "mamba"}')
    for words, part in (
        (["--config", "stage1.yaml"], "no backbone is named"),
        (["--backbone", str(tmp_path)], "model_type mamba cannot be planned for"),
        (["--backbone", str(tmp_path / "none")], "cannot be read"),
        (["--config", "nosuch.yaml"], "config nosuch.yaml is neither a file here nor a shipped one"),
        (["--config", "encoder.yaml"], "CXRClassifier cannot be planned for"),
        (["--size", "7", "--trainer.precision", "64-true"], "trainer.precision 64-true cannot be planned for"),
        (["--size", "7", "--trainer.precision"], "--trainer.precision has no value"),
    ):
        assert main(["plan", *words]) == 1
        said = capsys.readouterr().err
        assert said.startswith("mavilt: ") and said.count("\n") == 1 and part in said
