"""Names of the hub where it cannot be reached: the local cache is used, or one message comes."""

from __future__ import annotations

import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from words import DATA, QUIET

from mavilt_pl.cli import main
from mavilt_pl.language.backbone import load_backbone

NAME = "clinic/tiny"


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[str]]:
    """The connections made to a hub that hangs up, with an empty cache of models."""
    made: list[str] = []
    server = socket.create_server(("127.0.0.1", 0))

    def hang_up() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            made.append("connection")
            connection.close()

    threading.Thread(target=hang_up, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.getsockname()[1]}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    yield made
    server.close()


def cache(folder: Path, tmp_path: Path) -> None:
    """Put a model into the cache as a download does."""
    model = tmp_path / "cache" / f"models--{NAME.replace('/', '--')}"
    shutil.copytree(folder, model / "snapshots" / "0123456789abcdef")
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text("0123456789abcdef")


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["fit", "plan"])
def test_an_unreachable_hub_is_asked_once_and_reported_in_one_message(
    verb: str,
    requests: list[str],
    chain: Path,
    corpus_path: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = [verb, "--config=demo/stage1.yaml", DATA, "--data.weights=null"]
    words += [f"--data.corpora=[{corpus_path}]", f"--data.tokens=[{chain}/tokens]"]
    words += [f"--model.init_args.tokens={chain}/tokens", f"--model.init_args.backbone={NAME}"]
    words += [*QUIET, f"--trainer.default_root_dir={tmp_path}"] if verb == "fit" else []
    assert main(words) == 1
    error = capsys.readouterr().err
    assert error.count("mavilt: ") == 1 and "Traceback" not in error
    assert f"hf download {NAME} --local-dir backbones/tiny" in error
    # One question, which an HTTP client may repeat at once; none by each file for a minute.
    assert len(requests) <= 2


@pytest.mark.slow
def test_a_downloaded_model_needs_no_hub(
    requests: list[str], chain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache(chain / "backbone/backbone", tmp_path)
    model, tokenizer = load_backbone(NAME)
    expected, _ = load_backbone(str(chain / "backbone/backbone"))
    assert model.config.vocab_size == expected.config.vocab_size and len(tokenizer)
    assert main(["plan", "--backbone", NAME]) == 0
    # A name in a checkpoint is never asked for.
    requests.clear()
    load_backbone(NAME, local_files_only=True)
    assert not requests
