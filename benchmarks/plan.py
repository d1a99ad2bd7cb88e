"""What `mavilt plan` says against what a training takes, on a CPU in float32.

python benchmarks/plan.py

Each row is a training of three steps in a process of its own. Measured is the peak of its resident
memory less what was resident before the model was built, after a training of the same kind at a
tenth of the size has loaded every library. malloc gives blocks of 64 KB and more back at once
(MALLOC_MMAP_THRESHOLD_), so that what is resident is what is in use. Reports and questions are of
the planned lengths. `rows` picks rows by their first words.
"""

from __future__ import annotations

import argparse
import logging
import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

WORDS, QUESTION, ANSWER = 96, 12, 2
LLAMA = {"model_type": "llama", "tie_word_embeddings": True, "max_position_embeddings": 1024}
DEMO = {
    **LLAMA,
    "vocab_size": 1536,
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
}
HUNDRED = {
    **LLAMA,
    "vocab_size": 16384,
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
}
GPT2 = {
    "model_type": "gpt2",
    "vocab_size": 16384,
    "n_embd": 768,
    "n_layer": 12,
    "n_head": 12,
    "n_positions": 1024,
    "attn_pdrop": 0.0,
}
NEOX = {
    "model_type": "gpt_neox",
    "vocab_size": 8192,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "tie_word_embeddings": False,
    "max_position_embeddings": 1024,
}
# name → stage, config.json, arguments of the module, (batch, grid, codes, questions)
ROWS: dict[str, tuple[str, dict[str, Any], dict[str, Any], tuple[int, int, int, int]]] = {
    "demo, Stage 2": ("Stage2", DEMO, {"optimizer": "muon", "drift": 0.001}, (8, 8, 256, 4)),
    "Llama 100 M, Stage 1": ("Stage1", HUNDRED, {}, (2, 16, 1024, 0)),
    "Llama 100 M, Stage 1, checkpointing": (
        "Stage1",
        HUNDRED,
        {"gradient_checkpointing": True},
        (4, 16, 1024, 0),
    ),
    "Llama 100 M, Stage 1, LoRA": ("Stage1", HUNDRED, {"tuning": "lora"}, (2, 16, 1024, 0)),
    "GPT-2 100 M, Stage 1": ("Stage1", GPT2, {}, (2, 16, 1024, 0)),
    "Pythia 27 M, Stage 1": ("Stage1", NEOX, {}, (4, 16, 1024, 0)),
    "demo, VQ-GAN": ("VQGAN", {}, {}, (16, 8, 256, 0)),
    "vqgan.yaml at 128² and 64 channels": (
        "VQGAN",
        {},
        {"autoencoder": {"image_size": 128, "channels": 64}},
        (4, 8, 1024, 0),
    ),
}


def resident(key: str) -> int:
    """Bytes, from /proc: VmRSS now, or VmHWM at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def planned(row: str) -> dict[str, Any]:
    from mavilt_pl.planning.memory import Step, language, tokenizer
    from mavilt_pl.planning.transformer import from_config

    stage, config, arguments, (batch, grid, codes, questions) = ROWS[row]
    if stage == "VQGAN":
        return tokenizer(vqgan(row, ""), batch).as_dict()
    step = Step(
        batch, grid**2, codes, WORDS, questions, QUESTION + ANSWER, 8 if stage == "Stage2" else 0
    )
    return language(
        from_config(config, row),
        step,
        precision="32-true",
        tuning=arguments.get("tuning", "full"),
        device="cpu",
        optimizer=arguments.get("optimizer", "adamw"),
        checkpointing=arguments.get("gradient_checkpointing", False),
    ).as_dict()


def vqgan(row: str, encoder: str) -> dict[str, Any]:
    """Arguments of the module: the demo's, from its config, or those of the row."""
    import yaml

    from mavilt_pl.config_files import find_config

    if row != "demo, VQ-GAN":
        return {**ROWS[row][2], "gan_start": 0}
    settings = yaml.safe_load(find_config("demo/vqgan.yaml").read_text())["model"]["init_args"]
    return {**settings, "encoder": encoder or None, "gan_start": 0}


