"""What the verbs that use a trained model have in common."""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mavilt_pl.cli.terminal import say
from mavilt_pl.errors import UserError
from mavilt_pl.project import here

if TYPE_CHECKING:
    from mavilt_pl.data.radiograph import Fit


def add_model(parser: argparse.ArgumentParser) -> None:
    """Arguments that name the model."""
    parser.add_argument(
        "--model",
        type=Path,
        help="run of Stage 1 or Stage 2, its checkpoint, or an exported folder (default in a "
        "project: runs/stage2)",
    )
    parser.add_argument(
        "--tokenizer",
        type=Path,
        help="run of the VQ-GAN, or its checkpoint (default: the one that the training used)",
    )
    parser.add_argument(
        "--backbone",
        help="path of the base language model (default: the path used in training)",
    )
    parser.add_argument(
        "--device", default="auto", help="cpu, cuda, … (default: a GPU if there is one)"
    )
    parser.add_argument(
        "--dtype",
        choices=["float32", "bfloat16"],
        default="float32",
        help="of the language model's weights (default float32)",
    )


def add_images(parser: argparse.ArgumentParser) -> None:
    """Arguments of verbs that read images."""
    parser.add_argument(
        "--fit",
        choices=["pad", "crop"],
        help="framing of images (default: as in training)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of sampled text (sampling.text; default 0)"
    )


def pair_views(images: Sequence[Any], laterals: Sequence[str]) -> list[Any]:
    """Each study as `MAViLT` takes it.

    Raises:
        UserError: frontal and lateral images differ in number.
    """
    # An image without a view's name is frontal to a model that knows views.
    if not laterals:
        return [*images]
    if len(laterals) != len(images):
        raise UserError(
            f"--lateral: found {len(laterals)} for {len(images)} IMAGEs; expected the lateral "
            "image of each, in their order"
        )
    # A study of several views is a mapping, see `MAViLT`.
    studies = []
    for image, lateral in zip(images, laterals):
        studies.append({"frontal": image, "lateral": lateral})
    return studies


def add_output(parser: argparse.ArgumentParser) -> None:
    """Arguments of verbs that write a record for each result."""
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument(
        "--out", type=Path, help="write the results to this new file, .jsonl or .csv"
    )


def make_writable(folder: Path, out: Path) -> None:
    """Create a folder before the model is loaded.

    Raises:
        UserError: it cannot be created or written; the message names `out`.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Permissions and read-only mounts show only when a file is created.
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UserError(
            f"--out {out} cannot be created or written ({error.strerror}); name another folder"
        ) from None


def _print_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    say(f"mavilt: {' '.join(str(message).split())}", sys.stderr)


def named_model(args: argparse.Namespace) -> Path:
    """The run or checkpoint that --model names; in a project folder its Stage 2.

    Raises:
        UserError: nothing is named, and this is no project folder.
    """
    return args.model or here("no --model is named").folder / "runs/stage2"


def load_model(args: argparse.Namespace) -> Any:
    """The model that the arguments name."""
    from mavilt_pl.inference.exported import is_apart, is_exported
    from mavilt_pl.inference.mavilt import MAViLT

    args.model = named_model(args)
    # Lightning's format has the path and line of our code, which says nothing to a user.
    warnings.showwarning = _print_warning
    # MAViLT names each text that is truncated.
    warnings.filterwarnings("ignore", message=".*later ones are only counted")
    # Not on standard output, which scripts read.
    print("Research software, no medical device.", file=sys.stderr)
    # `draw` and `export` have no --fit.
    fit: Fit | None = getattr(args, "fit", None)
    # An exported folder has everything in it, but perhaps not the base model.
    if is_exported(args.model):
        options = ["tokenizer"] if is_apart(args.model) else ["tokenizer", "backbone"]
        for option in options:
            if getattr(args, option):
                raise UserError(
                    f"--{option}: {args.model} is an exported model, which has its own: drop it"
                )
        return MAViLT.from_pretrained(args.model, args.device, fit, args.dtype, args.backbone)
    return MAViLT.from_runs(args.model, args.tokenizer, args.backbone, args.device, fit, args.dtype)
