"""What `mavilt plan` predicts against what a training takes, on a CPU in float32.

    python benchmarks/plan.py

Each row is a training of three steps in a process of its own. Measured is the peak of its resident
memory less what was resident before the model was built, after a training of the same kind at a
tenth of the size has loaded every library. malloc returns blocks of 64 KB and more at once
(MALLOC_MMAP_THRESHOLD_), so what is resident is what is in use. Reports and questions are of the
planned lengths. `rows` selects rows by how their names begin.
"""

from __future__ import annotations

import argparse
import gc
import logging
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Lengths in tokens; QUESTION and ANSWER of one question.
TEXT, QUESTION, ANSWER, INSTRUCTION = 96, 12, 2, 8

LLAMA = {"model_type": "llama", "tie_word_embeddings": True, "max_position_embeddings": 1024}
DEMO = {
    **LLAMA,
    "vocab_size": 1536,
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
}
LLAMA_100M = {
    **LLAMA,
    "vocab_size": 16384,
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
}
GPT2_100M = {
    "model_type": "gpt2",
    "vocab_size": 16384,
    "n_embd": 768,
    "n_layer": 12,
    "n_head": 12,
    "n_positions": 1024,
    # On a CPU attention dropout keeps the attention matrices, which is not planned for.
    "attn_pdrop": 0.0,
}
PYTHIA_27M = {
    "model_type": "gpt_neox",
    "vocab_size": 8192,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "tie_word_embeddings": False,
    "max_position_embeddings": 1024,
}


@dataclass(frozen=True)
class Row:
    """One training.

    Args:
        module: Stage1, Stage2 or VQGAN.
        batch_size: studies or images.
        backbone: config.json of the language model.
        arguments: `init_args` of the module.
        grid: side of an image in codes.
        codebook_size: K.
        questions: of a study.
    """

    module: str
    batch_size: int
    backbone: Mapping[str, Any] = field(default_factory=dict)
    arguments: Mapping[str, Any] = field(default_factory=dict)
    grid: int = 16
    codebook_size: int = 1024
    questions: int = 0


ROWS = {
    "demo, Stage 2": Row(
        "Stage2",
        8,
        DEMO,
        {"tuning": {"optimizer": "muon"}, "regularization": {"lambda_reg": 0.001}},
        grid=8,
        codebook_size=256,
        questions=4,
    ),
    "Llama 100 M, Stage 1": Row("Stage1", 2, LLAMA_100M),
    "Llama 100 M, Stage 1, checkpointing": Row(
        "Stage1", 4, LLAMA_100M, {"tuning": {"gradient_checkpointing": True}}
    ),
    "Llama 100 M, Stage 1, LoRA": Row("Stage1", 2, LLAMA_100M, {"tuning": {"method": "lora"}}),
    "GPT-2 100 M, Stage 1": Row("Stage1", 2, GPT2_100M),
    "Pythia 27 M, Stage 1": Row("Stage1", 4, PYTHIA_27M),
    "demo, VQ-GAN": Row("VQGAN", 16),
    "vqgan.yaml at 128² and 64 channels": Row(
        "VQGAN", 4, arguments={"autoencoder": {"image_size": 128, "channels": 64}}
    ),
}


def resident_bytes(key: str) -> int:
    """Resident memory of this process: VmRSS now, or VmHWM at most."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    raise SystemExit(f"/proc/self/status has no {key}; this benchmark needs Linux")


def plan(name: str) -> dict[str, Any]:
    """What `mavilt plan` would print for a row."""
    from mavilt_pl.language.options import RegularizationOptions, TuningOptions, as_options
    from mavilt_pl.planning.batch_shape import BatchShape
    from mavilt_pl.planning.language_memory import Training, plan_language
    from mavilt_pl.planning.memory import Hardware
    from mavilt_pl.planning.settings import parse_arguments
    from mavilt_pl.planning.transformer import from_config
    from mavilt_pl.planning.vqgan_memory import plan_vqgan
    from mavilt_pl.vqgan.module import VQGAN

    row = ROWS[name]
    if row.module == "VQGAN":
        settings = parse_arguments(VQGAN, "model", vqgan_arguments(name, ""))
        return plan_vqgan(settings, row.batch_size).as_dict()
    batch = BatchShape(
        batch_size=row.batch_size,
        codes_per_image=row.grid**2,
        codebook_size=row.codebook_size,
        text_tokens=TEXT,
        questions=row.questions,
        question_tokens=QUESTION + ANSWER,
        instruction_tokens=INSTRUCTION if row.module == "Stage2" else 0,
    )
    regularization = row.arguments.get("regularization")
    training = Training(
        from_config(row.backbone, name),
        batch,
        Hardware(precision="32-true", device="cpu"),
        tuning=as_options(TuningOptions, row.arguments.get("tuning"), "tuning"),
        regularization=as_options(RegularizationOptions, regularization, "regularization"),
    )
    return plan_language(training).as_dict()


def vqgan_arguments(name: str, encoder: str) -> dict[str, Any]:
    """Arguments of the module: the demo's, from its config, or those of the row.

    The discriminator starts at once, so that three steps show all of the memory.
    """
    import yaml

    from mavilt_pl.config_files import find_config

    if name != "demo, VQ-GAN":
        return {**ROWS[name].arguments, "gan_start": 0}
    config = yaml.safe_load(find_config("demo/vqgan.yaml").read_text())
    return {**config["model"]["init_args"], "encoder": encoder or None, "gan_start": 0}


def train(module: Any, batch: Any) -> None:
    """Three steps, as `mavilt fit` makes them."""
    import torch
    from lightning import Trainer

    def ignore(*_: Any, **__: Any) -> None:
        """Logging needs a datamodule's names."""

    module.log = module.log_dict = ignore
    # A VQ-GAN clips its gradients itself.
    clip = None if type(module).__name__ == "VQGAN" else 1.0
    trainer = Trainer(
        max_steps=3,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        gradient_clip_val=clip,
    )
    trainer.fit(module, torch.utils.data.DataLoader([batch] * 3, batch_size=None))


