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
from mavilt_pl.recipes import load


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


def commands(capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    assert main(["run", *words, "--out", "/nowhere", "--dry-run"]) == 0
    return capsys.readouterr().out.splitlines()


def test_settings_change_what_let_says_and_only_the_steps_that_use_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = recipe(tmp_path / "r.yaml")
    content = yaml.safe_load(path.read_text())
    content["let"] = {"size": 32, "sized": "--size {size}"}
    content["steps"][1]["run"] = content["steps"][1]["run"].replace("--size 32", "{sized}")
    path.write_text(yaml.safe_dump(content))
    command = ["run", str(path), "--out", str(tmp_path / "run")]
    assert main(command) == 0 and ran(capsys.readouterr().err) == ["phantom", "prepare"]
    assert main([*command, "--set", "size=16"]) == 0 and ran(capsys.readouterr().err) == ["prepare"]
    assert json.loads((tmp_path / "run/corpus/corpus.json").read_text())["size"] == 16
    assert main([*command, "--set", "size=16"]) == 0 and ran(capsys.readouterr().err) == []
    for wrong in ("sizes=16", "size"):
        assert main([*command, "--set", wrong]) == 1
        assert "KEY is one of size, sized" in capsys.readouterr().err


def test_a_step_for_each_value(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "r.yaml"
    each = {"arm": ["a", "b"], "seed": "{seeds}"}
    steps = [
        {"name": "fit-{arm}-{seed}", "run": "phantom mimic {out}/{arm}/{seed} {again}", "writes": "{arm}/{seed}", "for": each},
        {"name": "look-{arm}", "run": "results {out}/{arm}", "reads": ["{arm}/*"], "writes": "{arm}.html", "for": {"arm": ["a", "b"]}},
        {"name": "all", "run": "results {out} --seed {seed}", "reads": ["?.html"], "writes": "all.html"},
    ]  # fmt: skip
    content = {"let": {"seeds": "1,2", "again": "--seed {seed}"}, "steps": steps}
    path.write_text(yaml.safe_dump(content))
    said = commands(capsys, str(path), "--seed", "7", "--set", "seeds=3,4")
    assert said[:2] == [f"mavilt phantom mimic /nowhere/a/{seed} --seed {seed}" for seed in (3, 4)]
    assert said[4:] == ["mavilt results /nowhere/a", "mavilt results /nowhere/b", "mavilt results /nowhere --seed 7"]
    assert [step["reads"] for step in load(str(path))["steps"][4:]] == [
        ["a/1", "a/2"],
        ["b/1", "b/2"],
        ["a.html", "b.html"],
    ]
    steps[0]["writes"] = "{arm}"
    path.write_text(yaml.safe_dump(content))
    assert main(["run", str(path)]) == 1 and "fit-a-2 writes a, and so does a step before" in capsys.readouterr().err
