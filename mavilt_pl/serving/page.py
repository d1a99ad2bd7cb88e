"""The page itself, in Gradio: layout, and which button calls what.

Texts of the model and of files are shown in text boxes and tables of plain text, so that nothing in
a report or a tag becomes HTML.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mavilt_pl.errors import UserError, escape
from mavilt_pl.inference.outputs import Answer, Report
from mavilt_pl.serving.examples import EXAMPLES
from mavilt_pl.serving.fragments import drawings_html, figures_html, radiographs_html
from mavilt_pl.serving.served_model import (
    LONGEST_QUESTION,
    LONGEST_TEXT,
    MOST_DRAWINGS,
    Opened,
    ServedModel,
)
from mavilt_pl.serving.uploads import LARGEST_UPLOAD, Upload

RESEARCH = (
    '<div class="research"><b>Research use only. No medical device.</b> The model misses findings '
    "and invents them. Uploads are deleted after minutes.</div>"
)
HISTORY = ["task", "image", "input", "output", "seed"]
LONGEST_HISTORY = 50  # rows a session
QUEUE = 256  # requests that wait; the next one is refused
SESSIONS = 300  # whose open images are remembered
THREADS = 4  # the model answers one at a time, and each thread keeps memory of its own
FORGET = 1800  # seconds after which an open image is forgotten
RELEASE = 10  # seconds between two times that unused memory is given back
CLEAN = (30, 120)  # seconds: how often uploads are deleted, and how old they are then
FOLDER = "mavilt-serve-"  # of uploads, followed by the server's process
MODEL = {"concurrency_id": "model", "concurrency_limit": 1}


def import_gradio() -> Any:
    """Gradio, which asks nobody and loads nothing from elsewhere.

    Raises:
        UserError: it is not installed.
    """
    # Read when it is imported.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        import gradio
    except ImportError:
        raise UserError("serve needs Gradio: pip install 'mavilt[serve]'") from None
    return gradio


def build_page(served: ServedModel, title: str, tables: Sequence[dict[str, Any]]) -> Any:
    """The page as Gradio blocks.

    Args:
        served: answers the requests.
        title: of the page.
        tables: of `headline_tables`, the figures of the model's test.
    """
    gr = import_gradio()
    # A model of Stage 1 has learned no questions: it has no such tab.
    asks = served.model.generator.prompts.instructed
    with gr.Blocks(title=title, delete_cache=CLEAN) as page:
        gr.HTML(RESEARCH)
        gr.Markdown(f"## {title}")
        opened = gr.State(None, time_to_live=FORGET)
        history = gr.State([], time_to_live=FORGET)
        with gr.Row():
            with gr.Column(scale=2):
                _image_column(gr, served, opened)
            with gr.Column(scale=3), gr.Tabs():
                # Created before the tabs that write to it, and shown in the last one.
                table = gr.Dataframe(
                    headers=HISTORY, datatype="str", interactive=False, wrap=True, render=False
                )
                with gr.Tab("Report"):
                    _report_tab(gr, served, opened, history, table)
                if asks:
                    with gr.Tab("Ask"):
                        _ask_tab(gr, served, opened, history, table)
                with gr.Tab("Draw"):
                    _draw_tab(gr, served, history, table)
                with gr.Tab("Results"):
                    _results_tab(gr, served, tables)
                with gr.Tab("History"):
                    gr.Markdown("Of this session; it is forgotten with it.")
                    table.render()
    return page


def _image_column(gr: Any, served: ServedModel, opened: Any) -> None:
    upload = gr.File(label="Radiograph: DICOM, PNG or JPEG", file_count="single", height=140)
    choice = gr.Radio([*EXAMPLES], label="or an example (synthetic)")
    note = gr.Textbox(label="Image", interactive=False, lines=2)
    pictures = gr.HTML()

    pending = gr.State(None, time_to_live=FORGET)

    def read(source: Callable[[Any], Upload], value: Any) -> tuple[Any, ...]:
        # What was open before is closed, whether the new image can be read or not.
        try:
            return source(value), None, "", "Reading …"
        except UserError as error:
            return None, None, "", f"Refused: {error}"

    def show(image: Upload | None) -> Any:
        if image is None:
            return gr.skip(), gr.skip(), gr.skip(), gr.skip()
        # In the queue: it needs the model.
        seen, reconstruction = served.open(image)
        sides = [
            (image.preview, "original"),
            (reconstruction, "what the model sees, from its codes"),
        ]
        # The pending image is forgotten: previews of many sessions would add up.
        return None, seen, radiographs_html(sides), seen.note

    outputs = [pending, opened, pictures, note]
    # Out of the queue: an upload is read before it is deleted, however long the queue is.
    reading = {"queue": False, "show_progress_on": note}
    sources = (
        (upload, upload.upload, served.read_file, "upload"),
        (choice, choice.input, served.read_example, "example"),
    )
    # Two events each: one reads at once, the other waits for the model.
    for component, event, source, name in sources:
        done = event(partial(read, source), component, outputs, api_name=name, **reading)
        done.then(show, pending, outputs, api_name=f"open_{name}", **MODEL)


def _seed_box(gr: Any) -> Any:
    return gr.Number(0, label="Seed", precision=0, scale=0, min_width=90)


def _report_tab(gr: Any, served: ServedModel, opened: Any, history: Any, table: Any) -> None:
    with gr.Row():
        button = gr.Button("Write a report", variant="primary")
        seed = _seed_box(gr)
    text = gr.Textbox(label="Report", lines=8, interactive=False, buttons=["copy"])

    def write(image: Opened | None, number: float, rows: list[Any]) -> tuple[Any, ...]:
        # Refusals are shown as text: a pop-up would render what others wrote.
        try:
            report = served.report(image, number)
        except UserError as error:
            return f"Refused: {error}", rows, rows
        shown = _shown(report)
        rows = _remember(rows, "report", image, "", shown, number)
        return shown, rows, rows

    inputs, outputs = [opened, seed, history], [text, history, table]
    button.click(write, inputs, outputs, api_name="report", **MODEL)


def _ask_tab(gr: Any, served: ServedModel, opened: Any, history: Any, table: Any) -> None:
    question = gr.Textbox(
        label="Question", placeholder="Is there a pleural effusion?", max_length=LONGEST_QUESTION
    )
    answers = gr.Textbox(
        label="Expected answers, separated by commas",
        placeholder="empty: yes or no if the question asks for it, else free text",
    )
    with gr.Row():
        button = gr.Button("Ask", variant="primary")
        seed = _seed_box(gr)
    shares = gr.Label(label="Probabilities", num_top_classes=20)
    text = gr.Textbox(label="Answer", interactive=False)

    def ask(
        image: Opened | None, asked: str, expected: str, number: float, rows: list[Any]
    ) -> tuple[Any, ...]:
        try:
            answer = served.ask(image, asked, expected or "", number)
        except UserError as error:
            return None, f"Refused: {error}", rows, rows
        shown = _shown(answer)
        rows = _remember(rows, "question", image, asked, shown, number)
        return answer.probabilities, shown, rows, rows

    inputs, outputs = [opened, question, answers, seed, history], [shares, text, history, table]
    # Enter asks too.
    gr.on([button.click, question.submit], ask, inputs, outputs, api_name="ask", **MODEL)


def _draw_tab(gr: Any, served: ServedModel, history: Any, table: Any) -> None:
    text = gr.Textbox(
        label="Report, or findings",
        lines=3,
        placeholder="Large left pleural effusion.",
        max_length=LONGEST_TEXT,
    )
    with gr.Row():
        button = gr.Button("Draw", variant="primary")
        seed = _seed_box(gr)
        count = gr.Slider(1, MOST_DRAWINGS, 2, step=1, label="Drawings")
    pictures = gr.HTML()
    note = gr.Textbox(label="Notice", interactive=False)

    def draw(asked: str, number: float, many: float, rows: list[Any]) -> tuple[Any, ...]:
        try:
            drawings = served.draw(asked, number, many)
        except UserError as error:
            return "", f"Refused: {error}", rows, rows
        shown = f"{len(drawings)} synthetic radiographs"
        rows = _remember(rows, "drawing", None, asked, shown, number)
        return drawings_html(drawings), f"{shown}. They show no patient.", rows, rows

    inputs, outputs = [text, seed, count, history], [pictures, note, history, table]
    button.click(draw, inputs, outputs, api_name="draw", **MODEL)


def _results_tab(gr: Any, served: ServedModel, tables: Sequence[dict[str, Any]]) -> None:
    # So that a screenshot can be traced to the weights.
    facts = [["checkpoint, sha256", served.model.sha256]]
    for dataset in served.model.loaded.training_data:
        counts = []
        for unit in ("studies", "images"):
            if unit in dataset:
                counts.append(f"{dataset[unit]:,} {unit}")
        facts.append(["trained on", f"{dataset['name']}: {', '.join(counts)}"])
    for name, value in facts:
        gr.Textbox(value, label=name, interactive=False)
    # Figures stand with their controls, or are said to be missing.
    if tables:
        gr.HTML(figures_html(tables))
    else:
        gr.Markdown("This model was not tested: `mavilt test` writes the figures shown here.")


def _shown(result: Report | Answer) -> str:
    """A text of the model, with a warning if the image is unlike the training images."""
    doubt = "[Unlike the training images: do not believe this.] " if result.unfamiliar else ""
    lines = [escape(line) for line in result.text.split("\n")]
    return doubt + "\n".join(lines)


def _remember(
    rows: list[Any], task: str, image: Opened | None, asked: str, shown: str, seed: float
) -> list[Any]:
    """The history with one more row at its top."""
    name = image.name if image else ""
    return [[task, name, asked, shown, str(int(seed))], *rows][:LONGEST_HISTORY]


def serve(page: Any, port: int, ready: Callable[[str], None]) -> None:
    """Serve the page on this machine only, until Ctrl-C.

    Args:
        page: of `build_page`.
        port: to listen on; 0 for a free one.
        ready: called with its address.

    Raises:
        UserError: the port is taken.
    """
    gr = import_gradio()
    # A server that is told to end removes its folder first, as it does after Ctrl-C.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    # Uploads lie here for a moment; the folder ends with the server.
    _remove_orphans()
    with tempfile.TemporaryDirectory(prefix=f"{FOLDER}{os.getpid()}-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        page.GRADIO_CACHE = folder
        page.queue(max_size=QUEUE, default_concurrency_limit=1)
        # Fonts of the system: others would be loaded from elsewhere.
        theme = gr.themes.Default(
            font=("system-ui", "sans-serif"), font_mono=("ui-monospace", "monospace")
        )
        try:
            _, address, _ = page.launch(
                server_name="127.0.0.1",
                server_port=port or _free_port(),
                share=False,
                quiet=True,
                prevent_thread_lock=True,
                max_file_size=LARGEST_UPLOAD,
                max_threads=THREADS,
                state_session_capacity=SESSIONS,
                # The API's page and Gradio's own settings are no use here.
                footer_links=[],
                theme=theme,
                css_paths=[Path(__file__).with_name("page.css")],
            )
        except OSError as error:
            raise UserError(f"--port {port}: {error}; name another port, or 0") from None
        try:
            ready(address)
            # Until Ctrl-C; not `block_thread`, which prints a message of its own.
            while True:
                time.sleep(RELEASE)
                _release_memory()
        except KeyboardInterrupt:
            pass
        finally:
            page.close(verbose=False)


def _release_memory() -> None:
    """Give memory that nothing uses back to the system, if the C library can."""
    # Pages of pictures leave gaps that glibc keeps: some 90 kB for each session.
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _remove_orphans() -> None:
    """Remove the folders of servers that were killed before they could."""
    for folder in Path(tempfile.gettempdir()).glob(f"{FOLDER}*"):
        # Another user's folder, or a living server's, is not ours to remove.
        pid = folder.name.removeprefix(FOLDER).partition("-")[0]
        is_alive = pid.isdigit() and Path(f"/proc/{pid}").exists()
        if not is_alive and folder.stat().st_uid == os.getuid():
            shutil.rmtree(folder, ignore_errors=True)


def _free_port() -> int:
    # Gradio would take 7860 and the next ones, and never say which was meant.
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
