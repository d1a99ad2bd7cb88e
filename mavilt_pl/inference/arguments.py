"""What the verbs that use a trained model have in common."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any


def add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", type=Path, required=True, help="run of Stage 1 or Stage 2, or its checkpoint")
    parser.add_argument("--tokenizer", type=Path, required=True, help="run of the VQ-GAN, or its checkpoint")
    parser.add_argument(
        "--backbone", help="where the language model lies now that it began from (default: where it lay)"
    )
    parser.add_argument("--device", default="auto", help="cpu, cuda, … (default: a GPU where there is one)")


def add_images(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--fit", choices=["pad", "crop"], default="pad", help="as the corpus was prepared (default pad)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a line")


def loaded(args: argparse.Namespace) -> Any:
    import warnings

    from mavilt_pl.inference.mavilt import MAViLT

    warnings.filterwarnings("ignore", category=UserWarning)
    print("Research software, no medical device.", file=sys.stderr)
    return MAViLT.from_runs(args.model, args.tokenizer, args.backbone, args.device, getattr(args, "fit", "pad"))
