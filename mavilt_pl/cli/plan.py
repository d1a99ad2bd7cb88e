"""`mavilt plan`: the memory of a training, of one GPU, for a config or for a size.

    mavilt plan --config stage1.yaml --config trainer/gpu.yaml --model.init_args.backbone FOLDER
    mavilt plan --size 7 --gpus 8
    mavilt plan --config vqgan.yaml

It takes the arguments of `mavilt fit` too. Neither data nor weights are read, only config.json of
the backbone.
"""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from mavilt_pl.errors import UserError

if TYPE_CHECKING:
    from mavilt_pl.planning.batch_shape import BatchShape
    from mavilt_pl.planning.language_memory import Training
    from mavilt_pl.planning.memory import Hardware, Memory

TAKES_FIT_ARGUMENTS = True
# By 10⁹ weights; keys of `planning.transformer.PUBLISHED`, whose import takes seconds.
SIZES = ("0.1", "0.4", "0.5", "1", "1.4", "2.8", "3", "7")
GB = 1e9
# Rows of the table: fields of `Memory`, then its moments.
PARTS = {
    "weights": "weights",
    "gradients": "gradients",
    "optimizer": "optimizer states",
    "reference": "θ₀",
    "scratch": "scratch of the optimizer's step",
    "gathered": "weights gathered for a layer",
    "activations": "activations",
    "logits": "logits",
    "whole": "whole weights in a validation",
}
MOMENTS = {
    "forward": "end of the forward pass",
    "step": "optimizer's step",
    "validation": "validation",
    "peak": "peak",
}
# Tokens of an instruction of Stage 2, roughly; a few more or less do not show in the memory.
INSTRUCTION_TOKENS = 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb; all others are those of `mavilt fit`."""
    parser.add_argument(
        "--config", action="append", default=[], help="as `mavilt fit` takes it; repeatable"
    )
    parser.add_argument(
        "--backbone", help="folder with a config.json (default: the config's backbone)"
    )
    parser.add_argument(
        "--size", choices=SIZES, help="a published model of about this many 10⁹ weights, instead"
    )
    parser.add_argument(
        "--batch-size", type=int, help="studies of one GPU (default: the config's, else 16)"
    )
    parser.add_argument(
        "--grid",
        type=int,
        help="side of an image in codes (default: that of the tokens, else 16)",
    )
    parser.add_argument(
        "--codebook-size",
        type=int,
        help="codes in the codebook (default: those of the tokens, else 1,024)",
    )
    parser.add_argument(
        "--text-tokens",
        type=int,
        help="of the longest report (default: the config's max_text_tokens, else 128)",
    )
    parser.add_argument(
        "--questions", type=int, help="of a study (default: the config's, else 0: Stage 1)"
    )
    parser.add_argument(
        "--question-tokens",
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
        help="logits are computed in smaller chunks on a CPU",
    )
    parser.add_argument(
        "--mfu",
        type=float,
        default=0.4,
        help="share of the peak FLOP/s that is reached (default 0.4)",
    )
    parser.add_argument("--json", action="store_true", help="for programs; bytes")


def run(args: argparse.Namespace) -> int:
    """Print the plan of a training and of its alternatives."""
    # These import torch and transformers, which takes seconds; `mavilt --help` needs neither.
    from mavilt_pl.planning.language_memory import plan_alternatives
    from mavilt_pl.planning.settings import stage_name

    settings, hardware = read_settings(args)
    if stage_name(settings) == "VQGAN":
        batch_size = _batch_size(args, settings)
        title = f"VQGAN, batch {batch_size}, {hardware.precision}, {hardware.gpus} GPUs"
        plans = {"DDP": plan_vqgan_settings(args, settings, hardware)}
    else:
        training = read_training(args, settings, hardware)
        title, plans = _title(stage_name(settings), training), plan_alternatives(training)
    # Bytes for programs, GB for people.
    if args.json:
        record = {"title": title, "plans": {name: plan.as_dict() for name, plan in plans.items()}}
        print(json.dumps(record, indent=1))
    else:
        _print_table(title, plans, args.mfu, hardware.gpus)
    return 0


def read_settings(args: argparse.Namespace) -> tuple[Any, Hardware]:
    """The settings of `mavilt fit`, and what the training runs on.

    Args:
        args: of this verb, with `fit_arguments` for all words that it does not know.

    Raises:
        UserError: `mavilt fit` would refuse the words, or the precision cannot be planned for.
    """
    from mavilt_pl.cli.fit_parser import parse_fit_arguments
    from mavilt_pl.planning.memory import Hardware

    # Configs first: what the command line says takes precedence, as for `mavilt fit`.
    configs = [f"--config={name}" for name in args.config]
    settings = parse_fit_arguments([*configs, *args.fit_arguments])
    from mavilt_pl.planning.settings import count_gpus

    # A size alone is planned as it would be trained on a GPU; a config as Lightning reads it.
    precision = args.precision or settings.trainer.precision
    if precision is None:
        precision = "32-true" if args.config else "bf16-mixed"
    if precision not in ("32-true", "bf16-mixed"):
        raise UserError(
            f"trainer.precision {precision} cannot be planned for; expected 32-true or bf16-mixed"
        )
    return settings, Hardware(
        # `fsdp2` by name, or a class path of the strategy.
        strategy="fsdp" if "fsdp" in str(settings.trainer.strategy) else "ddp",
        gpus=args.gpus or count_gpus(settings),
        precision=precision,
        device=args.device,
    )


def plan_vqgan_settings(args: argparse.Namespace, settings: Any, hardware: Hardware) -> Memory:
    """Memory of a training of the VQ-GAN."""
    from mavilt_pl.planning.vqgan_memory import plan_vqgan

    # Of one GPU: the global batch does not change what one must hold.
    return plan_vqgan(settings.model.init_args.as_dict(), _batch_size(args, settings), hardware)


def _batch_size(args: argparse.Namespace, settings: Any) -> int:
    from mavilt_pl.planning.settings import at_least_one

    # The verb's own argument takes precedence.
    return args.batch_size or at_least_one(settings, "data.batch_size")


def read_training(args: argparse.Namespace, settings: Any, hardware: Hardware) -> Training:
    """Stage 1 or Stage 2 as the settings describe it.

    Raises:
        UserError: no backbone is named, or it has no readable config.json.
    """
    from mavilt_pl.planning.language_memory import Training
    from mavilt_pl.planning.settings import language_options, stage_name
    from mavilt_pl.planning.transformer import PUBLISHED, read_transformer

    model, tuning, regularization = language_options(settings)
    backbone = args.backbone or settings.model.init_args.backbone
    # A published size by its name needs no folder, so a plan can be made before a download.
    if args.size:
        transformer = PUBLISHED[args.size]
    elif backbone:
        transformer = read_transformer(backbone)
    else:
        raise UserError(
            "no backbone is named: give --backbone FOLDER (with its config.json) or --size, one of "
            f"{', '.join(SIZES)}"
        )
    batch = _batch_shape(args, settings, stage_name(settings), model)
    return Training(transformer, batch, hardware, model, tuning, regularization)


def _batch_shape(args: argparse.Namespace, settings: Any, stage: str, model: Any) -> BatchShape:
    """Lengths from the verb's own arguments first, then from the settings."""
    from mavilt_pl.planning.batch_shape import BatchShape
    from mavilt_pl.planning.settings import (
        count_questions,
        count_replay_texts,
        grid_and_codebook,
    )

    grid, codebook_size = grid_and_codebook(settings)
    batch_size = _batch_size(args, settings)
    # Stage 1 has neither.
    questions, instruction_tokens = 0, 0
    if stage == "Stage2":
        questions, instruction_tokens = count_questions(settings), INSTRUCTION_TOKENS
    if args.questions is not None:
        questions = args.questions
    return BatchShape(
        batch_size=batch_size,
        codes_per_image=(args.grid or grid) ** 2,
        codebook_size=args.codebook_size or codebook_size,
        text_tokens=args.text_tokens or model.max_text_tokens,
        questions=questions,
        question_tokens=args.question_tokens,
        instruction_tokens=instruction_tokens,
        multi_view=model.multi_view,
        replay_texts=count_replay_texts(settings, batch_size),
    )


