"""`mavilt plan`: weights to the number, activations as autograd saves them, one message for what
cannot be planned.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from mavilt_pl.cli import main
from mavilt_pl.data.records import Question
from mavilt_pl.language import Stage2, loss, vocabulary
from mavilt_pl.language.prompt_builder import Spelling
from mavilt_pl.language.sequences import pack
from mavilt_pl.language.vocabulary import VisualVocabulary
from mavilt_pl.planning import memory, transformer
from mavilt_pl.planning.memory import Step, language, tokenizer
from mavilt_pl.planning.transformer import KNOWN, from_config
from mavilt_pl.vqgan.autoencoder import Autoencoder
from mavilt_pl.vqgan.discriminator import Discriminator
from mavilt_pl.vqgan.module import VQGAN
from mavilt_pl.vqgan.quantizer import Quantizer

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
    return AutoModelForCausalLM.from_config(
        AutoConfig.for_model(**config), attn_implementation="sdpa"
    )


@pytest.mark.parametrize(
    "config", CONFIGS, ids=lambda c: f"{c['model_type']}-{c.get('num_key_value_heads', 'all')}"
)
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
            out = model.base_model(
                inputs_embeds=torch.randn(2, 50, 64, requires_grad=True), use_cache=False
            )
        weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
        saved.append(sum(size for address, size in kept.items() if address not in weights))
        del out
    planned = from_config(config, "small")
    assert planned.weights == sum(p.numel() for p in built(config).parameters())
    assert 100 * planned.saved("full", 4, 4, masked=False) == pytest.approx(
        saved[1] - saved[0], rel=0.1
    )


def test_weights_of_a_tokenizer_are_its_own() -> None:
    shape = {
        "image_size": 64,
        "channels": 32,
        "channel_multipliers": [1, 2, 3],
        "num_res_blocks": 1,
        "attention_resolutions": [8],
        "latent_dim": 64,
        "patch": 2,
    }
    for settings in (
        {
            "autoencoder": shape,
            "quantizer": {"codebook_size": 256, "code_dim": 8},
            "discriminator": {"channels": 16, "layers": 2},
        },
        {"gan_weight": 0.0},
    ):
        with torch.device("meta" if "gan_weight" in settings else "cpu"):
            module = VQGAN(**settings)  # type: ignore[arg-type]
        assert tokenizer(settings, 4).trained == sum(
            p.numel() for p in module.parameters() if p.requires_grad
        )


def test_what_helps_helps() -> None:
    """Checkpointing takes activations away; FSDP2 states; adapters gradients and θ₀; DDP's buckets
    and θ₀ come on top.
    """
    full = language(KNOWN["7"], Step(), gpus=8)
    kept = language(KNOWN["7"], Step(), gpus=8, checkpointing=True)
    assert kept.activations < full.activations / 4 and kept.step == full.step
    sharded = language(KNOWN["7"], Step(), gpus=8, strategy="fsdp", checkpointing=True)
    assert sharded.step < kept.step / 7 and sharded.gathered > 0
    lora = language(KNOWN["7"], Step(), gpus=8, tuning="lora", checkpointing=True)
    assert (
        lora.reference == 0 and lora.trained < 0.02 * lora.parameters and lora.peak < kept.peak / 4
    )
    assert full.gradients - language(KNOWN["7"], Step()).gradients == 4 * full.trained
    assert language(KNOWN["7"], Step(), drift=False).reference == 0


@pytest.mark.parametrize(
    ("words", "each"),
    [
        ([], 2),
        (["--model.init_args.regularization.reference_dtype=float32"], 4),
        (["--model.init_args.regularization.reference_device=host"], 0),
    ],
)
def test_reference_weights_are_counted_as_they_are_kept(
    words: list[str], each: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two bytes a weight, four as float32, none where they lie in the host's memory."""
    assert main(["plan", "--size", "7", "--json", *words]) == 0
    plans = json.loads(capsys.readouterr().out)["plans"]
    assert plans["DDP, full"]["reference"] == each * KNOWN["7"].weights
    assert plans["DDP, lora"]["reference"] == 0
    assert (
        language(KNOWN["7"], Step(), place="host", device="cpu").reference == 2 * KNOWN["7"].weights
    )


