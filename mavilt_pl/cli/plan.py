"""`mavilt plan`: the memory of a training, of one GPU, for a config or for a size.

    mavilt plan --config stage1.yaml --config trainer/gpu.yaml --model.init_args.backbone FOLDER
    mavilt plan --size 7 --gpus 8
    mavilt plan --config vqgan.yaml

It takes the words of `mavilt fit` too. Neither data nor weights are read, only config.json of the
backbone.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from math import ceil
from pathlib import Path
from typing import Any

from mavilt_pl.errors import UserError
from mavilt_pl.planning.memory import Memory, Step, language, tokenizer
from mavilt_pl.planning.settings import check, section, settings, value
from mavilt_pl.planning.transformer import KNOWN, Transformer, from_config

TAKES_WORDS_OF_FIT = True
GB = 1e9
PARTS = {
    "weights": "weights",
    "gradients": "gradients",
    "optimizer": "optimizer states",
    "reference": "θ₀",
    "scratch": "scratch of the optimizer's step",
    "gathered": "weights gathered for a layer",
    "activations": "activations",
    "logits": "logits",
    "whole": "weights whole, in a validation",
}
NAMES = {"ddp": "DDP", "fsdp": "FSDP2"}
PEAK = 989e12  # dense bf16 FLOP/s of an H100 SXM (NVIDIA's data sheet)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config", action="append", default=[], help="as `mavilt fit` takes it; repeatable"
    )
    parser.add_argument(
        "--backbone", help="folder with a config.json (default: what the config names)"
    )
    parser.add_argument(
        "--size", choices=[*KNOWN], help="a published shape of about so many 10⁹ weights, instead"
    )
    parser.add_argument(
        "--batch-size", type=int, help="studies of one GPU (default: the config's, else 16)"
    )
    parser.add_argument(
        "--grid", type=int, default=16, help="side of an image in codes (default 16)"
    )
    parser.add_argument("--codes", type=int, default=1024, help="codes in the book (default 1,024)")
    parser.add_argument(
        "--words",
        type=int,
        help="of the longest report (default: the config's max_words, else 128)",
    )
    parser.add_argument(
        "--questions", type=int, help="of a study (default: the config's, else 0: Stage 1)"
    )
    parser.add_argument(
        "--question-words",
        type=int,
        default=16,
        help="of question and answer together (default 16)",
    )
    parser.add_argument("--gpus", type=int, help="of all nodes (default 1)")
    parser.add_argument("--precision", choices=["32-true", "bf16-mixed"])
    parser.add_argument(
        "--device",
        choices=["cpu", "gpu"],
        default="gpu",
        help="logits are held in smaller chunks on a CPU",
    )
    parser.add_argument(
        "--mfu",
        type=float,
        default=0.4,
        help="share of the peak FLOP/s that is reached (default 0.4)",
    )
    parser.add_argument("--json", action="store_true", help="for programs; bytes")


def _transformer(args: argparse.Namespace, model: Mapping[str, Any]) -> Transformer:
    if args.size:
        return KNOWN[args.size]
    name = args.backbone or model.get("backbone")
    if not name:
        raise UserError(
            f"no backbone is named: give --backbone FOLDER (with its config.json) or --size, one "
            f"of {', '.join(KNOWN)}"
        )
    path = Path(name) / "config.json"
    try:
        return from_config(json.loads(path.read_text(encoding="utf-8")), str(name))
    except (OSError, ValueError) as error:
        raise UserError(
            f"backbone {name}: {path} cannot be read ({error}); name a folder that save_pretrained "
            f"wrote, or take --size, "
            f"one of {', '.join(KNOWN)}"
        ) from None


def _gpus(args: argparse.Namespace, found: Mapping[str, Any]) -> int:
    if args.gpus:
        return args.gpus
    devices = section(found, "trainer").get("devices")
    here = len(devices) if isinstance(devices, list) else devices if isinstance(devices, int) else 1
    return max(here, 1) * value(found, "trainer.num_nodes", 1)


def _plans(args: argparse.Namespace, found: dict[str, Any]) -> tuple[str, dict[str, Memory]]:
    """A title, and the memory of what was asked for first, with its alternatives."""
    class_path = str(
        section(found, "model").get("class_path") or "mavilt_pl.language.Stage1"
    ).rpartition(".")[2]
    if class_path not in ("VQGAN", "Stage1", "Stage2"):
        raise UserError(f"{class_path} cannot be planned for; expected VQGAN, Stage1 or Stage2")
    check(found, class_path)

    def of(key: str, default: Any) -> Any:
        return value(found, f"model.init_args.{key}", default)

    model, trainer, data = (section(found, key) for key in ("model.init_args", "trainer", "data"))
    precision = args.precision or str(
        trainer.get("precision") or ("32-true" if args.config else "bf16-mixed")
    )
    gpus, batch = _gpus(args, found), args.batch_size or value(found, "data.batch_size", 16)
    if precision not in ("32-true", "bf16-mixed"):
        raise UserError(
            f"trainer.precision {precision} cannot be planned for; expected 32-true or bf16-mixed"
        )
    if class_path == "VQGAN":
        for key in ("gan_weight", "lambda_feat", "lambda_finding", "clinical_input"):
            of(key, None)
        made = tokenizer(model, batch, gpus=gpus, precision=precision)  # type: ignore[arg-type]
        return f"VQGAN, batch {batch}, {precision}, {gpus} GPUs", {"DDP": made}
    second = class_path == "Stage2"
    words, views = args.words or of("max_words", 128), of("views", False)
    questions = (
        args.questions
        if args.questions is not None
        else value(found, "data.questions_per_study", 16) * second
    )
    replayed = ceil(value(found, "data.replay_share", 0.25) * batch) if data.get("replay") else 0
    step = Step(
        batch,
        args.grid**2,
        args.codes,
        words,
        questions,
        args.question_words,
        8 * second,
        views,
        replayed,
    )
    shape = _transformer(args, model)
    common: dict[str, Any] = {
        "precision": precision,
        "gpus": gpus,
        "optimizer": of("optimizer", "adamw"),
        "rank": of("lora.r", 16),
        "drift": of("drift", 0.01) > 0,
        "keep": of("drift_keep", "bfloat16"),
        "place": of("drift_place", "device"),
        "places": of("places", True),
        "device": args.device,
    }
    tuning, kept = of("tuning", "full"), of("gradient_checkpointing", False)
    strategy = "fsdp" if "fsdp" in str(trainer.get("strategy", "")) else "ddp"
    asked = language(shape, step, tuning=tuning, strategy=strategy, checkpointing=kept, **common)  # type: ignore[arg-type]
    plans = {f"{NAMES[strategy]}, {tuning}{', checkpointing' * kept}": asked}
    for other, how, again in (
        ("ddp", "full", False),
        ("ddp", "full", True),
        ("fsdp", "full", True),
        ("ddp", "lora", False),
        ("ddp", "lora", True),
    ):
        name = f"{NAMES[other]}, {how}{', checkpointing' * again}"
        if name not in plans and (other == "ddp" or gpus > 1):
            plans[name] = language(
                shape, step, tuning=how, strategy=other, checkpointing=again, **common
            )  # type: ignore[arg-type]
    title = f"{class_path} of {shape.name}: {shape.weights / 1e9:.2f}·10⁹ weights, {batch} studies a GPU of at most {step.reading} and {step.drawing} positions{', two views each' * views}{f', {replayed} replayed texts' * bool(replayed)}, {precision}, {gpus} GPUs"
    return title, plans


def throughput(plan: Memory, mfu: float, gpus: int) -> float:
    """Positions a second of all GPUs at a share `mfu` of their peak. A position costs 6 FLOP a
    weight, of which 2 are the forward pass's (Kaplan et al., arXiv 2001.08361); fixed weights need
    no gradient, and checkpointing is a second forward pass.
    """
    flops = (
        4 * plan.parameters + 2 * plan.trained + 2 * plan.parameters * plan.details["checkpointing"]
    )
    return gpus * mfu * PEAK / flops


def run(args: argparse.Namespace) -> int:
    found = settings(args.config, args.words_of_fit)
    title, plans = _plans(args, found)
    if args.json:
        print(
            json.dumps(
                {"title": title, "plans": {name: plan.as_dict() for name, plan in plans.items()}},
                indent=1,
            )
        )
        return 0
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title=title,
        caption="GB of one GPU (10⁹ bytes). The peak is the largest moment; leave a tenth for the "
        "allocator, and 1 GB for CUDA.",
    )
    table.add_column("")
    for name in plans:
        table.add_column(name.replace(", ", ",\n"), justify="right")
    for part, said in PARTS.items():
        if part == "whole" and not any(plan.whole for plan in plans.values()):
            continue
        table.add_row(said, *(f"{getattr(plan, part) / GB:,.2f}" for plan in plans.values()))
    table.add_section()
    for moment, said in (
        ("forward", "end of the forward pass"),
        ("step", "optimizer's step"),
        ("validation", "validation"),
        ("peak", "peak"),
    ):
        table.add_row(
            said,
            *(f"{getattr(plan, moment) / GB:,.2f}" for plan in plans.values()),
            style="bold" if moment == "peak" else "",
        )
    if "positions" in next(iter(plans.values())).details:
        rates = (throughput(plan, args.mfu, _gpus(args, found)) for plan in plans.values())
        table.add_section()
        table.add_row(
            f"positions/s at MFU {args.mfu:g} of H100s", *(f"{rate:,.0f}" for rate in rates)
        )
    Console().print(table)
    return 0