def trained(module: Any, batch: Any) -> None:
    """Three steps, as `mavilt fit` makes them."""
    import torch
    from lightning import Trainer

    module.log = module.log_dict = lambda *_, **__: None
    loader = torch.utils.data.DataLoader([batch] * 3, batch_size=None)
    clip = {} if type(module).__name__ == "VQGAN" else {"gradient_clip_val": 1.0}
    Trainer(
        max_steps=3,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **clip,
    ).fit(module, loader)  # type: ignore[arg-type]


def language_run(row: str, folder: Path, small: bool) -> None:
    import numpy as np
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    import mavilt_pl.language as stages
    from mavilt_pl.data.records import Question
    from mavilt_pl.data.token_cache import write_tokens
    from mavilt_pl.language import module as language
    from mavilt_pl.language.backbone import train_tokenizer

    stage, config, arguments, (batch, grid, codes, questions) = ROWS[row]
    if small:
        config = {
            **config,
            "vocab_size": 400,
            **{key: 2 for key in ("num_hidden_layers", "n_layer") if key in config},
        }
        batch = 1
    config = AutoConfig.for_model(**config)
    tokenizer = train_tokenizer(["x y"], 300)
    random = np.random.default_rng(0)
    write_tokens(
        folder / "tokens",
        "corpus",
        "tokenizer",
        random.normal(size=(codes, 8)),
        grid,
        4,
        [random.integers(0, codes, (4, grid**2))],
    )
    # Given as it is built, not through a file: a file that is mapped would be resident too.
    language.load_backbone = lambda *_: (AutoModelForCausalLM.from_config(config), tokenizer)  # type: ignore[assignment]
    made = getattr(stages, stage)(
        "random", str(folder / "tokens"), condition_dropout=0.0, max_words=WORDS, **arguments
    )
    # One word of the tokenizer is one byte or a little more, so texts are cut to what is planned.
    made.words = lambda text: [5] * {"r": WORDS, "q": QUESTION, "a": ANSWER - 1}.get(text[:1], 7)
    asked = [Question("q", "a", ("a", "b"))] * questions if stage == "Stage2" else []
    studies = [{"text": "report", "study": str(i), "questions": asked} for i in range(batch)]
    if stage == "Stage2":
        made.draw_prompt = lambda *_, **__: [
            made.vocabulary.mark("<begin>"),
            *[5] * (8 + WORDS),
            made.vocabulary.mark("<image>"),
        ]
    trained(made, {"codes": torch.randint(codes, (batch, grid**2)), "studies": studies})


def tokenizer_run(row: str, folder: Path, small: bool) -> None:
    import torch

    from mavilt_pl.encoders import CXRClassifier
    from mavilt_pl.vqgan.module import VQGAN

    path = folder / "encoder.ckpt"
    if row == "demo, VQ-GAN" and not path.exists():
        net = CXRClassifier(["a"] * 8, image_size=64)
        torch.save({"state_dict": net.state_dict(), "hyper_parameters": dict(net.hparams)}, path)
    made = VQGAN(**vqgan(row, str(path)))
    side = made.tokenizer.autoencoder.image_size
    batch = 1 if small else ROWS[row][3][0]
    trained(made, {"pixels": torch.rand(batch, 1, side, side) * 2 - 1, "studies": []})


def measured(row: str) -> None:
    import gc

    import torch

    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    run = tokenizer_run if ROWS[row][0] == "VQGAN" else language_run
    with tempfile.TemporaryDirectory() as folder:
        run(row, Path(folder), True)
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before = resident("VmRSS")
        run(row, Path(folder), False)
    print(resident("VmHWM") - before)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", nargs="*", default=[""])
    parser.add_argument("--child")
    args = parser.parse_args()
    if args.child:
        measured(args.child)
        sys.exit()
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    print(
        "| training | weights, M | planned peak, MB | measured, MB | planned / measured |\n| --- | "
        "--- | --- | --- | --- |"
    )
    for row in ROWS:
        if any(row.startswith(start) for start in args.rows):
            plan = planned(row)
            done = subprocess.run(
                [sys.executable, __file__, "--child", row],
                env=environment,
                capture_output=True,
                text=True,
            )
            if done.returncode:
                raise SystemExit(done.stderr[-3000:])
            found = int(done.stdout.split()[-1])
            print(
                f"| {row} | {plan['parameters'] / 1e6:.1f} | {plan['peak'] / 1e6:,.0f} | "
                f"{found / 1e6:,.0f} | {plan['peak'] / found:.2f} |",
                flush=True,
            )