class Spelled(Spelling):
    """Sequences of Stage 1 or 2 without a model: every text is as long as its first word says."""

    context = None
    reading = Stage2.reading
    report_prompt, draw_words = Stage2.report_prompt, Stage2.draw_words

    def __init__(self, views: bool, max_words: int):
        self.vocabulary = VisualVocabulary(300, 300, 32, 16, views)
        self.hparams = {
            "max_words": max_words,
            "view_dropout": 0.0,
            "condition_dropout": 0.0,
            "directions": "both",
        }
        self.counts = Counter()

    def words(self, text: str) -> list[int]:
        count = 8 if text.startswith("instruction") else int(text.split()[-1])
        return [5] * count


@pytest.mark.parametrize("views", [False, True])
def test_lengths_are_those_of_the_sequences(views: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one image or two views, with questions and with replayed texts, as a training packs them."""
    monkeypatch.setattr("mavilt_pl.language.stage2.wording", lambda *_: "instruction")
    monkeypatch.setattr(Stage2, "draw_words", lambda *_: "20")
    monkeypatch.setattr(Spelled, "draw_words", lambda *_: "20")
    step = Step(
        batch=3,
        codes=16,
        book=32,
        words=12,
        questions=2,
        question_words=9,
        instruction=8,
        views=views,
        replayed=2,
    )
    spelled = Spelled(views, 12)
    asked = [Question("6", "3", ())] * 2
    studies = [{"study": str(n), "text": "12", "questions": asked} for n in range(3)]
    codes = torch.zeros(3, 16, dtype=torch.long)
    batch = {"codes": codes, "studies": studies, "replay": ["12", "12"]}
    if views:
        batch["views"] = [{"frontal": [0] * 16, "lateral": [0] * 16}] * 3
    spelled.hparams["max_words"] = 20  # so that the drawing's instruction is not cut
    reading, drawing, replaying = (pack(group).ids_BT for group in spelled.trees(batch, True))
    assert (reading.shape[1], drawing.shape[1], replaying.shape[1]) == (
        step.reading,
        step.drawing,
        step.replaying,
    )
    assert sum(ids.numel() for ids in (reading, drawing, replaying)) == step.positions


def test_views_and_replayed_texts_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    activations = []
    for words in ([], ["--data.replay=texts"], ["--model.init_args.model.multi_view=true"]):
        assert main(["plan", "--size", "1", "--json", *words]) == 0
        said = json.loads(capsys.readouterr().out)
        activations.append(said["plans"]["DDP, full"]["activations"])
    assert "two views each" in said["title"] and activations[0] < activations[1] < activations[2]


def test_what_is_repeated_here_is_what_it_repeats() -> None:
    assert len(vocabulary.MARKS) == transformer.MARKS and len(vocabulary.VIEW_MARKS) == 2
    assert {"cpu": loss.CHUNK, "gpu": 16 * loss.CHUNK} == memory.CHUNK
    for repeated, module in (
        (memory.AUTOENCODER, Autoencoder),
        (memory.QUANTIZER, Quantizer),
        (memory.DISCRIMINATOR, Discriminator),
    ):
        defaults = signature(module).parameters
        assert repeated == {key: defaults[key].default for key in repeated}


def test_a_run_is_planned_from_its_configs_at_once(tmp_path: Path) -> None:
    """No torch is imported for it."""
    (tmp_path / "config.json").write_text(json.dumps(CONFIGS[0]))
    words = [
        "plan",
        "--config",
        "stage2.yaml",
        "--config",
        "trainer/gpu.yaml",
        "--model.init_args.backbone",
        str(tmp_path),
        "--data.batch_size=4",
        "--json",
    ]
    code = f"import sys; from mavilt_pl.cli import main; code = main({words}); sys.exit(code or 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert (
        said["title"].startswith("Stage2 of ")
        and "4 studies" in said["title"]
        and "bf16-mixed" in said["title"]
    )
    first = next(iter(said["plans"].values()))
    assert first["peak"] == max(first["forward"], first["step"]) > first["weights"] > 0


def test_tables_and_messages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--size", "7", "--gpus", "8"]) == 0
    shown = capsys.readouterr().out
    assert "Llama 2 7B" in shown and "θ₀" in shown and "FSDP" in shown and "positions/s" in shown
    assert (
        main(["plan", "--config", "vqgan.yaml"]) == 0 and "activations" in capsys.readouterr().out
    )
    (tmp_path / "config.json").write_text('{"model_type": "mamba"}')
    (tmp_path / "list.yaml").write_text("[1, 2]")
    for words in (
        ["--size", "1", "--model.init_args.regularization.lambda_reg", "1e-4"],
        ["--config", "vqgan.yaml", "--trainer.callbacks.validate", "100"],
        ["--size", "1", "--model", "Stage1"],
        [
            "--config",
            "stage2.yaml",
            "--size",
            "1",
            "--model=mavilt_pl.language.Stage1",
            "--model.drift=0",
        ],
    ):
        assert main(["plan", *words]) == 0, words
    capsys.readouterr()
    for words, part in (
        (
            ["--size", "1", "--model.init_args.regularization.lambda_reg", "[1"],
            "--model.init_args.regularization.lambda_reg [1 is not YAML",
        ),
        (
            ["--size", "1", "--model.init_args.regularization.lambda_reg", "much"],
            "model.init_args.drift: expected a number of 0 or more, found 'much'",
        ),
        (
            ["--size", "1", "--model.init_args.drft", "1"],
            "model.init_args.drft: `mavilt fit` knows no such setting; did you mean drift?",
        ),
        (
            ["--size", "1", "--trainer.precison", "1"],
            "trainer.precison: `mavilt fit` knows no such setting; did you mean precision?",
        ),
        (
            ["--size", "1", "--data.batch", "1"],
            "data.batch: `mavilt fit` knows no such setting; did you mean batch_size?",
        ),
        (
            ["--size", "1", "--model.init_args.regularization.reference_dtype", "float16"],
            "drift_keep: expected bfloat16 or float32, found 'float16'",
        ),
        (
            ["--size", "1", "--model.init_args.tuning.lora", "5"],
            "model.init_args.lora: expected a mapping of settings, found 5",
        ),
        (
            ["--size", "1", "--trainer.num_nodes", "two"],
            "trainer.num_nodes: expected a whole number of 1 or more, found 'two'",
        ),
        (
            ["--config", "vqgan.yaml", "--model.init_args.autoencoder.channels", "many"],
            "autoencoder.channels: expected a whole number",
        ),
        (
            ["--config", "vqgan.yaml", "--model.init_args.gan_weight", "x"],
            "gan_weight: expected a number of 0 or more, found 'x'",
        ),
        (["--config", str(tmp_path / "list.yaml")], "expected a mapping"),
        (["--config", "stage1.yaml"], "no backbone is named"),
        (["--backbone", str(tmp_path)], "model_type mamba cannot be planned for"),
        (["--backbone", str(tmp_path / "none")], "cannot be read"),
        (
            ["--config", "nosuch.yaml"],
            "config nosuch.yaml is neither a file here nor a shipped one",
        ),
        (["--config", "encoder.yaml"], "CXRClassifier cannot be planned for"),
        (
            ["--size", "7", "--trainer.precision", "64-true"],
            "trainer.precision 64-true cannot be planned for",
        ),
        (["--size", "7", "--trainer.precision"], "--trainer.precision has no value"),
    ):
        assert main(["plan", *words]) == 1
        said = capsys.readouterr().err
        assert said.startswith("mavilt: ") and said.count("\n") == 1 and part in said
