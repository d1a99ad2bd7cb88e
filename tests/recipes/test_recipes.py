"""`mavilt run`: skips what is done, redoes what is stale, continues after a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from mavilt_pl.cli import main
from mavilt_pl.config_files import CONFIGS
from mavilt_pl.recipes.recipe import load_recipe


def recipe(path: Path, studies: int = 30, size: int = 32) -> Path:
    steps = [
        {
            "name": "phantom",
            "run": f"phantom mimic {{out}}/raw --studies {studies} --validate 4 --test 4 --size 48 "
            f"--seed {{seed}} --workers 1",
            "writes": "raw",
        },
        {
            "name": "prepare",
            "run": f"prepare mimic-cxr-jpg {{out}}/raw --out {{out}}/corpus --size {size} "
            f"--workers 1",
            "reads": ["raw"],
            "writes": "corpus",
        },
    ]
    path.write_text(yaml.safe_dump({"steps": steps}))
    return path


def ran(err: str) -> list[str]:
    return [line.split()[2] for line in err.splitlines() if line.startswith("$ mavilt")]


@pytest.mark.slow
def test_done_steps_are_skipped_and_stale_ones_redone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
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
    assert (
        main(["run", str(recipe(path)), "--until", "nothing"]) == 1
        and "no such step" in capsys.readouterr().err
    )


@pytest.mark.slow
@pytest.mark.parametrize("after", [2.5, 4.0])
def test_killed_anywhere_it_ends_the_same(tmp_path: Path, after: float) -> None:
    command = [
        sys.executable,
        "-m",
        "mavilt_pl.cli",
        "run",
        str(recipe(tmp_path / "r.yaml", studies=400)),
        "--out",
    ]
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
    corpora = [
        json.loads((tmp_path / name / "corpus" / "corpus.json").read_text())
        for name in ("whole", "killed")
    ]
    assert corpora[0]["fingerprint"] == corpora[1]["fingerprint"]


def test_two_on_one_folder_the_second_refuses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
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


@pytest.mark.slow
def test_settings_change_params_and_only_the_steps_that_use_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = recipe(tmp_path / "r.yaml")
    content = yaml.safe_load(path.read_text())
    content["params"] = {"size": 32, "sized": "--size {size}"}
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
        {
            "name": "fit-{arm}-{seed}",
            "run": "phantom mimic {out}/{arm}/{seed} {again}",
            "writes": "{arm}/{seed}",
            "for": each,
        },
        {
            "name": "look-{arm}",
            "run": "results {out}/{arm}",
            "reads": ["{arm}/*"],
            "writes": "{arm}.html",
            "for": {"arm": ["a", "b"]},
        },
        {
            "name": "all",
            "run": "results {out} --seed {seed}",
            "reads": ["?.html"],
            "writes": "all.html",
        },
    ]
    content = {"params": {"seeds": "1,2", "again": "--seed {seed}"}, "steps": steps}
    path.write_text(yaml.safe_dump(content))
    said = commands(capsys, str(path), "--seed", "7", "--set", "seeds=3,4")
    assert said[:2] == [f"mavilt phantom mimic /nowhere/a/{seed} --seed {seed}" for seed in (3, 4)]
    assert said[4:] == [
        "mavilt results /nowhere/a",
        "mavilt results /nowhere/b",
        "mavilt results /nowhere --seed 7",
    ]
    assert [step.reads for step in load_recipe(str(path)).steps[4:]] == [
        ("a/1", "a/2"),
        ("b/1", "b/2"),
        ("a.html", "b.html"),
    ]
    steps[0]["writes"] = "{arm}"
    path.write_text(yaml.safe_dump(content))
    assert (
        main(["run", str(path)]) == 1
        and "fit-a-2 writes a, and so does a step before" in capsys.readouterr().err
    )


def test_a_step_is_spared_where_the_user_brings_what_it_makes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    own = [
        "--set",
        "corpus=/mine",
        "--set",
        "config=vqgan.yaml",
        "--set",
        "phi=",
        "--set",
        "judge=",
    ]
    said = commands(capsys, "tokenizer-quality", *own)
    assert [line.split()[1] for line in said] == ["fit", "test", "results"]
    assert all("[/mine]" in line and "vqgan.yaml" in line for line in said[:2])
    assert not any("encoder" in line or "judge" in line for line in said)
    whole = commands(capsys, "tokenizer-quality")
    assert [line.split()[1] for line in whole] == [
        "phantom",
        "prepare",
        "fit",
        "fit",
        "fit",
        "test",
        "results",
    ]


def test_the_shipped_ablation_is_whole(capsys: pytest.CaptureFixture[str]) -> None:
    """Two arms of three seeds, alike in every word but λ_grad."""
    said = commands(capsys, "ablation-gradient")
    fits = [line for line in said if "fit --config demo/vqgan.yaml" in line]
    assert len(fits) == 6 and sum("lambda_grad 1 " in line for line in fits) == 3
    assert {
        line.replace("lambda_grad 1 ", "lambda_grad 0 ").replace("lambda-1", "lambda-0")
        for line in fits
    } == {line for line in fits if "lambda_grad 0 " in line}
    assert sum("--config demo/stage1.yaml" in line for line in said) == 12
    assert (
        sum(
            "--compare" in line and line.endswith("--seeds 1,2,3 --names with,without")
            for line in said
        )
        == 2
    )


@pytest.mark.slow
def test_the_ablation_walks_to_its_page(tmp_path: Path) -> None:
    settings = {"seeds": 1, "sizes": "--studies 80 --validate 7 --test 11", "steps": 3}
    settings |= {"encoder_steps": 2, "backbone_steps": 2, "language_steps": 2}
    words = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    command = [
        sys.executable,
        "-m",
        "mavilt_pl.cli",
        "run",
        "ablation-gradient",
        "--out",
        str(tmp_path),
        *words,
    ]
    subprocess.run(
        command, check=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    content = json.loads((tmp_path / "compare.json").read_text())
    assert (
        content["arms"] == {"with": ["lambda-1/1"], "without": ["lambda-0/1"]}
        and not content["left_out"]
    )
    found = {(row["task"], row["metric"]): row for row in content["rows"]}
    assert {
        ("tokenizer", "gradient_psnr"),
        ("tokenizer", "fid_cxr"),
        ("synthesis", "fid_cxr"),
    } <= found.keys()
    assert all(row["n"] == 11 for row in found.values() if row["metric"] in ("psnr", "fid_cxr"))
    original, made = (
        found["tokenizer", name]["cells"] for name in ("original_auroc_macro", "gradient_psnr")
    )
    assert original[0]["mean"] == original[1]["mean"] and made[0]["mean"] != made[1]["mean"]
    page = (tmp_path / "compare.html").read_text()
    assert (
        page.count("<figcaption>without</figcaption>") == 16 and "Generated from the text" in page
    )
    assert (tmp_path / "tokenizers" / "compare.html").exists()


def test_a_recipe_extends_another(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = recipe(tmp_path / "first.yaml"), tmp_path / "second.yaml"
    content = yaml.safe_load(first.read_text())
    content["params"] = {"size": 32, "sized": "--size {size}"}
    content["steps"][1]["run"] = content["steps"][1]["run"].replace("--size 32", "{sized}")
    first.write_text(yaml.safe_dump(content))
    mine = {
        "extends": {"recipe": str(first), "until": "prepare"},
        "params": {"size": 16},
        "steps": [
            {"name": "look", "run": "results {out} {sized}", "reads": ["corpus"], "writes": "x"}
        ],
    }
    second.write_text(yaml.safe_dump(mine))
    said = commands(capsys, str(second))
    assert [line.split()[1] for line in said] == ["phantom", "prepare", "results"]
    assert "--size 16" in said[1] and said[2].endswith("--size 16")  # one's own words come first
    assert "--size 8" in commands(capsys, str(second), "--set", "size=8")[1]
    for wrong, words in (
        (f"{{recipe: {first}, until: prepared}}", "no step prepared; it has phantom, prepare"),
        ("demo", "expected {recipe"),
    ):
        second.write_text(yaml.safe_dump(mine | {"extends": yaml.safe_load(wrong)}))
        assert main(["run", str(second)]) == 1 and words in capsys.readouterr().err


def test_the_language_recipes_are_whole(capsys: pytest.CaptureFixture[str]) -> None:
    """Arms alike in every word but what is asked about."""
    said = commands(capsys, "ablation-regularization")
    second = [line for line in said if "fit --config demo/stage2.yaml" in line]
    assert (
        len(second) == 18
        and len(
            {
                line.replace(f"lambda-{w}", "").replace(f"lambda_reg {w} ", "")
                for w in ("0", "1e-3")
                for line in second
                if f"lambda-{w}/" in line
            }
        )
        == 3
    )
    assert said[-1].endswith(
        "--compare lambda-0 lambda-1e-5 lambda-1e-4 lambda-1e-3 lambda-1e-2 lambda-1e-1 --seeds "
        "1,2,3"
    )
    assert all("Forgetting" in line for line in said if line.startswith("mavilt test"))
    said = commands(capsys, "ablation-stages", "--set", "seeds=1")
    steps = [
        line.split("max_steps ")[1].split()[0] for line in said if "fit --config demo/stage" in line
    ]
    assert steps == ["400", "400", "1200", "1200", "1600", "1600"]
    said = commands(capsys, "baselines", "--set", "seeds=1")
    steps = [
        line.split("max_steps ")[1].split()[0] for line in said if "fit --config demo/stage" in line
    ]
    assert steps == ["400", "400", "1200", "1200", "1600"]  # each system takes 1,600
    assert sum("--data.replay" in line for line in said) == 1
    said = commands(capsys, "probing", "--set", "seeds=1")
    fits = [line for line in said if " fit " in line]
    assert len(fits) == 6 and not any("indiana" in line for line in fits)
    assert all(
        "[/nowhere/corpora/indiana]" in line for line in said if line.startswith("mavilt test")
    )


def small(chain: Path, corpus: Path, **more: Any) -> list[str]:
    """Settings that bring what the chain of this session has made, in place of the demo's, and two
    steps of each stage.
    """
    quiet = (
        "--data.batch_size 4 --trainer.enable_progress_bar false "
        "--trainer.enable_model_summary false"
    )
    caches = f"--data.tokens [{chain}/tokens] --model.init_args.tokens {chain}/tokens"
    settings = {
        "both": f"--data.corpora [{corpus}] --data.weights null {quiet}",
        "language": f"{caches} --model.init_args.backbone {chain}/backbone/backbone",
        "judge": f"--trainer.callbacks.judge {chain}/encoder/checkpoints/last.ckpt",
        "stage1_steps": 2,
        "stage2_steps": 2,
        **more,
    }
    return [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]


def forgetting(corpus: Path) -> str:
    return (
        f"--trainer.callbacks+=mavilt_pl.callbacks.Forgetting --trainer.callbacks.corpus {corpus}"
    )


def compared(out: Path) -> dict[tuple[str, str], Any]:
    """Cells of each figure of a comparison."""
    rows = json.loads((out / "compare.json").read_text())["rows"]
    return {(row["task"], row["metric"]): row["cells"] for row in rows if row["control"] is None}


@pytest.mark.slow
def test_the_sweep_of_the_drift_walks_to_its_page(
    chain: Path, corpus_path: Path, tmp_path: Path
) -> None:
    sweep = {
        "seeds": "1,2",
        "weights": "0,10",
        "arms": "lambda-0 lambda-10",
        "forgetting": forgetting(corpus_path),
    }
    assert (
        main(
            [
                "run",
                "ablation-regularization",
                "--out",
                str(tmp_path),
                *small(chain, corpus_path, **sweep),
            ]
        )
        == 0
    )
    found = compared(tmp_path)
    assert {
        ("report", "bleu_4"),
        ("report", "findings_f1_macro"),
        ("vqa", "accuracy"),
    } <= found.keys()
    after, before, ratio = (
        found["text", f"perplexity{name}"] for name in ("", "_before", "_ratio")
    )
    assert len({value for cell in before for value in cell["values"]}) == 1  # one backbone
    for a, b, r in zip(after, before, ratio):
        assert [x / y for x, y in zip(a["values"], b["values"])] == pytest.approx(r["values"])
        assert all(cell["low"] < cell["mean"] < cell["high"] for cell in (a, r))
    assert after[0]["values"] != after[1]["values"]


@pytest.mark.slow
def test_two_stages_against_joint_training_walks_to_its_page(
    chain: Path, corpus_path: Path, tmp_path: Path
) -> None:
    more = {
        "seeds": 1,
        "joint_steps": 4,
        "lambda_reg": 10,
        "replay": "",
        "forgetting": forgetting(corpus_path),
    }
    assert (
        main(["run", "ablation-stages", "--out", str(tmp_path), *small(chain, corpus_path, **more)])
        == 0
    )
    cells = compared(tmp_path)["text", "perplexity"]
    assert [cell["arm"] for cell in cells] == [
        "two stages",
        "joint",
        "two stages without L2",
        "joint without L2",
    ]
    assert len({cell["mean"] for cell in cells}) == 4
    steps = {
        arm: torch.load(tmp_path / arm / "1/stage2/checkpoints/last.ckpt", weights_only=True)[
            "global_step"
        ]
        for arm in ("joint-10", "two-stages-0")
    }
    assert steps == {"joint-10": 4, "two-stages-0": 2}
    assert (tmp_path / "compare.html").read_text().count("<circle") == 4 * 3


@pytest.mark.slow
def test_probing_walks_to_its_page(chain: Path, corpus_path: Path, tmp_path: Path) -> None:
    tested = f"--data.corpora [{corpus_path}] --data.tokens [{chain}/tokens]"
    more = {
        "seeds": 1,
        "tested": tested,
        "tokenizer": f"--trainer.callbacks.tokenizer {chain}/vqgan/checkpoints/last.ckpt",
    }
    assert main(["run", "probing", "--out", str(tmp_path), *small(chain, corpus_path, **more)]) == 0
    found = compared(tmp_path)
    assert {("report", "bleu_4"), ("vqa", "accuracy"), ("synthesis", "fid_cxr")} <= found.keys()
    assert [cell["arm"] for cell in found["vqa", "accuracy"]] == ["Stage 2", "Stage 1 zero-shot"]


@pytest.mark.slow
def test_the_baselines_walk_to_their_page(chain: Path, corpus_path: Path, tmp_path: Path) -> None:
    """What each is trained with is what its paper says, in the checkpoints themselves."""
    vqgan = yaml.safe_load((CONFIGS / "demo/vqgan.yaml").read_text())
    vqgan["model"]["init_args"]["autoencoder"] |= {"image_size": 32, "channels": 8}
    vqgan["model"]["init_args"]["quantizer"]["codebook_size"] = 32
    encoder = yaml.safe_load((CONFIGS / "demo/encoder.yaml").read_text())
    encoder["model"]["init_args"]["image_size"] = 32
    for name, content in (("vqgan", vqgan), ("encoder", encoder)):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(content))
    quiet = (
        "--data.batch_size 4 --trainer.enable_progress_bar false "
        "--trainer.enable_model_summary false"
    )
    settings = {
        "seeds": 1,
        "corpus": corpus_path,
        "data": f"--data.corpora [{corpus_path}] --data.weights null {quiet}",
        "vqgan": tmp_path / "vqgan.yaml",
        "encoder": tmp_path / "encoder.yaml",
        "encoder_steps": 2,
        "vqgan_steps": 2,
        "backbone": f"--model.init_args.backbone {chain}/backbone/backbone",
        "stage1_steps": 2,
        "stage2_steps": 2,
        "both_steps": 4,
    }
    words = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    assert main(["run", "baselines", "--out", str(tmp_path / "out"), *words]) == 0
    found, asked = compared(tmp_path / "out"), compared(tmp_path / "out/questions")
    assert [cell["arm"] for cell in found["report", "bleu_4"]] == ["MAViLT", "LLM-CXR", "UniXGen"]
    assert (
        ("synthesis", "fid_cxr") in found
        and ("vqa", "accuracy") not in found
        and ("vqa", "accuracy") in asked
    )
    was = {
        system: torch.load(
            tmp_path / f"out/{system}/1/{stage}/checkpoints/last.ckpt", weights_only=True
        )
        for system, stage in (("mavilt", "stage2"), ("llm_cxr", "stage2"), ("unixgen", "stage1"))
    }
    said = {system: checkpoint["hyper_parameters"] for system, checkpoint in was.items()}
    assert [h["tuning"]["directions"] for h in said.values()] == ["both", "one", "both"]
    assert [h["model"]["loss_vocabulary"] for h in said.values()] == [
        "modality",
        "full",
        "modality",
    ]
    assert [(h["model"]["pretrained"], h["model"]["multi_view"]) for h in said.values()] == [
        (True, False),
        (True, False),
        (False, True),
    ]
    assert [h["regularization"]["lambda_reg"] for h in said.values()] == [0.001, 0, 0]
    assert said["llm_cxr"]["tuning"]["task_weights"]["text"] == 0.05
    weights = [
        torch.load(tmp_path / f"out/{system}/vqgan/checkpoints/last.ckpt", weights_only=True)[
            "hyper_parameters"
        ]
        for system in was
    ]
    assert [(w["lambda_grad"], w["lambda_feat"] > 0) for w in weights] == [
        (1, True),
        (0, True),
        (0, False),
    ]
