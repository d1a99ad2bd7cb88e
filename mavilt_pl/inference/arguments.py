"""What the verbs that use a trained model have in common."""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path
from typing import Any

from mavilt_pl.data.study import DataError


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
    parser.add_argument("--seed", type=int, default=0, help="of text that is sampled (text_decoding; default 0)")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")


def make_folder(folder: Path, out: Path) -> None:
    """Before the model is read. Raises `DataError` that names `out`, where it cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"--out {out} cannot be made ({error.strerror}); name another folder") from None


def _in_a_line(message: Warning | str, *_: Any, **__: Any) -> None:
    print("mavilt:", *str(message).split(), file=sys.stderr)


def loaded(args: argparse.Namespace) -> Any:
    from mavilt_pl.inference.mavilt import MAViLT

    warnings.showwarning = _in_a_line
    warnings.filterwarnings("ignore", message=".*further ones are only counted")  # MAViLT names each text that is cut
    print("Research software, no medical device.", file=sys.stderr)
    return MAViLT.from_runs(args.model, args.tokenizer, args.backbone, args.device, getattr(args, "fit", "pad"))
