"""What the verbs that use a trained model have in common."""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mavilt_pl.errors import UserError


def add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", type=Path, required=True, help="run of Stage 1 or Stage 2, or its checkpoint"
    )
    parser.add_argument(
        "--tokenizer", type=Path, required=True, help="run of the VQ-GAN, or its checkpoint"
    )
    parser.add_argument(
        "--backbone",
        help="where the language model lies now that it began from (default: where it lay)",
    )
    parser.add_argument(
        "--device", default="auto", help="cpu, cuda, … (default: a GPU where there is one)"
    )


def add_images(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--fit",
        choices=["pad", "crop"],
        default="pad",
        help="as the corpus was prepared (default pad)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of text that is sampled (text_decoding; default 0)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a line")


def studies_of(images: Sequence[str], laterals: Sequence[str]) -> list[Any]:
    """Each study as `MAViLT` takes it. Raises `UserError` where their numbers differ."""
    if not laterals:
        return [*images]
    if len(laterals) != len(images):
        raise UserError(
            f"--lateral: found {len(laterals)} for {len(images)} IMAGE{'S' * (len(images) > 1)}; "
            f"expected the lateral image of each, in their order"
        )
    return [{"frontal": image, "lateral": lateral} for image, lateral in zip(images, laterals)]


def named(image: str, lateral: str | None) -> dict[str, str]:
    """What was read, for a line of JSON."""
    return {"image": image} | ({"lateral": lateral} if lateral else {})


def make_folder(folder: Path, out: Path) -> None:
    """Before the model is read. Raises `UserError` that names `out`, where it cannot be made or
    written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UserError(
            f"--out {out} cannot be made or written to ({error.strerror}); name another folder"
        ) from None


def _in_a_line(message: Warning | str, *_: Any, **__: Any) -> None:
    print("mavilt:", *str(message).split(), file=sys.stderr)


def loaded(args: argparse.Namespace) -> Any:
    from mavilt_pl.inference.mavilt import MAViLT

    warnings.showwarning = _in_a_line
    warnings.filterwarnings(
        "ignore", message=".*further ones are only counted"
    )  # MAViLT names each text that is cut
    print("Research software, no medical device.", file=sys.stderr)
    return MAViLT.from_runs(
        args.model, args.tokenizer, args.backbone, args.device, getattr(args, "fit", "pad")
    )
