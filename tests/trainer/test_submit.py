"""`mavilt submit` with a SLURM of three shell scripts: what is submitted, after what, and that the
jobs do the steps.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import yaml

from mavilt_pl.cli import main


def recipe(path: Path) -> Path:
    steps = [
        {
            "name": "phantom",
            "run": "phantom mimic {out}/raw --studies 30 --validate 4 --test 4 --size 48 --workers "
            "1",
            "writes": "raw",
        },
        {
            "name": "prepare",
            "run": "prepare mimic-cxr-jpg {out}/raw --out {out}/corpus --size 32 --workers 1",
            "reads": ["raw"],
            "writes": "corpus",
        },
        {
            "name": "vqgan",
            "run": "fit --config demo/vqgan.yaml --trainer.default_root_dir {out}/vqgan "
            "--ckpt_path last",
            "reads": ["corpus"],
            "writes": "vqgan",
        },
        {
            "name": "test",
            "run": "test --config demo/vqgan.yaml --ckpt_path {out}/vqgan/checkpoints/last.ckpt",
            "reads": ["corpus", "vqgan"],
            "writes": "vqgan/test",
        },
    ]
    path.write_text(yaml.safe_dump({"steps": steps}))
    return path


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Numbers jobs from 101 on, knows one partition, and runs what `srun` is given. Its calls stand
    in the file.
    """
    folder, calls = tmp_path / "bin", tmp_path / "calls"
    folder.mkdir()
    scripts = {
        "sbatch": f'grep -q "partition=gpu$" "${{@: -1}}" || '
        '{ echo "sbatch: error: invalid partition specified: nope" >&2; '
        'echo "sbatch: error: Batch job submission failed: Invalid partition name specified" >&2; '
        f'exit 1; }}\necho "$@" >> {calls}\necho $((100 + $(wc -l < {calls})))',
        "srun": 'while [[ "$1" == --* ]]; do shift; done\nexec "$@"',
    }
    for name, text in scripts.items():
        (folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return calls


def test_jobs_wait_for_what_they_read_and_scripts_say_what_is_asked(
    tmp_path: Path, cluster: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    size = ["--gpus", "4", "--nodes", "2", "--sbatch=--account=abc"]
    command = [
        "submit",
        str(recipe(tmp_path / "r.yaml")),
        "--out",
        str(out),
        "--partition=gpu",
        "--time=1:00:00",
        *size,
    ]
    assert main([*command, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("#!/bin/bash") == 4 and not out.exists() and not cluster.exists()

    assert main(command) == 0
    assert capsys.readouterr().out.splitlines() == [
        "101 phantom ",
        "102 prepare after 101",
        "103 vqgan after 102",
        "104 test after 102 103",
    ]
    waits = [
        [word for word in line.split() if "dependency" in word]
        for line in cluster.read_text().splitlines()
    ]
    assert waits == [
        [],
        ["--dependency=afterok:101"],
        ["--dependency=afterok:102"],
        ["--dependency=afterok:102:103"],
    ]
    texts = {
        name: (out / "slurm" / f"{name}.sbatch").read_text()
        for name in ("prepare", "vqgan", "test")
    }
    for text in texts.values():
        assert (
            text in shown
            and "#SBATCH --account=abc" in text
            and "#SBATCH --signal=USR1@300" in text
        )
        subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    assert "--nodes=2\n" in texts["vqgan"] and "--ntasks-per-node=4\n" in texts["vqgan"]
    assert "--trainer.devices=4 --trainer.num_nodes=2 --trainer.strategy=ddp" in texts["vqgan"]
    assert (
        "--gpus-per-node=4\n" in texts["test"]
        and "--trainer.devices=4 --trainer.num_nodes=2" in texts["test"]
    )
    assert (
        "gpus" not in texts["prepare"]
        and "--more" not in texts["prepare"]
        and "--nodes=1\n" in texts["prepare"]
    )
    assert "--array" not in texts["prepare"] and "prepare-%j.log" in texts["prepare"]

    assert main([*command, "--array=8", "--dry-run"]) == 0
    shown = capsys.readouterr().out.split("#!/bin/bash\n")
    assert ["#SBATCH --array=0-7\n" in text for text in shown[1:]] == [False, True, False, False]
    assert "prepare-%A_%a.log" in shown[2]
    assert main([*command[:6], "--tasks=2", "--dry-run"]) == 0
    shown = capsys.readouterr().out.split("#!/bin/bash\n")
    for text in shown[3:]:
        assert (
            "--ntasks-per-node=2\n" in text
            and "--trainer.devices=2 --trainer.num_nodes=1 --trainer.s" in text
        )


@pytest.mark.slow
def test_the_jobs_do_the_steps_and_done_ones_are_not_submitted(
    tmp_path: Path, cluster: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    command = [
        "submit",
        str(recipe(tmp_path / "r.yaml")),
        "--out",
        str(out),
        "--partition=gpu",
        "--time=5",
        "--until=prepare",
    ]
    assert main(command) == 0
    early = subprocess.run(
        ["bash", str(out / "slurm" / "prepare.sbatch")], capture_output=True, text=True
    )
    assert (
        early.returncode == 1
        and "which is missing or stale: run step phantom first" in early.stderr
    )
    for name in ("phantom", "prepare"):
        subprocess.run(
            ["bash", str(out / "slurm" / f"{name}.sbatch")], check=True, capture_output=True
        )
    assert (out / "corpus" / "corpus.json").exists()
    capsys.readouterr()
    assert main(command) == 0
    assert (
        "every step is done" in capsys.readouterr().err
        and len(cluster.read_text().splitlines()) == 2
    )
    assert main(["run", *command[1:4], "--until=prepare"]) == 0
    assert capsys.readouterr().err.count("done before") == 2


def test_no_slurm_and_a_wrong_partition_are_reported(
    tmp_path: Path,
    cluster: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command = [
        "submit",
        str(recipe(tmp_path / "r.yaml")),
        "--out",
        str(tmp_path / "run"),
        "--time=5",
    ]
    assert main([*command, "--partition=nope"]) == 1
    said = capsys.readouterr().err
    assert (
        said.startswith("mavilt: SLURM refused step phantom (")
        and "invalid partition specified: nope" in said
    )
    assert said.count("\n") == 1 and "sbatch: error" not in said
    monkeypatch.setenv("PATH", str(tmp_path))
    assert (
        main([*command, "--partition=gpu"]) == 1
        and "no sbatch on the PATH" in capsys.readouterr().err
    )


@pytest.mark.parametrize("option", ["--partition", "--time", "--sbatch", "--out"])
def test_a_line_break_cannot_add_a_command(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A batch script is a shell script: a line that begins with anything but # runs."""
    words = {"--partition": "cpu", "--time": "5", "--out": str(tmp_path / "run")}
    words[option] = f"{words.get(option, '--account=a')}\ntouch {tmp_path}/entered"
    command = ["submit", "demo", "--dry-run"]
    for name, value in words.items():
        command.append(f"{name}={value}")
    assert main(command) == 1
    assert "found a line break" in capsys.readouterr().err


def test_words_of_a_recipe_stay_in_their_comment(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        """name: x
steps:
- {name: a, run: "phantom mimic 'x\\ntouch entered' $(touch entered) {out}", writes: a}
"""
    )
    command = ["submit", str(path), "--dry-run", "--partition=cpu", "--time=5"]
    assert main([*command, f"--out={tmp_path / 'run'}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(line.startswith("#") for line in lines if "touch" in line)
    assert any("touch" in line for line in lines)
