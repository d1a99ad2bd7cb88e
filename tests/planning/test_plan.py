"""`mavilt plan`: exact weights, activations as autograd saves them, one line for each mistake."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from mavilt_pl.cli import main
from mavilt_pl.cli.plan import SIZES
from mavilt_pl.data.records import Question
from mavilt_pl.language.options import ModelOptions, RegularizationOptions, TuningOptions
from mavilt_pl.language.prompt_builder import PromptBuilder
from mavilt_pl.language.sequences import pack
from mavilt_pl.language.vocabulary import VisualVocabulary
from mavilt_pl.planning.batch_shape import BatchShape
from mavilt_pl.planning.language_memory import Training, plan_language
from mavilt_pl.planning.memory import Hardware, Memory
from mavilt_pl.planning.settings import parse_arguments
from mavilt_pl.planning.transformer import PUBLISHED, from_config
from mavilt_pl.planning.vqgan_memory import plan_vqgan
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
    weights = sum(p.numel() for p in built(config).parameters())
    assert planned.weights == weights
    # Published shapes are counted by arithmetic, which must agree with the meta device.
    assert replace(planned, counted_weights=None).weights == weights
    one_layer = 100 * planned.activation_bytes("full", 4, 4, masked=False)
    assert one_layer == pytest.approx(saved[1] - saved[0], rel=0.1)


@pytest.mark.parametrize("shape", ["demo", "published"])
def test_weights_of_a_tokenizer_are_its_own(shape: str) -> None:
    settings: dict[str, Any] = {"gan_weight": 0.0}
    if shape == "demo":
        settings = {
            "autoencoder": {
                "image_size": 64,
                "channels": 32,
                "channel_multipliers": [1, 2, 3],
                "num_res_blocks": 1,
                "attention_resolutions": [8],
                "latent_dim": 64,
                "patch": 2,
            },
            "quantizer": {"codebook_size": 256, "code_dim": 8},
            "discriminator": {"channels": 16, "layers": 2},
        }
    with torch.device("meta"):
        module = VQGAN(**settings)
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    plan = plan_vqgan(parse_arguments(VQGAN, "model", settings), 4)
    assert plan.trained == trained


EIGHT_GPUS = Hardware(gpus=8)


def planned(
    hardware: Hardware = EIGHT_GPUS,
    method: Any = "full",
    checkpointing: bool = False,
    **regularization: Any,
) -> Memory:
    """Plan of Stage 1 of Llama 2 7B."""
    return plan_language(
        Training(
            PUBLISHED["7"],
            hardware=hardware,
            tuning=TuningOptions(method=method, gradient_checkpointing=checkpointing),
            regularization=RegularizationOptions(**regularization),
        )
    )


def test_each_way_to_save_memory_saves_its_part() -> None:
    full = planned()
    checkpointing = planned(checkpointing=True)
    # Autocast's copies of the weights stay.
    assert checkpointing.activations < full.activations / 3
    assert checkpointing.step == full.step
    sharded = planned(Hardware("fsdp", gpus=8), checkpointing=True)
    assert sharded.step < checkpointing.step / 7
    assert sharded.gathered > 0
    lora = planned(method="lora", checkpointing=True)
    assert lora.reference == 0
    assert lora.trained < 0.02 * lora.parameters
    assert lora.peak < checkpointing.peak / 4
    # DDP's copies of the gradients, and θ₀.
    one_gpu = planned(Hardware(gpus=1))
    assert full.gradients - one_gpu.gradients == 4 * full.trained
    assert planned(Hardware(gpus=1), lambda_reg=0.0).reference == 0


@pytest.mark.parametrize(
    ("arguments", "bytes_each"),
    [
        ([], 2),
        (["--model.init_args.regularization.reference_dtype=float32"], 4),
        (["--model.init_args.regularization.reference_device=host"], 0),
    ],
)
def test_reference_weights_are_counted_as_they_are_kept(
    arguments: list[str], bytes_each: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two bytes a weight, four as float32, none in the host's memory."""
    assert main(["plan", "--size", "7", "--json", *arguments]) == 0
    plans = json.loads(capsys.readouterr().out)["plans"]
    weights = PUBLISHED["7"].weights
    assert plans["DDP, full"]["reference"] == bytes_each * weights
    assert plans["DDP, lora"]["reference"] == 0
    on_cpu = planned(Hardware(device="cpu"), reference_device="host")
    assert on_cpu.reference == 2 * weights


