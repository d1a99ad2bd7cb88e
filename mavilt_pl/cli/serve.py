"""`mavilt serve`: a web page on this machine for a trained model."""

from __future__ import annotations

import argparse
from pathlib import Path

from mavilt_pl.cli.model_arguments import add_model, load_model
from mavilt_pl.cli.terminal import say
from mavilt_pl.errors import UserError

PORT = 7860
HIGHEST_PORT = 65_535


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `mavilt serve`."""
    add_model(parser)
    parser.add_argument(
        "--port", type=int, default=PORT, help=f"on 127.0.0.1; 0 for a free one (default {PORT})"
    )


def run(args: argparse.Namespace) -> int:
    """Serve until Ctrl-C."""
    from mavilt_pl.evaluation.figure_tables import headline_tables
    from mavilt_pl.evaluation.results import read_results
    from mavilt_pl.serving.page import build_page, import_gradio, serve
    from mavilt_pl.serving.served_model import ServedModel

    # Before the model is read, which takes longer.
    import_gradio()
    # The operating system's message would name no option.
    if not 0 <= args.port <= HIGHEST_PORT:
        raise UserError(f"--port: found {args.port}; expected 0 to {HIGHEST_PORT}")
    model = load_model(args)
    folder: Path = args.model if args.model.is_dir() else args.model.parent.parent
    tables = []
    # Of an exported folder, or of a run.
    for path in (folder / "results.json", folder / "test" / "results.json"):
        if path.is_file():
            tables = headline_tables(read_results(path)["figures"])
            break
    # Its decoder is a process, which must end with this one.
    served = ServedModel(model)
    try:
        page = build_page(served, f"mavilt: {folder.resolve().name}", tables)
        serve(page, args.port, ready=lambda address: say(f"{address}  (Ctrl-C ends it)"))
    finally:
        served.close()
    return 0
