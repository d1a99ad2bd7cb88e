"""The page of a served model: what it answers, what it refuses, and what it leaves behind."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import socket
import struct
import sys
import uuid
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image

from mavilt_pl.cli import main
from mavilt_pl.errors import escape
from mavilt_pl.inference.drawing_files import with_banner
from mavilt_pl.inference.mavilt import MAViLT

httpx = pytest.importorskip("httpx")
psutil = pytest.importorskip("psutil")
gradio_client = pytest.importorskip("gradio_client")
pytestmark = [pytest.mark.timeout(600)]
QUESTION = "Is there a pleural effusion?"


@pytest.fixture(scope="module")
def model(chain: Path) -> MAViLT:
    return MAViLT.from_pretrained(chain / "stage2", device="cpu")


@pytest.fixture(scope="module")
def images(mimic_root: Path) -> list[Path]:
    return sorted(mimic_root.rglob("*.jpg"))


def session(server: Any) -> Any:
    return gradio_client.Client(server.address, verbose=False)


def opened(client: Any, path: Path) -> tuple[str, str]:
    """HTML of the pictures, and what is said of the image."""
    _, note = client.predict(gradio_client.handle_file(path), api_name="/upload")
    if note.startswith("Refused"):
        return "", note
    return client.predict(api_name="/open_upload")


def shown(text: str) -> str:
    return "\n".join(escape(line) for line in text.split("\n"))


def test_answers_are_those_of_python(server: Any, model: MAViLT, images: list[Path]) -> None:
    client = session(server)
    pictures, note = opened(client, images[0])
    assert note.startswith(f"{images[0].name}. This model cannot tell")
    original, reconstruction = (
        np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))
        for text in re.findall(r"base64,([^\"]+)", pictures)
    )
    codes = model.codes([images[0]])
    decoded = (model.vqgan.decode(codes)[0, 0].detach().numpy() + 1) * 127.5
    assert original.shape == (512, 512) and np.array_equal(reconstruction, decoded.round())

    text, _ = client.predict(3, api_name="/report")
    assert text == shown(model.report(images[0], seed=3).text)
    label, text, _ = client.predict(QUESTION, "", 0, api_name="/ask")
    expected = model.ask(images[0], QUESTION)
    found = {row["label"]: row["confidence"] for row in label["confidences"]}
    assert found == expected.probabilities and text == expected.text
    label, text, _ = client.predict("Which side?", "left, right, both", 0, api_name="/ask")
    expected = model.ask(images[0], "Which side?", ["left", "right", "both"])
    assert {row["label"]: row["confidence"] for row in label["confidences"]} == (
        expected.probabilities
    )
    label, text, table = client.predict("Where?", "", 0, api_name="/ask")
    assert not label and text == shown(model.ask(images[0], "Where?").text)
    assert [row[0] for row in table["data"]] == ["question", "question", "question", "report"]

    drawn, note, table = client.predict("Edema.", 5, 2, api_name="/draw")
    assert "They show no patient" in note and len(table["data"]) == 5
    for seed in (5, 6):
        image = with_banner(model.draw("Edema.", seed=seed).image)
        (link,) = re.findall(rf'download="synthetic-{seed}.png" href="[^,]+,([^"]+)"', drawn)
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(link)))), image)
        (link,) = re.findall(rf'download="synthetic-{seed}.dcm" href="[^,]+,([^"]+)"', drawn)
        data = pydicom.dcmread(io.BytesIO(base64.b64decode(link)))
        assert data.ConversionType == "SYN" and np.array_equal(data.pixel_array, image)


class Browser:
    """One session with the page, as its JavaScript speaks: quicker to start than a `Client`."""

    def __init__(self, address: str, endpoints: dict[str, int]):
        self.api, self.endpoints = f"{address}/gradio_api", endpoints
        self.session = uuid.uuid4().hex
        self.http = httpx.Client(timeout=300)

    def upload(self, path: Path) -> Any:
        # A name of its own, as files of different people have.
        name = f"{self.session}-{path.name}"
        (stored,) = self.http.post(
            f"{self.api}/upload", files={"files": (name, path.read_bytes())}
        ).json()
        file = {"path": stored, "orig_name": name, "meta": {"_type": "gradio.FileData"}}
        words = {"data": [file], "session_hash": self.session}
        words["fn_index"] = self.endpoints["upload"]
        return self.http.post(f"{self.api}/run/predict", json=words).json()["data"]

    def call(self, endpoint: str, *words: Any) -> Any:
        """Wait in the queue for what an endpoint answers."""
        join = {"data": words, "session_hash": self.session}
        join["fn_index"] = self.endpoints[endpoint]
        self.http.post(f"{self.api}/queue/join", json=join).raise_for_status()
        url = f"{self.api}/queue/data?session_hash={self.session}"
        with self.http.stream("GET", url) as lines:
            for line in lines.iter_lines():
                event = json.loads(line.removeprefix("data:") or "{}")
                if event.get("msg") == "process_completed":
                    assert event["success"], event
                    return event["output"]["data"]
        raise AssertionError("the server hung up")


def test_two_hundred_requests_at_once(
    server: Any, model: MAViLT, images: list[Path], tmp_path: Path
) -> None:
    """None is lost or mixed up, twenty broken files among them, and memory stays as it is."""
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    expected = {}
    for path in images[:20]:
        expected[path] = model.ask(path, QUESTION).probabilities
    assert len({str(shares) for shares in expected.values()}) == 20
    config = httpx.get(f"{server.address}/config").json()
    endpoints = {one["api_name"]: one["id"] for one in config["dependencies"]}
    process = psutil.Process(server.process.pid)

    def ask(number: int) -> None:
        browser = Browser(server.address, endpoints)
        if number % 10 == 9:
            *_, note = browser.upload(broken)
            assert note.startswith("Refused: ") and "broken.png: not readable" in note
            shares, text, *_ = browser.call("ask", None, QUESTION, "", 0, None)
            assert not shares and text.startswith("Refused: no image")
            return
        path = images[number % 20]
        *_, note = browser.upload(path)
        assert note == "Reading …", note
        *_, note = browser.call("open_upload", None)
        assert path.name in note
        shares, *_ = browser.call("ask", None, QUESTION, "", 0, None)
        assert {row["label"]: row["confidence"] for row in shares["confidences"]} == expected[path]

    def all_at_once(count: int) -> float:
        with ThreadPoolExecutor(count) as threads:
            list(threads.map(ask, range(count)))
        return process.memory_info().rss / 2**20

    # The first ones fill tables of bounded size.
    all_at_once(200)
    before = process.memory_info().rss / 2**20
    assert all_at_once(100) - before < 60


def png_bomb(side: int) -> bytes:
    """A PNG of side² pixels in a few kilobytes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(side + 1)) for _ in range(side)) + packer.flush()
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )


def zip_bomb() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.dcm", bytes(2**26))
    return buffer.getvalue()


def good_png() -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64)).astype(np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("bomb.png", png_bomb(16_000), "16000 × 16000 pixels; expected 16 to 12000"),
        ("bomb.zip", zip_bomb(), "not readable"),
        ("bomb.dcm", zip_bomb(), "no pixel data"),
        ("archive.png", zip_bomb(), "not readable"),
        ("page.png", b"<html><script>alert(1)</script>", "not readable"),
        ("report.pdf", b"%PDF-1.7 " + bytes(2000), "not readable"),
        ("empty.png", b"", "not readable"),
    ],
)
def test_hostile_uploads_are_refused(
    server: Any, tmp_path: Path, name: str, content: bytes, said: str
) -> None:
    (tmp_path / name).write_bytes(content)
    pictures, note = opened(session(server), tmp_path / name)
    assert pictures == "" and note.startswith(f"Refused: {name}") and said in note


def test_a_polyglot_is_read_as_an_image_and_no_more(server: Any, tmp_path: Path) -> None:
    """A PNG that is also a page and an archive: only its pixels come back."""
    (tmp_path / "a.png").write_bytes(good_png() + b"<script>alert(1)</script>" + zip_bomb())
    (tmp_path / "b.png").write_bytes(good_png())
    pictures, note = opened(session(server), tmp_path / "a.png")
    assert not note.startswith("Refused")
    assert pictures == opened(session(server), tmp_path / "b.png")[0]