def _title(stage: str, training: Training) -> str:
    transformer, batch, hardware = training.transformer, training.batch, training.hardware
    parts = [
        f"{stage} of {transformer.name}: {transformer.weights / 1e9:.2f}·10⁹ weights",
        f"{batch.batch_size} studies a GPU of at most {batch.reading_length} and "
        f"{batch.synthesis_length} positions",
    ]
    if batch.multi_view:
        parts.append("two views each")
    if batch.replay_texts:
        parts.append(f"{batch.replay_texts} replayed texts")
    parts += [hardware.precision, f"{hardware.gpus} GPUs"]
    return ", ".join(parts)


def _print_table(title: str, plans: dict[str, Memory], mfu: float, gpus: int) -> None:
    from rich.console import Console
    from rich.table import Table

    from mavilt_pl.planning.language_memory import throughput

    table = Table(
        title=title,
        caption="GB of one GPU (10⁹ bytes). The peak is the largest moment; leave a tenth for the "
        "allocator, and 1 GB for CUDA.",
    )
    table.add_column("")
    for name in plans:
        # A line for each part of the name, so that six columns fit a terminal.
        table.add_column(name.replace(", ", ",\n"), justify="right")

    def gigabytes(field: str) -> list[str]:
        return [f"{getattr(plan, field) / GB:,.2f}" for plan in plans.values()]

    for part, label in PARTS.items():
        # Only FSDP2 has it.
        if part == "whole" and not any(plan.whole for plan in plans.values()):
            continue
        table.add_row(label, *gigabytes(part))
    table.add_section()
    for moment, label in MOMENTS.items():
        table.add_row(label, *gigabytes(moment), style="bold" if moment == "peak" else "")
    # A VQ-GAN has no positions to count.
    if all("positions" in plan.details for plan in plans.values()):
        rates = [f"{throughput(plan, mfu, gpus):,.0f}" for plan in plans.values()]
        table.add_section()
        table.add_row(f"positions/s at MFU {mfu:g} of H100s", *rates)
    Console().print(table)
