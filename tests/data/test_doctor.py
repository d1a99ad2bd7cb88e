"""`mavilt doctor`: sound data passes; what would make training wrong exits with 1 and says why."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from mavilt_pl.cli import main
from mavilt_pl.data.corpus import Corpus
from mavilt_pl.data.token_cache import write_tokens

Capture = pytest.CaptureFixture[str]


def doctor(capsys: Capture, *argv: object) -> tuple[int, dict[str, dict[str, str]]]:
    """Exit status, and the checks by name."""
    capsys.readouterr()
    status = main(["doctor", "--json", *map(str, argv)])
    checks = json.loads(capsys.readouterr().out)
    return status, {check["name"]: check for check in checks}


def test_a_dataset_is_recognised_and_compared_with_its_release(
    mimic_root: Path, capsys: Capture
) -> None:
    status, checks = doctor(capsys, mimic_root, "--all")
    assert status == 0
    assert checks["dataset"]["found"] == "mimic-cxr-jpg"
    assert checks["studies"]["found"].startswith("61 of ")
    assert "train 43, val 7, test 11" in checks["studies"]["found"]
    images = checks["official images"]
    assert (images["status"], images["found"], images["expected"]) == ("warning", "61", "377,110")
    for name in ("missing files", "unreadable files", "duplicate images"):
        assert checks[name]["status"] == "ok"


def test_missing_unreadable_and_duplicate_files_are_reported(
    mimic_root: Path, tmp_path: Path, capsys: Capture
) -> None:
    root = tmp_path / "raw"
    shutil.copytree(mimic_root, root)
    missing, damaged, duplicate, original = sorted(root.rglob("*.jpg"))[:4]
    missing.unlink()
    damaged.write_bytes(b"no image")
    shutil.copy(original, duplicate)
    _, checks = doctor(capsys, root, "--source", "mimic-cxr-jpg", "--all")
    for name, file in (
        ("missing files", missing),
        ("unreadable files", damaged),
        ("duplicate images", original),
    ):
        assert checks[name]["status"] == "warning"
        assert checks[name]["found"].startswith("1 of 61")
        assert file.name in checks[name]["todo"]

    for path in root.rglob("*.jpg"):
        path.unlink()
    status, checks = doctor(capsys, root, "--source", "mimic-cxr-jpg")
    assert status == 1
    assert checks["missing files"]["status"] == "error"


def test_a_patient_in_two_splits_is_reported(
    mimic_root: Path, tmp_path: Path, capsys: Capture
) -> None:
    root = tmp_path / "raw"
    shutil.copytree(mimic_root, root)
    path = root / "mimic-cxr-2.0.0-split.csv.gz"
    rows = pd.read_csv(path, dtype=str)
    patient = rows["subject_id"].value_counts().index[0]
    last = rows.index[rows["subject_id"] == patient][-1]
    rows.loc[last, "split"] = "validate" if rows.loc[last, "split"] != "validate" else "test"
    rows.to_csv(path, index=False)
    _, checks = doctor(capsys, root)
    assert checks["rejected by the reader"]["status"] == "warning"
    assert f"patient {patient} is in" in checks["rejected by the reader"]["todo"]


def test_a_corpus(corpus_path: Path, tmp_path: Path, capsys: Capture) -> None:
    status, checks = doctor(capsys, corpus_path, "--all")
    assert status == 0
    assert checks["fingerprint"]["status"] == "ok"

    changed = tmp_path / "corpus"
    shutil.copytree(corpus_path, changed)
    pixels = np.load(changed / "pixels-00000.npy")
    pixels[20:] = pixels[:1]
    np.save(changed / "pixels-00000.npy", pixels)
    status, checks = doctor(capsys, changed, "--all")
    assert status == 1
    assert checks["fingerprint"]["status"] == "error"
    assert checks["duplicate images"]["status"] == "error"
    assert "across splits" in checks["duplicate images"]["todo"]


def test_a_token_cache(corpus_path: Path, tmp_path: Path, capsys: Capture) -> None:
    corpus = Corpus(corpus_path)
    codes = np.arange(corpus.n_images * 16).reshape(-1, 16) % 32

    def write(name: str, fingerprint: str, codes: np.ndarray) -> Path:
        out, codebook = tmp_path / name, np.zeros((32, 4))
        write_tokens(out, fingerprint, "0" * 64, codebook, 4, corpus.n_images, [codes])
        return out

    good = write("good", corpus.fingerprint, codes)
    assert doctor(capsys, good, "--corpus", corpus_path)[0] == 0

    stale = write("stale", "f" * 64, codes)
    status, checks = doctor(capsys, stale, "--corpus", corpus_path)
    assert status == 1
    assert "tokenize again" in checks[f"encoded from {corpus_path}"]["todo"]

    collapsed = write("collapsed", corpus.fingerprint, codes % 3)
    status, checks = doctor(capsys, collapsed)
    assert status == 0
    assert checks["codes in use"]["status"] == "warning"
    assert checks["codes in use"]["found"] == "9 %"

    out_of_range = write("out_of_range", corpus.fingerprint, codes + 1)
    assert doctor(capsys, out_of_range)[0] == 1


def test_an_unfinished_token_cache_is_refused(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "encoder.json").write_text("{}")
    assert main(["doctor", str(tmp_path)]) == 1
    assert "is not a finished token cache" in capsys.readouterr().err


def test_a_run(tmp_path: Path, capsys: Capture) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    assert doctor(capsys, tmp_path)[0] == 1
    for weight, expected in ((1.0, 0), (float("nan"), 1)):
        state_dict = {"w": torch.full((2,), weight)}
        torch.save({"global_step": 3, "state_dict": state_dict}, folder / "last.ckpt")
        status, checks = doctor(capsys, tmp_path)
        assert status == expected
        assert checks["last.ckpt"]["found"].startswith("step 3")
    (folder / "last.ckpt").write_bytes(b"half")
    status, checks = doctor(capsys, tmp_path)
    assert status == 1
    assert "not readable" in checks["last.ckpt"]["found"]


def test_other_folders_are_refused(tmp_path: Path, capsys: Capture) -> None:
    assert main(["doctor", str(tmp_path)]) == 1
    assert "name it with --source" in capsys.readouterr().err
    assert main(["doctor", str(tmp_path / "absent")]) == 1
    assert "is not a folder" in capsys.readouterr().err


@pytest.mark.slow
def test_the_folder_of_a_recipe_is_looked_through(
    chain: Path, corpus_path: Path, tmp_path: Path, capsys: Capture
) -> None:
    """Steps, corpora, runs below the folder of an arm; the raw data are left alone."""
    (tmp_path / ".steps").mkdir()
    for name in ("prepare.json", "prepare.json.begun", "arm.json.begun"):
        (tmp_path / ".steps" / name).write_text("{}")
    shutil.copytree(corpus_path, tmp_path / "corpora/mimic")
    shutil.copytree(chain / "vqgan", tmp_path / "arm/1/vqgan")
    shutil.copytree(corpus_path, tmp_path / "raw/mimic")
    status, checks = doctor(capsys, tmp_path)
    assert status == 0
    assert checks["step prepare"]["status"] == "ok"
    assert checks["step arm"]["found"] == "begun"
    assert checks["corpora/mimic: corpus"]["status"] == "ok"
    assert checks["arm/1/vqgan: last.ckpt"]["status"] == "ok"
    assert not any("raw" in name for name in checks)
    (tmp_path / "arm/1/vqgan/checkpoints/last.ckpt").write_bytes(b"damaged")
    status, checks = doctor(capsys, tmp_path)
    assert status == 1 and checks["arm/1/vqgan: last.ckpt"]["status"] == "error"


@pytest.mark.slow
def test_an_exported_model_is_looked_through(chain: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "exported"
    words = ["--model", str(chain / "stage2"), "--tokenizer", str(chain / "vqgan")]
    assert main(["export", *words, "--out", str(out), "--device", "cpu"]) == 0
    status, checks = doctor(capsys, out)
    assert status == 0 and checks["model.safetensors"]["status"] == "ok"
    weights = load_file(out / "model.safetensors")
    first = next(iter(weights))
    weights[first][0] = float("nan")
    save_file(weights, out / "model.safetensors")
    status, checks = doctor(capsys, out)
    assert status == 1 and "not finite" in checks["model.safetensors"]["found"]
    (out / "model.safetensors").write_bytes(b"damaged")
    status, checks = doctor(capsys, out)
    assert status == 1 and "not readable" in checks["model.safetensors"]["found"]
