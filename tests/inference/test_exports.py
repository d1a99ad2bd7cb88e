"""Exported folders: complete, verified, described, with adapters merged or apart."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from words import DATA, QUIET, mavilt

from mavilt_pl.checkpoint import sha256
from mavilt_pl.cli import main
from mavilt_pl.data.token_cache import TokenCache
from mavilt_pl.errors import UserError
from mavilt_pl.evaluation.results import write_json
from mavilt_pl.inference.mavilt import MAViLT


@pytest.fixture(scope="module")
def images(mimic_root: Path) -> list[Path]:
    return sorted(mimic_root.rglob("*.jpg"))[:3]


@pytest.fixture(scope="module")
def lora(chain: Path, corpus_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stage 2 with adapters on the chain's backbone, far enough from it to be seen."""
    out = tmp_path_factory.mktemp("lora")
    mavilt(
        "fit --config demo/stage2.yaml",
        *QUIET,
        DATA,
        f"--data.corpora=[{corpus_path}]",
        f"--data.tokens=[{chain}/tokens]",
        "--data.batch_size=4",
        "--data.weights=null",
        "--trainer.max_steps=4",
        f"--model.init_args.backbone={chain}/backbone/backbone",
        f"--model.init_args.tokens={chain}/tokens",
        "--model.init_args.tuning.method=lora",
        "--model.init_args.tuning.learning_rate=0.05",
        f"--trainer.default_root_dir={out}/stage2",
    )
    return out / "stage2"


def all_tasks(model: MAViLT, images: list[Path]) -> list[object]:
    """What a model says and draws."""
    drawing = model.draw("Edema.", seed=3)
    answers = model.ask(images[0], ["Is there edema?", "Where?"])
    return [model.report(images), answers, drawing, drawing.image.tolist()]


def exported(run: Path, out: Path, *words: str) -> Path:
    assert main(["export", "--model", str(run), "--device", "cpu", "--out", str(out), *words]) == 0
    return out


def test_adapters_apart_give_the_training_s_results(
    chain: Path, lora: Path, images: list[Path], tmp_path: Path
) -> None:
    ours = all_tasks(MAViLT.from_pretrained(lora, device="cpu"), images)
    apart = exported(lora, tmp_path / "apart", "--adapters-only")
    assert all_tasks(MAViLT.from_pretrained(apart, device="cpu"), images) == ours
    # The base model may have moved, and its weights are not in the folder.
    base = shutil.copytree(chain / "backbone/backbone", tmp_path / "base")
    moved = MAViLT.from_pretrained(apart, device="cpu", backbone=base)
    assert all_tasks(moved, images) == ours
    assert not (apart / "model.safetensors").exists() and not (apart / "example.py").exists()
    assert "--backbone BASE_MODEL" in (apart / "README.md").read_text()
    words = ["report", str(images[0]), "--model", str(apart), "--device", "cpu"]
    assert main([*words, "--backbone", str(base)]) == 0
    # Merged, it is a plain model, equal up to rounding.
    merged = MAViLT.from_pretrained(exported(lora, tmp_path / "merged"), device="cpu")
    shares = merged.ask(images[0], "Is there edema?").probabilities
    assert shares == pytest.approx(moved.ask(images[0], "Is there edema?").probabilities, abs=1e-4)


def test_adapters_without_their_base_are_refused(
    chain: Path, lora: Path, images: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    apart = exported(lora, tmp_path / "apart", "--adapters-only")
    with pytest.raises(UserError, match="absent"):
        MAViLT.from_pretrained(apart, backbone=tmp_path / "absent")
    words = ["export", "--adapters-only", "--out", str(tmp_path / "full"), "--device", "cpu"]
    assert main([*words, "--model", str(chain / "stage2")]) == 1
    assert "trained in full and has no adapters" in capsys.readouterr().err
    # Adapters on a Stage 1 in full have no published base.
    path = lora / "checkpoints/last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    name = next(name for name in checkpoint["state_dict"] if "base_layer.weight" in name)
    checkpoint["state_dict"][name] += 1
    torch.save(checkpoint, tmp_path / "other.ckpt")
    words += ["--tokenizer", str(chain / "vqgan")]
    assert main([*words, "--model", str(tmp_path / "other.ckpt")]) == 1
    assert "trained on other weights than those of" in capsys.readouterr().err
    assert not (tmp_path / "full").exists()


def test_every_changed_byte_of_weights_is_noticed(
    chain: Path, images: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = exported(chain / "stage2", tmp_path / "out")
    facts = json.loads((out / "visual.json").read_text())
    assert {path.name for path in out.glob("*.safetensors")} == {*facts["sha256"]}
    assert facts["checkpoint"] == sha256(chain / "stage2/checkpoints/last.ckpt")
    for name in facts["sha256"]:
        whole = (out / name).read_bytes()
        (out / name).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(UserError, match=f"{name} is damaged"):
            MAViLT.from_pretrained(out)
        (out / name).unlink()
        with pytest.raises(UserError, match=f"{name} is missing"):
            MAViLT.from_pretrained(out)
        (out / name).write_bytes(whole)
    assert MAViLT.from_pretrained(out).sha256 == facts["checkpoint"]


def test_the_vqgan_of_an_export_tokenizes(chain: Path, corpus_path: Path, tmp_path: Path) -> None:
    out = exported(chain / "stage2", tmp_path / "out")
    words = ["--corpus", str(corpus_path), "--tokenizer", str(out / "vqgan.safetensors")]
    assert main(["tokenize", *words, "--out", str(tmp_path / "tokens"), "--device", "cpu"]) == 0
    ours, theirs = TokenCache(chain / "tokens"), TokenCache(tmp_path / "tokens")
    assert all(np.array_equal(ours[row], theirs[row]) for row in range(10))


def test_the_card_has_what_a_reader_must_know(chain: Path, tmp_path: Path) -> None:
    run = tmp_path / "stage2"
    shutil.copytree(chain / "stage2", run)
    shared = {"task": "vqa", "source": "phantom_mimic", "metric": "auroc_macro", "n": 400}
    shared |= {"protocol": "mean over 8 findings", "positives": None}
    figures = [
        {**shared, "value": 0.812, "low": 0.7, "high": 0.9, "control": None},
        {**shared, "value": 0.512, "low": 0.4, "high": 0.6, "control": "shuffled_images"},
    ]
    write_json(run / "test/results.json", {"figures": figures, "made_by": {}})
    out = exported(run, tmp_path / "out", "--license", "cc-by-nc-4.0")
    card = ModelCard.load(out / "README.md")
    assert card.data.license == "cc-by-nc-4.0" and "mavilt" in card.data.tags
    assert card.data.pipeline_tag == "image-to-text"
    text = card.text
    for said in (
        *("It is no medical device", "## Limits", "| phantom_mimic | 43 | 43 |"),
        "| phantom_mimic `auroc_macro` | 0.812 | 0.700 to 0.900 | 400 | images shuffled 0.512 | "
        "mean over 8 findings |",
        sha256(chain / "stage2/checkpoints/last.ckpt"),
        sha256(out / "vqgan.safetensors"),
    ):
        assert said in text, text
    assert str(tmp_path) not in text and str(chain) not in text
    assert json.loads((out / "results.json").read_text())["figures"] == figures
    # Without a test it says so.
    untested = exported(chain / "stage1", tmp_path / "untested")
    text = (untested / "README.md").read_text()
    assert "this run was not tested" in text and "answers questions" not in text
    assert yaml.safe_load(text.split("---")[1])["license"] == "other"
