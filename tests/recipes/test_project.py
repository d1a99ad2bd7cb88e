"""A project folder: `mavilt init`, and the literal commands in it and elsewhere."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import yaml
from one_node import missing, slurm
from words import mavilt

from mavilt_pl.cli import main
from mavilt_pl.config_files import config_text
from mavilt_pl.errors import UserError
from mavilt_pl.project import find_project

COMMANDS = (
    "prepare",
    "fit --config encoder.yaml",
    "fit --config judge.yaml",
    "fit --config vqgan.yaml",
    "tokenize",
    "fit --config stage1.yaml",
    "fit --config stage2.yaml",
    "test --config stage2.yaml",
)


@pytest.fixture(scope="module")
def downloads(chain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two downloads of phantoms and a backbone, which have this folder in common."""
    folder = tmp_path_factory.mktemp("downloads")
    shutil.copytree(chain / "backbone/backbone", folder / "model")
    sizes = "--studies 60 --size 64 --workers 2"
    mavilt(f"phantom mimic {sizes} --validate 8 --test 8", folder / "mimic")
    mavilt("phantom indiana --studies 60 --size 64", folder / "iu")
    return folder


@pytest.fixture
def project(downloads: Path, chain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of small networks, the working directory."""
    folder = tmp_path / "project"
    both = ["--data", str(downloads / "mimic"), "--data", str(downloads / "iu")]
    backbone = ["--backbone", str(downloads / "model")]
    assert main(["init", str(folder), *both, *backbone, "--size", "64", "--smoke"]) == 0
    for config in folder.glob("*.yaml"):
        text = config.read_text()
        # The networks of the demo: those of the shipped configs take minutes a step here.
        for name in ("encoder", "vqgan", "stage1", "stage2"):
            text = text.replace(f"extends: {name}.yaml", f"extends: demo/{name}.yaml")
        config.write_text(text)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return folder


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_literal_command_works(
    project: Path,
    downloads: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for command in COMMANDS:
        assert main(command.split()) == 0, f"{command}: {capsys.readouterr().err}"
    found = find_project(project)
    assert found is not None
    image = next(found.sources["phantom_mimic-cxr-jpg"].folder.rglob("*.jpg"))
    capsys.readouterr()
    assert main(["report", str(image)]) == 0
    assert main(["ask", str(image), "Is there a pneumothorax?"]) == 0
    assert main(["results", "."]) == 0
    page = (project / "report.html").read_text()
    # Both sources, and the controls that need a judge.
    assert "indiana" in page
    assert "nearest training report" in page
    # The rest of the recipe finds nothing to train anew: a hand-made run is no record of a recipe.
    assert main(["run", "--dry-run"]) == 0
    assert "mavilt fit --config stage1.yaml" in capsys.readouterr().out
    # The whole folder on another machine: one key to change.
    moved = tmp_path / "moved"
    shutil.copytree(project, moved / "project", symlinks=True)
    assert found.texts["root"] == str(downloads)
    shutil.copytree(downloads, moved / "data")
    places = moved / "project/mavilt.yaml"
    places.write_text(places.read_text().replace(str(downloads), str(moved / "data")))
    monkeypatch.chdir(moved / "project")
    for command in ("prepare", "tokenize", "test --config stage2.yaml"):
        assert main(command.split()) == 0, f"{command}: {capsys.readouterr().err}"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_one_command_does_all_of_it(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run"]) == 0, capsys.readouterr().err
    assert (project / "report.html").is_file()
    capsys.readouterr()
    assert main(["run"]) == 0
    assert "stage2: done before" in capsys.readouterr().err
    # An edited config makes its step stale, and what comes after it.
    config = project / "stage2.yaml"
    config.write_text(config.read_text().replace("max_steps: 10", "max_steps: 11"))
    assert main(["run", "--dry-run"]) == 0


@pytest.mark.parametrize(
    "command", [*COMMANDS, "report x.png", "run", "submit --partition p --time 1"]
)
def test_elsewhere_one_message_says_what_is_missing(
    command: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(command.split()) == 1
    (message,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert "mavilt init DIR --data" in message
    assert list(tmp_path.iterdir()) == []


def test_jobs_ask_for_what_the_project_has(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = project / "mavilt.yaml"
    places.write_text(places.read_text().replace("gpus: 0", "gpus: 2"))
    assert main(["submit", "--partition", "p", "--time", "1:00:00", "--dry-run"]) == 0
    scripts = capsys.readouterr().out
    assert scripts.count("--gres=gpu:2") + scripts.count("--gpus-per-node=2") >= 5
    # Only the VQ-GAN steps two optimizers.
    for script in scripts.split("# ---- ")[1:]:
        if "fit --config" in script:
            unused = "ddp_find_unused_parameters_true" in script
            assert unused == ("vqgan.yaml" in script.split("mavilt_pl.cli")[0]), script[:60]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--data {empty}", "looks like none of the datasets"),
        ("--data {empty}/nowhere", "is not a folder"),
        ("", "no download is named"),
        ("--data {iu} --backbone {empty}", "has no config.json"),
        ("--data {iu} --indiana {iu}", "two downloads are phantom_indiana"),
        ("--data {iu} --size 3", "expected 16 or more"),
        ("--data {half}", "none of the first 60 studies has an image"),
    ],
)
def test_what_cannot_become_a_project(
    words: str,
    message: str,
    downloads: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "empty").mkdir()
    half = tmp_path / "half"
    shutil.copytree(downloads / "iu", half)
    shutil.rmtree(half / "NLMCXR_png")
    places = {"empty": tmp_path / "empty", "iu": downloads / "iu", "half": half}
    given = [word.format(**places) for word in words.split()]
    if "--backbone" not in given:
        given += ["--backbone", str(downloads / "model")]
    out = tmp_path / "project"
    assert main(["init", str(out), *given]) == 1
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_a_project_is_not_written_over(
    project: Path, downloads: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--data", str(downloads / "iu"), "--backbone", str(downloads / "model")]
    assert main(["init", str(project), *words]) == 1
    assert "is a project already" in capsys.readouterr().err
    other = tmp_path / "other"
    other.mkdir()
    (other / "README.md").write_text("mine")
    assert main(["init", str(other), *words]) == 1
    assert "is there already" in capsys.readouterr().err
    assert [path.name for path in other.iterdir()] == ["README.md"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("sources:", "sauces:", "unknown key sauces"),
        ("size: 64", "size: large", "size is 'large'; expected a whole number"),
        ("reader:", "raeder:", "expected reader and folder"),
        ("${root}", "${rot}", "${rot} is not known"),
        ("    folder:", "    repots: a.zip\n    folder:", "has no option repots; it has"),
        ("size: 64", "size: 64\n  : [", "is not readable"),
    ],
)
def test_a_key_edited_to_nonsense(
    old: str, new: str, message: str, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = project / "mavilt.yaml"
    places.write_text(places.read_text().replace(old, new, 1))
    assert main(["prepare"]) == 1
    assert message in capsys.readouterr().err
    assert not (project / "corpora").exists()


def test_configs_extend_shipped_ones(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    merged = yaml.safe_load(config_text(Path("stage2.yaml")) or "")
    base = yaml.safe_load((Path(__file__).parents[2] / "configs/demo/stage2.yaml").read_text())
    # Of the shipped config, of this one, and of mavilt.yaml.
    assert merged["model"]["class_path"] == base["model"]["class_path"]
    assert merged["model"]["init_args"]["init_from"] == "runs/stage1/checkpoints/last.ckpt"
    assert os.path.isdir(merged["model"]["init_args"]["backbone"])
    assert merged["trainer"]["callbacks"][-1]["class_path"].endswith("SynthesisMetrics")
    # A config that stands alone is left to Lightning's parser.
    alone = project / "alone.yaml"
    alone.write_text("trainer: {max_steps: 1}\n")
    assert config_text(alone) is None
    alone.write_text("extends: nowhere.yaml\n")
    with pytest.raises(UserError, match=r"extends nowhere.yaml is no shipped config"):
        config_text(alone)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="belongs to a project: run the command in"):
        config_text(project / "stage1.yaml")


def test_configs_are_listed_shown_and_copied(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["configs"]) == 0
    listed = capsys.readouterr().out
    assert "recipes/demo.yaml" in listed
    assert "stage1.yaml" in listed
    # The local one, merged with the shipped one and with its places filled in.
    assert main(["configs", "show", "stage1.yaml"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["model"]["init_args"]["tokens"].startswith("tokens/")
    assert "extends" not in shown
    assert main(["configs", "cp", "debug/limit.yaml", "mine.yaml"]) == 0
    assert (project / "mine.yaml").read_text().startswith("#")
    assert main(["configs", "cp", "debug/limit.yaml", "mine.yaml"]) == 1
    assert "is there already" in capsys.readouterr().err
    assert main(["configs", "show"]) == 1
    assert "needs the name of a config" in capsys.readouterr().err
    assert main(["configs", "show", "nowhere"]) == 1
    assert "shipped are" in capsys.readouterr().err


def test_what_no_gpu_can_hold_is_not_submitted(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A backbone of 7 B: sharded where full tuning with DDP does not fit, else refused."""
    shape = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32}
    shape |= {"num_attention_heads": 32, "vocab_size": 32000, "max_position_embeddings": 4096}
    model = project / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({"model_type": "llama", **shape}))
    places = project / "mavilt.yaml"
    text = places.read_text().replace("gpus: 0", "gpus: 8")
    places.write_text(re.sub("backbone: .*", f"backbone: {model}", text))
    for name in ("stage1.yaml", "stage2.yaml"):
        config = project / name
        text = config.read_text().replace("extends: demo/", "extends: ")
        assert "    tokens:" in text
        checkpointing = "    tuning: {gradient_checkpointing: true}\n    tokens:"
        config.write_text(text.replace("    tokens:", checkpointing))
    command = ["submit", "--partition=p", "--time=1-0", "--dry-run"]
    assert main(command) == 0
    out, err = capsys.readouterr()
    assert out.count("--trainer.strategy=fsdp2") == 2 and err.count("submitted with fsdp2") == 2
    # The test of a sharded training is not sharded.
    assert out.count("--trainer.strategy=ddp") == 5
    # The smaller card: refused, before any script is written.
    places.write_text(places.read_text().replace("gpu_memory: 80", "gpu_memory: 24"))
    assert main(command) == 1
    out, err = capsys.readouterr()
    message = err.strip().splitlines()[-1]
    assert "step stage1 needs" in message and "of a GPU, which has 24" in message
    assert not out
    # A strategy that the config names is kept.
    config = project / "stage1.yaml"
    config.write_text(config.read_text().replace("trainer:", "trainer:\n  strategy: fsdp2"))
    assert main([*command, "--gpu-memory=81", "--until=stage1"]) == 0
    assert "--trainer.strategy=fsdp2" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(bool(missing()), reason=f"needs {', '.join(missing())}")
def test_a_project_runs_as_jobs_of_two_tasks(
    project: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """On a real SLURM of one node: twelve jobs, each after what it reads, to the page."""
    with slurm(tmp_path_factory.mktemp("slurm")) as cluster:
        for name, value in cluster.environment.items():
            monkeypatch.setenv(name, value)
        capsys.readouterr()
        words = ["submit", "--partition=cpu", "--time=20", "--tasks=2", "--cpus=1"]
        assert main(words) == 0
        jobs = [line.split()[:2] for line in capsys.readouterr().out.splitlines()]
        assert len(jobs) == 12
        for job, step in jobs:
            state = cluster.wait(job, "COMPLETED", "FAILED", "CANCELLED", seconds=600)
            logs = [path.read_text()[-2000:] for path in (project / "slurm").glob(f"{step}-*.log")]
            assert state == "COMPLETED", f"{step}: {logs}"
    assert (project / "report.html").is_file()
    (log,) = (project / "slurm").glob("stage1-*.log")
    assert "MEMBER: 2/2" in log.read_text()
