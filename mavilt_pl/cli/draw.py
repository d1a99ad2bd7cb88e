"""`mavilt draw TEXT…`: radiographs that a trained model draws. Each says in its file that it is
synthetic, and of what text.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from mavilt_pl.checkpoint import resolve_checkpoint
from mavilt_pl.cli.model_arguments import add_model, loaded, make_folder
from mavilt_pl.data.records import OTHER
from mavilt_pl.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("texts", nargs="+", metavar="TEXT", help="a report, or what should be seen")
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for 1.png, 2.png, …, one a text"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="another seed, another image (default 0)"
    )
    parser.add_argument(
        "--view",
        choices=[*OTHER],
        help="what to draw, of a model of several views (default frontal)",
    )
    parser.add_argument(
        "--given",
        nargs="+",
        default=[],
        metavar="IMAGE",
        help="of each text's study the other view, to draw from too",
    )
    parser.add_argument(
        "--best-of",
        type=int,
        default=1,
        metavar="N",
        help="draw N, keep the judge's choice (default 1)",
    )
    parser.add_argument(
        "--judge", type=Path, help="run of an encoder that reads findings, or its checkpoint"
    )
    parser.add_argument(
        "--judge-kind", choices=["classifier", "torchxrayvision"], default="classifier"
    )
    add_model(parser)


def run(args: argparse.Namespace) -> int:
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    from mavilt_pl.encoders.loading import load_encoder

    if args.best_of < 1 or (args.best_of > 1) != (args.judge is not None):
        raise UserError(
            f"--best-of: found {args.best_of}, {'with' if args.judge else 'without'} --judge; "
            f"expected 1 without a judge, "
            "or 2 or more with one"
        )
    if args.given and len(args.given) != len(args.texts):
        raise UserError(
            f"--given: found {len(args.given)} for {len(args.texts)} "
            f"TEXT{'S' * (len(args.texts) > 1)}; expected the other view of each text's study, in "
            f"their order"
        )
    make_folder(args.out, args.out)
    other = OTHER[args.view or "frontal"]
    given = [{other: image} for image in args.given] or None
    judge = load_encoder(resolve_checkpoint(args.judge), args.judge_kind) if args.judge else None
    pictures = loaded(args).draw(args.texts, args.seed, args.best_of, judge, args.view, given)
    made = f", {args.view} view" if args.view else ""
    made += f", from the {other} image" if given else ""
    made += f", best of {args.best_of} by {args.judge}" if args.judge else ""
    for number, (text, pixels) in enumerate(zip(args.texts, pictures), 1):
        path, said = args.out / f"{number}.png", PngInfo()
        said.add_itxt(
            "Comment", f"Synthetic: drawn by mavilt, seed {args.seed}{made}, from the text: {text}"
        )
        part = path.with_suffix(".part")
        Image.fromarray(pixels).save(part, format="png", pnginfo=said)
        os.replace(part, path)
        print(path)
    return 0
