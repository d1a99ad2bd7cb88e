"""`mavilt doctor`: what is sound passes, what would make training wrong exits with 1 and says why."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from mavilt_pl.cli import main
from mavilt_pl.data.corpus import Corpus
from mavilt_pl.data.token_cache import write_tokens


def doctor(
    capsys: pytest.CaptureFixture[str], *argv: object
) -> tuple[int, dict[str, dict[str, str]]]:
    """Exit status, and the checks by name."""
    capsys.readouterr()
    status = main(["doctor", "--json", *map(str, argv)])
    return status, {check["name"]: check for check in json.loads(capsys.readouterr().out)}


def test_a_dataset_is_recognised_and_compared_with_its_release(
    mimic_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, checks = doctor(capsys, mimic_root, "--all")
    assert status == 0 and checks["dataset"]["found"] == "mimic-cxr-jpg"
    assert (
        checks["studies"]["found"].startswith("61 of ")
        and "train 43, val 7, test 11" in checks["studies"]["found"]
    )
    images = checks["official images"]
    assert (images["status"], images["found"], images["expected"]) == ("warning", "61", "377,110")
    assert all(
        checks[name]["status"] == "ok"
        for name in ("missing files", "unreadable files", "duplicate images")
    )

    root = tmp_path / "raw"
    shutil.copytree(mimic_root, root)
    missing, damaged, doubled, other = sorted(root.rglob("*.jpg"))[:4]
    missing.unlink()
    damaged.write_bytes(b"no image")
    shutil.copy(other, doubled)
    status, checks = doctor(capsys, root, "--source", "mimic-cxr-jpg", "--all")
    for name, file in (
        ("missing files", missing),
        ("unreadable files", damaged),
        ("duplicate images", other),
    ):
        assert checks[name]["status"] == "warning" and checks[name]["found"].startswith("1 of 61")
        assert file.name in checks[name]["todo"]
    for path in root.rglob("*.jpg"):
        path.unlink()
    status, checks = doctor(capsys, root, "--source", "mimic-cxr-jpg")
    assert status == 1 and checks["missing files"]["status"] == "error"


def test_a_patient_in_two_splits_is_told(
    mimic_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "raw"
    shutil.copytree(mimic_root, root)
    path = root / "mimic-cxr-2.0.0-split.csv.gz"
    rows = pd.read_csv(path, dtype=str)
    several = rows["subject_id"].value_counts().index[0]
    last = rows.index[rows["subject_id"] == several][-1]
    rows.loc[last, "split"] = "validate" if rows.loc[last, "split"] != "validate" else "test"
    rows.to_csv(path, index=False)
    _, checks = doctor(capsys, root)
    assert (
        checks["left out by the reader"]["status"] == "warning"
        and f"patient {several} is in" in checks["left out by the reader"]["todo"]
    )


def test_a_corpus(corpus_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, checks = doctor(capsys, corpus_path, "--all")
    assert status == 0 and checks["fingerprint"]["status"] == "ok"
    changed = tmp_path / "corpus"
    shutil.copytree(corpus_path, changed)
    pixels = np.load(changed / "pixels-00000.npy")
    pixels[20:] = pixels[:1]
    np.save(changed / "pixels-00000.npy", pixels)
    status, checks = doctor(capsys, changed, "--all")
    assert status == 1
    assert checks["fingerprint"]["status"] == checks["duplicate images"]["status"] == "error"
    assert "across splits" in checks["duplicate images"]["todo"]


def test_a_token_cache(
    corpus_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = Corpus(corpus_path)
    codes = np.arange(corpus.n_images * 16).reshape(-1, 16) % 32

    def cache(name: str, fingerprint: str, made: np.ndarray) -> Path:
        write_tokens(
            tmp_path / name, fingerprint, "0" * 64, np.zeros((32, 4)), 4, corpus.n_images, [made]
        )
        return tmp_path / name

    assert doctor(capsys, cache("good", corpus.fingerprint, codes), "--corpus", corpus_path)[0] == 0
    status, checks = doctor(capsys, cache("stale", "f" * 64, codes), "--corpus", corpus_path)
    assert status == 1 and "tokenize again" in checks[f"made from {corpus_path}"]["todo"]
    status, checks = doctor(capsys, cache("poor", corpus.fingerprint, codes % 3))
    assert (
        status == 0
        and checks["codes in use"] | {"status": "warning", "found": "9 %"} == checks["codes in use"]
    )
    assert doctor(capsys, cache("wrong", corpus.fingerprint, codes + 1))[0] == 1


def test_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    assert doctor(capsys, tmp_path)[0] == 1
    for weight, expected in ((1.0, 0), (float("nan"), 1)):
        torch.save(
            {"global_step": 3, "state_dict": {"w": torch.full((2,), weight)}}, folder / "last.ckpt"
        )
        status, checks = doctor(capsys, tmp_path)
        assert status == expected and checks["last.ckpt"]["found"].startswith("step 3")
    (folder / "last.ckpt").write_bytes(b"half")
    status, checks = doctor(capsys, tmp_path)
    assert status == 1 and "not readable" in checks["last.ckpt"]["found"]


def test_what_is_none_of_these(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["doctor", str(tmp_path)]) == 1 and "name it with --source" in capsys.readouterr().err
    )
    assert (
        main(["doctor", str(tmp_path / "absent")]) == 1
        and "is not a folder" in capsys.readouterr().err
    )
