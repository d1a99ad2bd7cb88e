"""The command line as users meet it: quick help, and one clear message for every mistake."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from words import DATA, QUIET

from mavilt_pl.cli import VERBS, main


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from mavilt_pl.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'lightning', 'transformers', 'numpy', 'pandas'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert all(verb in done.stdout for verb in [*VERBS, "fit", "test"])


def fails(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """Run a command that must fail with one message and no traceback."""
    try:
        code = main(list(argv))
    except SystemExit as left:
        code = left.code
    said = capsys.readouterr().err
    assert code not in (0, None) and "Traceback" not in said, said
    return said


def test_missing_folder_and_empty_dataset(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = str(tmp_path / "out")
    assert "is not a folder" in fails(
        capsys, "prepare", "nih", str(tmp_path / "absent"), "--out", out
    )
    assert "is missing; it belongs to the official release" in fails(
        capsys, "prepare", "nih", str(tmp_path), "--out", out
    )
    (tmp_path / "Data_Entry_2017_v2020.csv").write_text(
        "Image Index,Finding Labels,Patient ID,View Position\n"
    )
    assert "has no rows" in fails(capsys, "prepare", "nih", str(tmp_path), "--out", out)
    assert not (tmp_path / "out" / "corpus.json").exists()


def test_a_study_whose_image_is_damaged_is_rejected_and_counted(
    mimic_root: Path, tmp_path: Path
) -> None:
    root, out = tmp_path / "raw", tmp_path / "out"
    shutil.copytree(mimic_root, root)
    first, second = sorted(root.rglob("*.jpg"))[:2]
    first.write_bytes(first.read_bytes()[:200])
    second.unlink()
    assert (
        main(
            [
                "prepare",
                "mimic-cxr-jpg",
                str(root),
                "--out",
                str(out),
                "--size",
                "32",
                "--workers",
                "1",
            ]
        )
        == 0
    )
    facts = json.loads((out / "corpus.json").read_text())
    assert facts["total"]["studies"] == {"read": 61, "kept": 59, "rejected": 2}
    assert facts["total"]["images"] == {"read": 61, "kept": 59, "rejected": 2}
    for what in ("studies", "images"):
        for end in ("read", "kept", "rejected"):
            assert (
                sum(split[what][end] for split in facts["splits"].values())
                == facts["total"][what][end]
            )
    rejects = (out / "rejects.csv").read_text()
    assert first.name in rejects and second.name in rejects and "the file is missing" in rejects


def test_unknown_config_and_misspelt_key(
    capsys: pytest.CaptureFixture[str], corpus_path: Path
) -> None:
    assert "nor a shipped one" in fails(capsys, "fit", "--config", "stagee1.yaml")
    said = fails(
        capsys,
        "fit",
        "--config",
        "demo/encoder.yaml",
        f"--data.corpora=[{corpus_path}]",
        "--data.batchsize=3",
    )
    assert "batchsize" in said


def test_a_missing_device_is_reported(
    capsys: pytest.CaptureFixture[str],
    corpus_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By the documented overlay of a training, and by --device."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    words = [
        "fit",
        "--config",
        "demo/encoder.yaml",
        "--config",
        "trainer/gpu.yaml",
        f"--data.corpora=[{corpus_path}]",
    ]
    said = fails(capsys, *words, f"--trainer.default_root_dir={tmp_path}")
    assert (
        "trainer.accelerator gpu" in said
        and "with no GPU" in said
        and "--trainer.accelerator auto" in said
    )
    for accelerator in ("cuda", "tpu", "abacus"):
        said = fails(
            capsys,
            *words,
            f"--trainer.default_root_dir={tmp_path}",
            f"--trainer.accelerator={accelerator}",
        )
        assert f"trainer.accelerator {accelerator}" in said
    for device in ("foo", "cuda0", "xpu", "meta"):
        said = fails(
            capsys, "report", "a.png", "--model", "m", "--tokenizer", "t", "--device", device
        )
        assert (
            f"--device: found {device}, on which torch cannot compute here (" in said
            and "set it to cpu" in said
        )


def test_an_unfinished_corpus_is_no_corpus(
    capsys: pytest.CaptureFixture[str], corpus_path: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "corpus"
    shutil.copytree(corpus_path, broken)
    (broken / "corpus.json").unlink()
    said = fails(
        capsys, "fit", "--config", "demo/encoder.yaml", f"--data.corpora=[{broken}]", *QUIET
    )
    assert "not a finished corpus" in said and "mavilt prepare" in said


def test_prepare_again_does_nothing_and_other_settings_are_refused(
    capsys: pytest.CaptureFixture[str], mimic_root: Path, corpus_path: Path
) -> None:
    before = (corpus_path / "studies.parquet").stat().st_mtime_ns
    again = [
        "prepare",
        "mimic-cxr-jpg",
        str(mimic_root),
        "--out",
        str(corpus_path),
        "--name",
        "phantom_mimic",
    ]
    assert main([*again, "--size", "32"]) == 0
    assert (corpus_path / "studies.parquet").stat().st_mtime_ns == before
    assert "size was 32 and is 64" in fails(capsys, *again, "--size", "64")


@pytest.mark.slow
def test_wrong_checkpoints_and_caches(
    capsys: pytest.CaptureFixture[str], chain: Path, corpus_path: Path, tmp_path: Path
) -> None:
    corpora = f"--data.corpora=[{corpus_path}]"
    said = fails(
        capsys,
        "tokenize",
        "--corpus",
        str(corpus_path),
        "--tokenizer",
        str(chain / "encoder"),
        "--out",
        str(tmp_path / "t"),
    )
    assert (
        "checkpoint of another module" in said
        and "VQGAN" in said
        and not (tmp_path / "t" / "tokens.json").exists()
    )
    said = fails(
        capsys,
        "fit",
        "--config",
        "demo/vqgan.yaml",
        corpora,
        "--data.weights=null",
        f"--model.init_args.encoder={chain}/vqgan/checkpoints/last.ckpt",
        *QUIET,
    )
    assert "checkpoint of another module" in said and "CXRClassifier" in said

    other = tmp_path / "tokens"
    shutil.copytree(chain / "tokens", other)
    facts = json.loads((other / "tokens.json").read_text())
    language = [
        "--config",
        "demo/stage1.yaml",
        corpora,
        "--data.weights=null",
        DATA,
        f"--model.init_args.backbone={chain}/backbone/backbone",
        *QUIET,
        f"--trainer.default_root_dir={tmp_path}",
    ]
    tokens = [f"--data.tokens=[{other}]", f"--model.init_args.tokens={other}"]
    (other / "tokens.json").write_text(json.dumps(facts | {"corpus": "0" * 64}))
    assert "codes of another corpus" in fails(capsys, "fit", *language, *tokens)
    (other / "tokens.json").write_text(json.dumps(facts | {"tokenizer": "0" * 64}))
    said = fails(
        capsys,
        "fit",
        *language,
        *tokens,
        f"--model.init_args.init_from={chain}/stage1/checkpoints/last.ckpt",
    )
    assert "its codes mean different things" in said
    said = fails(
        capsys,
        "fit",
        *language,
        *tokens,
        "--ckpt_path",
        str(chain / "encoder/checkpoints/last.ckpt"),
    )
    assert "another module" in said


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_place_that_cannot_be_written(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A read-only file system, which a test cannot mount."""

    def refuse(path: Path, *_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)
    out = str(tmp_path / "out")
    assert main(["phantom", "mimic", out, "--studies", "3"]) == 1
    message = capsys.readouterr().err
    assert message.startswith(f"mavilt: {os.strerror(number)}: {out}")
    assert "another place" in message or "a place that can be written" in message