def build_stage(row: Row, config: Mapping[str, Any], folder: Path) -> Any:
    """A language stage with a random backbone and a random codebook."""
    import numpy as np
    from transformers import AutoConfig, AutoModelForCausalLM

    import mavilt_pl.language as stages
    from mavilt_pl.data.token_cache import write_tokens
    from mavilt_pl.language import model
    from mavilt_pl.language.text_pretraining import train_tokenizer

    tokenizer = train_tokenizer(["x y"], 300)
    random = np.random.default_rng(0)
    codebook = random.normal(size=(row.codebook_size, 8))
    codes = random.integers(0, row.codebook_size, (4, row.grid**2))
    write_tokens(folder / "tokens", "corpus", "tokenizer", codebook, row.grid, 4, [codes])

    # Given as it is built, not through a file: a mapped file would be resident too.
    def random_backbone(*_: Any) -> tuple[Any, Any]:
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(**config)), tokenizer

    model.load_backbone = random_backbone
    arguments = dict(row.arguments)
    regularization = {**arguments.pop("regularization", {}), "condition_dropout": 0.0}
    module = getattr(stages, row.module)(
        "random",
        str(folder / "tokens"),
        model={"max_text_tokens": TEXT},
        regularization=regularization,
        **arguments,
    )
    # Every text gets the planned length: "report", a question "q", an answer "a", an instruction.
    lengths = {"r": TEXT, "q": QUESTION, "a": ANSWER - 1}
    module.prompts.tokenize = lambda text: [5] * lengths.get(text[:1], INSTRUCTION)
    if row.module == "Stage2":
        vocabulary = module.prompts.vocabulary
        begin = vocabulary.special_token_id("<begin>")
        image = vocabulary.special_token_id("<image>")
        prompt = [begin, *[5] * (INSTRUCTION + TEXT), image]
        module.prompts.synthesis_prompt = lambda *_, **__: prompt
    return module


def train_language(name: str, folder: Path, small: bool) -> None:
    """Train a language stage; `small`: one study, two layers and few rows."""
    import torch

    from mavilt_pl.data.records import Question

    row, batch_size = ROWS[name], ROWS[name].batch_size
    config = dict(row.backbone)
    if small:
        batch_size = 1
        config["vocab_size"] = 400
        layers = "n_layer" if "n_layer" in config else "num_hidden_layers"
        config[layers] = 2
    module = build_stage(row, config, folder)
    questions = [Question("q", "a", ("a", "b"))] * row.questions
    studies = []
    for number in range(batch_size):
        studies.append({"text": "report", "study": str(number), "questions": questions})
    codes = torch.randint(row.codebook_size, (batch_size, row.grid**2))
    train(module, {"codes": codes, "studies": studies})


def train_vqgan(name: str, folder: Path, small: bool) -> None:
    """Train a VQ-GAN; `small`: one image."""
    import torch

    from mavilt_pl.encoders import CXRClassifier
    from mavilt_pl.vqgan.module import VQGAN

    path = folder / "encoder.ckpt"
    if name == "demo, VQ-GAN" and not path.exists():
        # The memory of φ does not depend on what it has learned.
        encoder = CXRClassifier(["a"] * 8, image_size=64)
        checkpoint = {
            "state_dict": encoder.state_dict(),
            "hyper_parameters": dict(encoder.hparams),
        }
        torch.save(checkpoint, path)
    module = VQGAN(**vqgan_arguments(name, str(path)))
    side = module.tokenizer.autoencoder.image_size
    batch_size = 1 if small else ROWS[name].batch_size
    pixels = torch.rand(batch_size, 1, side, side) * 2 - 1
    train(module, {"pixels": pixels, "studies": []})


def measure(name: str) -> None:
    """Print the bytes that a row's training takes in this process."""
    import torch

    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    train_row = train_vqgan if ROWS[name].module == "VQGAN" else train_language
    with tempfile.TemporaryDirectory() as folder:
        train_row(name, Path(folder), True)
        gc.collect()
        # Writing 5 resets VmHWM, the peak, to what is resident now (man 5 proc).
        Path("/proc/self/clear_refs").write_text("5")
        before = resident_bytes("VmRSS")
        train_row(name, Path(folder), False)
    print(resident_bytes("VmHWM") - before)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("rows", nargs="*", default=[""])
    parser.add_argument("--child")
    args = parser.parse_args()
    if args.child:
        measure(args.child)
        return
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    print("| training | weights, M | planned peak, MB | measured, MB | planned / measured |")
    print("| --- | --- | --- | --- | --- |")
    for name in ROWS:
        if not name.startswith(tuple(args.rows)):
            continue
        planned = plan(name)
        command = [sys.executable, __file__, "--child", name]
        child = subprocess.run(command, env=environment, capture_output=True, text=True)
        if child.returncode:
            raise SystemExit(child.stderr[-3000:])
        measured = int(child.stdout.split()[-1])
        weights, peak = planned["parameters"], planned["peak"]
        print(
            f"| {name} | {weights / 1e6:.1f} | {peak / 1e6:,.0f} | {measured / 1e6:,.0f} | "
            f"{peak / measured:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
