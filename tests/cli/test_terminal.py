"""Names and texts of others are shown on the terminal, and never obeyed."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mavilt_pl.cli import main

# Red letters, another window title, a cleared screen, markup of rich, a second line, a bell.
NAMES = (
    *("\x1b[31mred", "\x1b]0;title\x07", "\x1b[2J", "[red]x[/blue]", "[/red]"),
    *("two\nlines", "é\x07"),
)


def shown(text: str) -> bool:
    """Whether a terminal only shows a text."""
    return all(letter.isprintable() or letter == "\n" for letter in text)


@pytest.mark.parametrize("name", NAMES)
def test_names_in_messages(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / name.replace("/", "∕")
    folder.mkdir()
    (folder / f"{folder.name}.png").write_text("no image")
    commands = (
        ["doctor", str(folder)],
        ["doctor", str(folder), "--source", "nih"],
        ["prepare", "nih", str(folder), "--out", str(folder / "out")],
        ["results", str(folder)],
        ["run", str(folder / "recipe.yaml")],
        ["plan", "--backbone", str(folder)],
        ["tokenize", "--corpus", str(folder), "--tokenizer", str(folder), "--out", "x"],
        ["fit", "--config", str(folder / "config.yaml")],
    )
    for command in commands:
        assert main(command) == 1, command
        said = capsys.readouterr()
        assert shown(said.out) and shown(said.err), command
        assert said.err.count("\n") == 1, (command, said.err)


def test_names_in_tables(
    corpus_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A corpus in a folder of such a name."""
    for name in NAMES:
        copy = tmp_path / name.replace("/", "∕")
        shutil.copytree(corpus_path, copy)
        assert main(["doctor", str(copy)]) == 0
        said = capsys.readouterr()
        assert shown(said.out) and shown(said.err)


@pytest.mark.slow
def test_names_of_images(chain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in NAMES:
        path = tmp_path / f"{name.replace('/', '∕')}.png"
        Image.fromarray(np.zeros((32, 32), np.uint8) + 7).save(path)
    run = ["--model", f"{chain}/stage2", "--tokenizer", f"{chain}/vqgan", "--device", "cpu"]
    main(["report", str(tmp_path), *run])
    said = capsys.readouterr()
    assert shown(said.out) and shown(said.err)
    # Of the image, and of the answer that a model writes.
    main(["ask", str(next(tmp_path.iterdir())), "\x1b[31mIs there edema?", *run])
    said = capsys.readouterr()
    assert shown(said.out) and shown(said.err)