def word_tokenizer(text: str, **_: Any) -> dict[str, list[int]]:
    """A text ends with its number of tokens; an instruction has 8."""
    words = text.split()
    count = 0
    if words[0] == "instruction":
        count = 8
    if words[-1].isdecimal():
        count += int(words[-1])
    return {"input_ids": [5] * count}


@pytest.mark.parametrize("multi_view", [False, True])
def test_lengths_are_those_of_the_sequences(
    multi_view: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one image or two views, with questions and replayed texts, as a training packs them."""
    monkeypatch.setattr("mavilt_pl.language.prompt_builder.wording", lambda *_: "instruction")
    shape = BatchShape(
        batch_size=3,
        codes_per_image=16,
        codebook_size=32,
        text_tokens=12,
        questions=2,
        question_tokens=9,
        instruction_tokens=8,
        multi_view=multi_view,
        replay_texts=2,
    )
    builder = PromptBuilder(
        VisualVocabulary(300, 300, 32, 16, multi_view),
        word_tokenizer,
        instructed=True,
        # So that the instruction and the text of a synthesis are not truncated.
        model=ModelOptions(max_text_tokens=20),
        regularization=RegularizationOptions(condition_dropout=0.0, view_dropout=0.0),
    )
    # Of nine tokens each, and not the same question, which would be read once.
    questions = [Question("6", "3", ()), Question("5", "4", ())]
    studies = [{"study": str(n), "text": "12", "questions": questions} for n in range(3)]
    codes = torch.zeros(3, 16, dtype=torch.long)
    batch: dict[str, Any] = {"codes": codes, "studies": studies, "replay": ["12", "12"]}
    if multi_view:
        batch["views"] = [{"frontal": [0] * 16, "lateral": [0] * 16}] * 3
    packed = [pack(group).ids_BT for group in builder.trees(batch, training=True)]
    lengths = (shape.reading_length, shape.synthesis_length, shape.replay_length)
    # The next multiple of 8.
    assert [ids_BT.shape[1] for ids_BT in packed] == [(n + 7) // 8 * 8 for n in lengths]
    assert tuple(ids_BT.numel() for ids_BT in packed) == shape.passes
    assert sum(shape.passes) == shape.positions


def test_views_and_replayed_texts_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    activations, positions = [], []
    title = ""
    for arguments in ([], ["--data.replay=texts"], ["--model.init_args.model.multi_view=true"]):
        assert main(["plan", "--size", "1", "--json", *arguments]) == 0
        record = json.loads(capsys.readouterr().out)
        activations.append(record["plans"]["DDP, full"]["activations"])
        positions.append(record["plans"]["DDP, full"]["details"]["positions"])
        title = record["title"]
    assert "two views each" in title
    assert positions[0] < positions[1] < positions[2]
    # Plain texts are a pass of their own, smaller than the others; two views make those longer.
    assert activations[0] == activations[1] < activations[2]


def test_sizes_of_the_command_are_the_published_shapes() -> None:
    assert [*PUBLISHED] == [*SIZES]


def test_a_run_is_planned_from_its_configs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIGS[0]))
    arguments = ["--config", "stage2.yaml", "--config", "trainer/gpu.yaml"]
    arguments += ["--model.init_args.backbone", str(tmp_path), "--data.batch_size=4"]
    assert main(["plan", "--json", *arguments]) == 0
    output = capsys.readouterr()
    assert not output.err
    record = json.loads(output.out)
    assert record["title"].startswith("Stage2 of ")
    assert "4 studies" in record["title"]
    assert "bf16-mixed" in record["title"]
    first = next(iter(record["plans"].values()))
    assert first["peak"] == max(first["forward"], first["step"]) > first["weights"] > 0


def test_devices_on_the_command_line_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--trainer.devices", "4", "--trainer.num_nodes", "2"]
    assert main(["plan", "--size", "1", *arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["title"].endswith("8 GPUs")


def test_tables(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--size", "7", "--gpus", "8"]) == 0
    shown = capsys.readouterr().out
    for part in ("Llama 2 7B", "θ₀", "FSDP", "positions/s"):
        assert part in shown
    assert main(["plan", "--config", "vqgan.yaml"]) == 0
    assert "activations" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        "--size 1 --model.init_args.regularization.lambda_reg 1e-4",
        "--config vqgan.yaml --trainer.callbacks.validate 100",
        "--size 1 --model Stage1",
        "--config stage2.yaml --size 1 --model=mavilt_pl.language.Stage1 "
        "--model.regularization.lambda_reg=0",
    ],
)
def test_arguments_of_fit_are_taken(arguments: str) -> None:
    assert main(["plan", *arguments.split()]) == 0


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (
            "--size 1 --model.init_args.regularization.lambda_reg [1",
            "model.init_args.regularization.lambda_reg: found [1; expected a value of type float",
        ),
        (
            "--size 1 --model.init_args.regularization.lambda_reg much",
            "model.init_args.regularization.lambda_reg: found much; expected a value of type float",
        ),
        (
            "--size 1 --model.init_args.regularization.lambda_reg -1",
            "model.init_args.regularization.lambda_reg: found -1.0; expected a value greater than "
            "or equal to 0",
        ),
        ("--size 1 --model.init_args.drft 1", "Option 'drft' is not accepted"),
        ("--size 1 --model.init_args.tuning.lra 1", "unrecognized arguments: --tuning.lra=1"),
        ("--size 1 --trainer.precison 1", "unrecognized arguments: --trainer.precison 1"),
        (
            "--size 1 --data.batch 1",
            "--data.batch could match --data.batch_kind, --data.batch_size",
        ),
        (
            "--size 1 --model.init_args.regularization.reference_dtype float16",
            "reference_dtype: found float16; expected one of bfloat16, float32",
        ),
        ("--size 1 --model.init_args.tuning.lora 5", 'Parser key "tuning.lora"'),
        (
            "--size 1 --trainer.num_nodes two",
            "trainer.num_nodes: found two; expected a value of type int",
        ),
        ("--size 1 --trainer.num_nodes 0", "trainer.num_nodes: found 0; expected 1 or more"),
        (
            "--config vqgan.yaml --model.init_args.autoencoder.channels many",
            "model.init_args.autoencoder.channels: found 'many'; expected a valid integer",
        ),
        (
            "--config vqgan.yaml --model.init_args.autoencoder.chanels 8",
            "model.init_args.autoencoder: unknown key chanels; the keys are image_size, channels",
        ),
        (
            "--config vqgan.yaml --model.init_args.autoencoder.image_size 100",
            "model.init_args.autoencoder: image_size 100 is not a multiple of 16",
        ),
        (
            "--config vqgan.yaml --model.init_args.gan_weight x",
            "model.init_args.gan_weight: found x; expected a value of type float",
        ),
        ("--config FOLDER/list.yaml", "Unexpected config: [1, 2]"),
        ("--config stage1.yaml", "no backbone is named"),
        ("--backbone FOLDER", "model_type mamba cannot be planned for"),
        ("--backbone FOLDER/none", "no such folder, and no name of the hub"),
        ("--config nosuch.yaml", "config nosuch.yaml is neither a file here nor a shipped one"),
        ("--config encoder.yaml", "CXRClassifier cannot be planned for"),
        (
            "--size 7 --trainer.precision 64-true",
            "trainer.precision 64-true cannot be planned for",
        ),
        ("--size 7 --trainer.precision", "--trainer.precision: expected one argument"),
    ],
)
def test_a_mistake_gets_one_line(
    arguments: str, part: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "mamba"}')
    (tmp_path / "list.yaml").write_text("[1, 2]")
    words = arguments.replace("FOLDER", str(tmp_path)).split()
    assert main(["plan", *words]) == 1
    message = capsys.readouterr().err
    assert message.startswith("mavilt: ")
    assert message.count("\n") == 1
    assert part in message
