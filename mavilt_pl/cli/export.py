"""`mavilt export`: write a trained model as a folder that Hugging Face transformers loads."""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from pathlib import Path

from mavilt_pl.cli.model_arguments import add_model, load_model, make_writable, named_model
from mavilt_pl.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `mavilt export`."""
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    parser.add_argument(
        "--license",
        default="other",
        metavar="ID",
        help="for the model card, such as cc-by-nc-4.0 (default other)",
    )
    parser.add_argument(
        "--adapters-only",
        action="store_true",
        help="write adapters and new rows without the base model, which is named to load them",
    )
    add_model(parser)


def run(args: argparse.Namespace) -> int:
    """Write the folder whole or not at all."""
    from mavilt_pl.checkpoint import load_tensors, resolve_checkpoint
    from mavilt_pl.evaluation.results import read_results
    from mavilt_pl.inference.export import export

    if os.path.lexists(args.out):
        raise UserError(f"{args.out} exists; name a new folder with --out")
    make_writable(args.out.parent, args.out)
    # A folder of our own, next to the target so that it can be renamed.
    part = Path(tempfile.mkdtemp(prefix=f".{args.out.name}.", dir=args.out.parent))
    try:
        checkpoint = resolve_checkpoint(named_model(args))
        # It verifies the checkpoint; for the card, only its settings are read again.
        model = load_model(args)
        facts = load_tensors(checkpoint, mmap=True)
        # Of the run that the checkpoint lies in, if it was tested.
        tested = checkpoint.resolve().parent.parent / "test" / "results.json"
        results = read_results(tested) if tested.is_file() else None
        # Named now, for whoever loads the adapters.
        base = None
        if args.adapters_only:
            base = args.backbone or facts["hyper_parameters"]["backbone"]
        export(model, facts, args.out.name, part, results, args.license, base)
        # mkdtemp and safetensors create what only its owner can read, whatever the umask says.
        umask = os.umask(0)
        os.umask(umask)
        part.chmod(0o777 & ~umask)
        for file in part.iterdir():
            file.chmod(0o666 & ~umask)
        os.replace(part, args.out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    if args.adapters_only:
        print(f"{args.out}: `--model {args.out} --backbone BASE_MODEL` uses it; see README.md")
    else:
        print(
            f"{args.out}: AutoModelForCausalLM and AutoTokenizer load it; README.md describes it, "
            f"and `python {args.out}/example.py IMAGE` uses it"
        )
    return 0
