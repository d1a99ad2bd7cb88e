"""`mavilt export`: a trained model as a folder that plain Hugging Face loads."""

from __future__ import annotations

import argparse
import os
import shutil
from pathlib import Path

from mavilt_pl.cli.model_arguments import add_model, loaded, make_folder
from mavilt_pl.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    add_model(parser)


def run(args: argparse.Namespace) -> int:
    if os.path.lexists(args.out):
        raise UserError(f"{args.out} exists; name a new folder with --out")
    part = args.out.with_name(args.out.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    make_folder(part, args.out)
    try:
        loaded(args).module.save_plain(part)
        os.replace(part, args.out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    print(
        f"{args.out}: AutoModelForCausalLM and AutoTokenizer load it; what images need stands in "
        f"visual.json"
    )
    return 0
