"""`mavilt draw TEXT…`: radiographs that a trained model draws. Each says in its file that it is synthetic, and of what text."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from mavilt_pl.inference.arguments import add_model, loaded, make_folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("texts", nargs="+", metavar="TEXT", help="a report, or what should be seen")
    parser.add_argument("--out", type=Path, required=True, help="folder for 1.png, 2.png, …, one a text")
    parser.add_argument("--seed", type=int, default=0, help="another seed, another image (default 0)")
    add_model(parser)


def run(args: argparse.Namespace) -> int:
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    make_folder(args.out, args.out)
    pictures = loaded(args).draw(args.texts, args.seed)
    for number, (text, pixels) in enumerate(zip(args.texts, pictures), 1):
        path, said = args.out / f"{number}.png", PngInfo()
        said.add_itxt("Comment", f"Synthetic: drawn by mavilt, seed {args.seed}, from the text: {text}")
        part = path.with_suffix(".part")
        Image.fromarray(pixels).save(part, format="png", pnginfo=said)
        os.replace(part, path)
        print(path)
    return 0
