"""`mavilt run`: skips what is done, redoes what is stale, goes on after a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from mavilt_pl.cli import main


def recipe(path: Path, studies: int = 30, size: int = 32) -> Path:
    steps = [
        {
            "name": "phantom",
            "run": f"phantom mimic {{out}}/raw --studies {studies} --validate 4 --test 4 --size 48 --seed {{seed}} --workers 1",
            "writes": "raw",
        },
        {
            "name": "prepare",
            "run": f"prepare mimic-cxr-jpg {{out}}/raw --out {{out}}/corpus --size {size} --workers 1",
            "reads": ["raw"],
            "writes": "corpus",
        },
    ]
    path.write_text(yaml.safe_dump({"steps": steps}))
    return path


def ran(err: str) -> list[str]:
    return [line.split()[2] for line in err.splitlines() if line.startswith("$ mavilt")]


def test_done_steps_are_skipped_and_stale_ones_redone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    command = ["run", str(recipe(tmp_path / "r.yaml")), "--out", str(out)]
    assert main(command) == 0 and ran(capsys.readouterr().err) == ["phantom", "prepare"]
    first = json.loads((out / "corpus" / "corpus.json").read_text())["fingerprint"]
    assert main(command) == 0 and ran(capsys.readouterr().err) == []
    recipe(tmp_path / "r.yaml", size=16)
    assert main(command) == 0 and ran(capsys.readouterr().err) == ["prepare"]
    recipe(tmp_path / "r.yaml", studies=31, size=32)  # what reads the changed step is stale too
    assert main(command) == 0 and ran(capsys.readouterr().err) == ["phantom", "prepare"]
    recipe(tmp_path / "r.yaml")
    assert main(command) == 0
    assert json.loads((out / "corpus" / "corpus.json").read_text())["fingerprint"] == first


def test_mistakes_in_a_recipe_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("steps: [{name: a, run: phantom, writes: x, reads: [y]}]")
    assert main(["run", str(path)]) == 1 and "no earlier step writes" in capsys.readouterr().err
    path.write_text("steps: [{name: a, rum: phantom, writes: x}]")
    assert main(["run", str(path)]) == 1 and "expected name, run, writes" in capsys.readouterr().err
    assert main(["run", str(recipe(path)), "--until", "nothing"]) == 1 and "no such step" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("after", [2.5, 4.0])
def test_killed_anywhere_it_goes_on_to_the_same_end(tmp_path: Path, after: float) -> None:
    command = [sys.executable, "-m", "mavilt_pl.cli", "run", str(recipe(tmp_path / "r.yaml", studies=400)), "--out"]
    subprocess.run([*command, str(tmp_path / "whole")], check=True, capture_output=True)
    killed = subprocess.Popen(
        [*command, str(tmp_path / "killed")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    time.sleep(after)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    subprocess.run([*command, str(tmp_path / "killed")], check=True, capture_output=True)
    corpora = [json.loads((tmp_path / name / "corpus" / "corpus.json").read_text()) for name in ("whole", "killed")]
    assert corpora[0]["fingerprint"] == corpora[1]["fingerprint"]


def test_two_on_one_folder_the_second_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import fcntl

    out = tmp_path / "run"
    out.mkdir()
    with (out / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert main(["run", str(recipe(tmp_path / "r.yaml")), "--out", str(out)]) == 1
    assert "in use by another" in capsys.readouterr().err


def test_the_shipped_demo_is_whole(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "demo", "--out", "/nowhere", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert said.count("mavilt fit") == 6 and said.count("mavilt test") == 2
