"""The documents' code: Python runs, and commands run or are at least understood as they stand."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

# The fixture of a model of two views.
from test_several_views import made  # noqa: F401

from mavilt_pl.cli import TRAINING_VERBS, VERBS, main
from mavilt_pl.inference.mavilt import MAViLT

ROOT = Path(__file__).parents[2]
PAGES = ["README.md", "EXPERIMENTS.md", "benchmarks/README.md"]
PAGES += [f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
# These need neither data of others nor hours: they run.
RUN = ("report", "ask", "draw", "export", "results", "score", "configs")
# Words of commands that run elsewhere: weights of others, more runs, a model of two views.
ELSEWHERE = ("--chexbert", "--radeval", "--compare", "--lateral", "--export", "theirs.csv")
COMMANDS = ("mavilt", "make", "pip", "python", "cd")
ELIDED = re.compile(r"…|\bSEED\b")  # words that the reader fills in


def blocks(page: str, language: str) -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return [content for name, content in BLOCK.findall(text) if name == language]


@pytest.fixture
def folder(
    chain: Path,
    corpus_path: Path,
    mimic_root: Path,
    made: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """What the documents name: runs, a corpus, codes and images."""
    from test_odd_images import chest, dicom

    (tmp_path / "runs").mkdir()
    for name in ("encoder", "stage1", "stage2", "vqgan"):
        shutil.copytree(chain / name, tmp_path / "runs" / name)
    (tmp_path / "runs/demo").symlink_to(tmp_path / "runs")
    (tmp_path / "runs/two-views").symlink_to(made / "stage2")
    for name in ("corpora", "tokens", "scans", "more"):
        (tmp_path / name).mkdir()
    (tmp_path / "corpora/mimic").symlink_to(corpus_path)
    (tmp_path / "tokens/mimic").symlink_to(chain / "tokens")
    for name in ("image.dcm", "1.dcm", "2.dcm"):
        dicom(chest()).save_as(tmp_path / name)
    for name in ("other.png", "scans/a.png", "more/b.png"):
        Image.fromarray(chest()).save(tmp_path / name)
    (tmp_path / "broken.png").write_bytes(b"")
    raw = tmp_path / "runs/raw/mimic/files"
    raw.mkdir(parents=True)
    Image.fromarray(chest()).save(raw / "a.png")
    made_by = {
        **{"checkpoint_sha256": "ab", "seed": 1, "commit": None, "versions": {"torch": "2"}},
        **{"training": {"steps": 4, "seed": 1}, "config": {"data": {}}, "decoding": {}},
    }
    results = {"figures": [], "made_by": made_by}
    for stage in ("stage2", "vqgan"):
        test = tmp_path / "runs" / stage / "test"
        test.mkdir(exist_ok=True)
        (test / "results.json").write_text(json.dumps(results))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")])
def test_python_runs(page: str, folder: Path) -> None:
    """The blocks of a page run one after the other, as a reader would type them."""
    names: dict[str, Any] = {"__name__": "block"}
    for block in blocks(page, "python"):
        exec(compile(block, page, "exec"), names)
    assert not isinstance(names.get("model"), MAViLT) or names["model"].sha256


def test_the_notebook_runs(folder: Path) -> None:
    notebook = json.loads((ROOT / "docs/tutorial.ipynb").read_text(encoding="utf-8"))
    names: dict[str, Any] = {"__name__": "cell"}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            exec(compile("".join(cell["source"]), "cell", "exec"), names)
    assert names["figure"].axes


def commands(page: str, folder: Path) -> list[list[str]]:
    """The commands of a page with their variables filled in, as bash understands them."""
    lines = []
    for block in blocks(page, "console"):
        for line in re.sub(r"\\\n\s*", " ", block).splitlines():
            if line.startswith("$ ") and not ELIDED.search(line.partition(" #")[0]):
                lines.append(line.removeprefix("$ "))
    # Each command becomes a function that prints its words.
    functions = [f"{name}() {{ printf '%s\\0' {name} \"$@\"; echo; }}" for name in COMMANDS]
    script = "\n".join([*functions, *lines])
    done = subprocess.run(
        ["bash", "-c", script], cwd=folder, capture_output=True, text=True, check=True
    )
    assert not done.stderr
    return [line.split("\0")[:-1] for line in done.stdout.splitlines()]


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "console")])
def test_commands_are_understood(
    page: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in commands(page, folder):
        name, *words = command
        if name == "make":
            assert f"\n{words[0]}:" in (ROOT / "Makefile").read_text()
        elif name == "python" and words[0].startswith("benchmarks"):
            assert (ROOT / words[0]).is_file()
        elif name == "mavilt" and words[0] in TRAINING_VERBS:
            with contextlib.suppress(SystemExit):
                assert main([*words, "--print_config"]) == 0, command
            assert "class_path" in capsys.readouterr().out, command
        elif name == "mavilt" and words[0] in RUN and not {*words} & {*ELSEWHERE}:
            if "--model" not in words and words[0] in ("report", "ask", "draw"):
                words += ["--model", "runs/stage2"]
            if words[0] == "score" and not Path(words[1]).exists():
                continue
            assert main(words) in (0, 1), command
            assert "Traceback" not in capsys.readouterr().err
        elif name == "mavilt":
            understood(words)


def understood(words: list[str]) -> None:
    """Parse the words of a command; argparse exits if it does not know one."""
    verb = words[0]
    module = importlib.import_module(f"mavilt_pl.cli.{verb.replace('-', '_')}")
    parser = argparse.ArgumentParser(prog=f"mavilt {verb}")
    assert verb in VERBS
    module.add_arguments(parser)
    if getattr(module, "TAKES_FIT_ARGUMENTS", False):
        parser.parse_known_args(words[1:])
    elif getattr(module, "MAY_STAND_ALONE", False):
        parser.parse_intermixed_args(words[1:])
    else:
        parser.parse_args(words[1:])


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    """Every link between pages, and to files above them, leads somewhere."""
    pytest.importorskip("mkdocs")
    pytest.importorskip("material")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "use/index.html").read_text(encoding="utf-8")
    assert "Use a trained model" in page and "fonts.googleapis" not in page
