"""`mavilt draw TEXT…`: generate radiographs, each of which says that it is synthetic.

`mavilt draw --corpus CORPUS` generates a dataset.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mavilt_pl.cli.model_arguments import add_model, load_model, make_writable
from mavilt_pl.cli.terminal import say
from mavilt_pl.data.records import OTHER, SPLITS
from mavilt_pl.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `mavilt draw`."""
    parser.add_argument("texts", nargs="*", metavar="TEXT", help="a report, or findings")
    _add_corpus(parser)
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        help="folder for 1.png, 2.png, …, one a text, or for the dataset",
    )
    parser.add_argument(
        "--format",
        choices=["png", "dcm"],
        default="png",
        help="PNG, or DICOM Secondary Capture (default png)",
    )
    parser.add_argument(
        "--no-banner",
        action="store_true",
        help="do not write SYNTHETIC into the pixels; the file still says so",
    )
    parser.add_argument("--seed", type=int, default=0, help="another seed gives another image")
    parser.add_argument(
        "--keep-text",
        action="store_true",
        help="write the text into the file as well; it may identify a patient",
    )
    parser.add_argument(
        "--view",
        choices=[*OTHER],
        help="what to generate with a model of several views (default frontal)",
    )
    parser.add_argument(
        "--given",
        nargs="+",
        default=[],
        metavar="IMAGE",
        help="the other view of each text's study, to generate from as well",
    )
    parser.add_argument(
        "--best-of",
        type=int,
        default=1,
        metavar="N",
        help="generate N images, keep the judge's choice (default 1)",
    )
    parser.add_argument(
        "--judge", type=Path, help="run of an encoder that reads findings, or its checkpoint"
    )
    parser.add_argument(
        "--judge-kind", choices=["classifier", "torchxrayvision"], default="classifier"
    )
    add_model(parser)


def _add_corpus(parser: argparse.ArgumentParser) -> None:
    # What single texts and a dataset share is in `add_arguments`.
    parser.add_argument(
        "--corpus",
        type=Path,
        help="instead of TEXTs: an image for each study, with its labels, as a dataset",
    )
    parser.add_argument(
        "--split", choices=[*SPLITS], default="train", help="with --corpus (default train)"
    )
    parser.add_argument("--limit", type=int, help="with --corpus: at most this many studies")
    parser.add_argument(
        "--sections",
        default="findings",
        help="with --corpus: the part of a report that is drawn (default findings)",
    )


def _check(args: argparse.Namespace) -> None:
    if bool(args.texts) == bool(args.corpus):
        found = "both" if args.corpus else "neither"
        raise UserError(f"TEXT and --corpus: found {found}; expected one of them")
    if args.limit is not None and args.limit < 1:
        raise UserError(f"--limit {args.limit}: expected 1 or more")
    # They need a choice for each text, and a dataset has one for all.
    only_texts = [args.given, args.best_of > 1, args.judge, args.keep_text, args.view]
    if args.corpus and (any(only_texts) or args.format != "png"):
        raise UserError(
            "--corpus draws one PNG a study from its text: drop --given, --best-of, --judge, "
            "--keep-text, --view and --format"
        )
    if args.best_of < 1 or (args.best_of > 1) != (args.judge is not None):
        found = "with" if args.judge else "without"
        raise UserError(
            f"--best-of: found {args.best_of}, {found} --judge; expected 1 without a judge, or 2 "
            "or more with one"
        )
    if args.given and len(args.given) != len(args.texts):
        raise UserError(
            f"--given: found {len(args.given)} for {len(args.texts)} TEXTs; expected the other "
            "view of each text's study, in their order"
        )


def run(args: argparse.Namespace) -> int:
    """Write a file for each text and print its path."""
    from mavilt_pl.checkpoint import resolve_checkpoint
    from mavilt_pl.encoders.loading import load_encoder

    # Everything that can be refused is refused before the models are read, which takes a while.
    _check(args)
    make_writable(args.out, args.out)
    if args.corpus:
        return _draw_corpus(args)
    paths = []
    for number in range(1, len(args.texts) + 1):
        path = args.out / f"{number}.{args.format}"
        # Not even one of our own: another seed's drawing is a result too.
        if path.exists():
            raise UserError(f"{path} exists, and drawings are never replaced: name another --out")
        paths.append(path)
    other = OTHER[args.view or "frontal"]
    # What is given is the other view of what is generated.
    given = [{other: image} for image in args.given] or None
    # Read before the model: a wrong judge is refused in a second.
    judge = None
    if args.judge:
        judge = load_encoder(resolve_checkpoint(args.judge), args.judge_kind)
    model = load_model(args)
    # All at once: texts share the batch.
    drawings = model.draw(args.texts, args.seed, args.best_of, judge, args.view, given)
    for path, drawing in zip(paths, drawings):
        drawing.save(path, banner=not args.no_banner, keep_text=args.keep_text)
        say(path)
    return 0


def _draw_corpus(args: argparse.Namespace) -> int:
    """Write a dataset of drawings, and say how to prepare it."""
    from rich.progress import track

    from mavilt_pl.data.corpus import Corpus
    from mavilt_pl.inference.drawn_dataset import TABLE, draw_dataset

    # Opened before the model is read, which takes a while.
    corpus = Corpus(args.corpus)
    model = load_model(args)
    # A generator: the bar moves with the studies that have their image.
    parts = draw_dataset(
        model,
        corpus,
        args.out,
        split=args.split,
        limit=args.limit,
        sections=args.sections,
        seed=args.seed,
    )
    count = max(track(parts, "Drawing", total=None, transient=True))
    say(f"{count:,} synthetic radiographs: {args.out / TABLE}")
    say(f"mavilt prepare table {args.out} --out CORPUS makes a corpus of them")
    return 0