def test_a_file_name_is_no_path(server: Any, tmp_path: Path) -> None:
    upload = {"files": ("../../../../tmp/escaped<b>.png", good_png())}
    answer = httpx.post(f"{server.address}/gradio_api/upload", files=upload)
    (path,) = answer.json()
    assert not Path("/tmp/escaped<b>.png").exists() and ".." not in path
    assert any(part.startswith("mavilt-serve-") for part in Path(path).parts), path


def test_scripts_in_tags_and_names_are_text(server: Any, tmp_path: Path) -> None:
    data = pydicom.dcmread(dicom_with_script(tmp_path / "a.dcm"))
    assert "script" in str(data.PatientName)
    pictures, note = opened(session(server), tmp_path / "a.dcm")
    assert "<script" not in pictures and "alert" not in note
    # Text boxes and tables of text are all that shows what others wrote.
    config = httpx.get(f"{server.address}/config").json()
    kinds: dict[str, set[str]] = {}
    for part in config["components"]:
        kinds.setdefault(part["type"], set()).add(str(part["props"].get("datatype")))
    assert kinds["dataframe"] == {"str"}
    assert {*kinds} <= {
        *("html", "markdown", "state", "row", "column", "file", "radio", "textbox", "tabs"),
        *("tabitem", "button", "number", "label", "slider", "dataframe", "form"),
    }


def dicom_with_script(path: Path) -> Path:
    from test_odd_images import chest, dicom

    script = "<script>alert(1)</script>"
    dicom(chest(), PatientName=script, StudyDescription=script).save_as(path)
    return path


def test_nothing_else_of_the_machine_is_served(server: Any, chain: Path) -> None:
    for path in ("/etc/passwd", chain / "stage2/config.yaml", Path.cwd() / "pyproject.toml"):
        answer = httpx.get(f"{server.address}/gradio_api/file={path}")
        assert answer.status_code in (403, 404)
    (connection,) = [
        found
        for found in psutil.Process(server.process.pid).net_connections("inet")
        if found.status == psutil.CONN_LISTEN
    ]
    assert connection.laddr.ip == "127.0.0.1"


@pytest.mark.parametrize(
    ("words", "endpoint", "said"),
    [
        ([-1], "/report", "seed: found -1; expected 0 to 2147483647"),
        ([1e300], "/report", "seed: found 1"),
        (["", "", 0], "/ask", "question: found 0 characters; expected 1 to 500"),
        (["x" * 501, "", 0], "/ask", "question: found 501 characters"),
        (["Where?", "left", 0], "/ask", "answers: found 1; expected none, or 2 to 20"),
        (["Where?", "left,left", 0], "/ask", "expected each of them once"),
        ([" ", 0, 1], "/draw", "text: found 0 characters"),
    ],
)
def test_what_a_browser_sends_is_checked(
    server: Any, images: list[Path], words: list[Any], endpoint: str, said: str
) -> None:
    client = session(server)
    opened(client, images[0])
    with_message = client.predict(*words, api_name=endpoint)
    assert any(isinstance(part, str) and said in part for part in with_message)


def test_a_server_that_cannot_start_says_why(
    chain: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["serve", "--model", str(chain / "stage2"), "--device", "cpu"]
    assert main([*words, "--port", "70000"]) == 1
    assert "--port: found 70000; expected 0 to 65535" in capsys.readouterr().err
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert main([*words, "--port", str(taken.getsockname()[1])]) == 1
    assert "name another port, or 0" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(words) == 1
    assert "pip install 'mavilt[serve]'" in capsys.readouterr().err
    assert "GRADIO_ANALYTICS_ENABLED" in os.environ