@pytest.mark.slow
def test_a_full_disk_and_an_interrupt_leave_nothing_whole(
    chain: Path, corpus_path: Path, tmp_path: Path
) -> None:
    """A file-size limit stands in for a full disk: no file may exceed 1 KB."""
    out = tmp_path / "tokens"
    tokenize = f"tokenize --corpus {corpus_path} --tokenizer {chain}/vqgan --out {out}"
    command = f"ulimit -f 1; exec {sys.executable} -m mavilt_pl.cli {tokenize} 2>&1"
    done = subprocess.run(
        ["bash", "-c", command],
        capture_output=True,
        text=True,
        env=os.environ | {"MAVILT_DEBUG": ""},
    )
    assert (
        done.returncode == 1 and "free some space" in done.stdout and "Traceback" not in done.stdout
    ), done.stdout
    assert not (out / "tokens.json").exists()
    command = [
        sys.executable,
        "-m",
        "mavilt_pl.cli",
        "phantom",
        "mimic",
        str(tmp_path / "p"),
        "--studies",
        "20000",
        "--workers",
        "1",
    ]
    # A shell that starts the tests in the background ignores SIGINT, and a child inherits that.
    listening = "import signal, runpy; signal.signal(signal.SIGINT, signal.default_int_handler); "
    listening += "runpy.run_module('mavilt_pl.cli', run_name='__main__', alter_sys=True)"
    running = subprocess.Popen(
        [sys.executable, "-c", listening, *command[3:]],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not list((tmp_path / "p").glob("files/*/*/*/*.jpg")):
        assert running.poll() is None
        time.sleep(0.1)
    running.send_signal(signal.SIGINT)
    said = running.communicate(timeout=120)[1]
    assert running.returncode == 130 and "Traceback" not in said and "interrupted" in said
    assert not (tmp_path / "p" / "mimic-cxr-2.0.0-split.csv.gz").exists()
