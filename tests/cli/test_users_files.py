"""No command destroys a file that it did not make, whatever folder it is given."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from words import DATA, FINDINGS, QUIET

from mavilt_pl.cli import main

pytestmark = pytest.mark.slow

# Names that some command writes, and names that nobody thinks of.
NAMES = (
    *("1.png", "2.png", "notes.txt", "README.md", "config.yaml", "config.json", "secret.key"),
    *("report.html", "compare.html", "results.json", "samples.json", "model.safetensors"),
    *("corpus.json.bak", "studies.parquet", "studies.arrow", "pixels-00000.npy", "rejects.csv"),
    *("tokens.npy", "tokens-00000.npy", "codes.npy", "tokenizer.json", "generation_config.json"),
    *("test/results.json", "test/samples.json", "test/notes.txt", "pictures/a.png"),
    *("test/predictions.jsonl", "example.py", "visual.json", "vqgan.ckpt"),
    *("parts/00000.parquet", "parts/mine.txt", "tensorboard/mine.txt", "slurm/phantom.sbatch"),
    *("raw/mimic/mine.txt", "corpora/mimic/mine.txt", "checkpoints/mine.txt", ".steps/mine.txt"),
    *("files/p10/mine.txt", "mimic-cxr-2.0.0-split.csv.gz", "vqgan/mine.txt", "backbone/mine.txt"),
    *("backbone/config.json", "events.out.tfevents.1", "phantom.json"),
)

LINKS = ("3.png", "test/last.ckpt", "corpora/link.csv", "raw/link")

COMMANDS = {
    "phantom": "phantom mimic FOLDER --studies 12 --validate 2 --test 2 --size 16",
    "prepare": "prepare mimic-cxr-jpg MIMIC --size 8 --workers 1 --out FOLDER",
    "tokenize": "tokenize --corpus CORPUS --tokenizer CHAIN/vqgan --out FOLDER --device cpu",
    "fit": "fit ENCODER",
    "fit backbone": "fit BACKBONE",
    "test": "test VQGAN --ckpt_path CHAIN/vqgan/checkpoints/last.ckpt METRICS",
    "draw": "draw text other --out FOLDER MODEL",
    "export": "export MODEL --out FOLDER",
    "results": "results FOLDER",
    "score": "score PREDICTIONS --out FOLDER",
    "compare": "results FOLDER --compare CHAIN CHAIN",
    "run": "run demo --until phantom-mimic --out FOLDER",
    "submit": "submit demo --until phantom-mimic --out FOLDER --time 5 --partition cpu",
    "report": "report FOLDER MODEL",
    "doctor": "doctor FOLDER",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A user's folder; each file holds its own name."""
    folder = tmp_path / "mine"
    for name in NAMES:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    # A folder next to it that a command might take for its own temporary one.
    for name in ("mine.part", "mine.tmp", ".mine.part"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "kept.txt").write_text("kept")
    # What links lead to is not theirs either, whatever the links are called.
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/kept.txt").write_text("kept")
    for name in LINKS:
        (folder / name).symlink_to(tmp_path / "elsewhere/kept.txt")
    (folder / "pictures/more").symlink_to(tmp_path / "elsewhere")
    return folder


@pytest.fixture
def words(chain: Path, corpus_path: Path, mimic_root: Path, folder: Path) -> Any:
    """Turns a command of the table into words."""
    module = [DATA, *QUIET, f"--data.corpora=[{corpus_path}]", "--trainer.max_steps=1"]
    module += [f"--trainer.default_root_dir={folder}", "--trainer.limit_val_batches=0"]
    sizes = ["--model.init_args.image_size=32", "--data.batch_size=8"]
    given = {
        "ENCODER": [
            "--config=demo/encoder.yaml",
            *module,
            *sizes,
            f"--model.init_args.findings={FINDINGS}",
        ],
        "VQGAN": [
            *("--config=demo/vqgan.yaml", *module),
            "--data.weights=null",
            "--model.init_args.autoencoder.image_size=32",
            "--model.init_args.autoencoder.channels=8",
            "--model.init_args.quantizer.codebook_size=32",
            f"--model.init_args.encoder={chain}/encoder/checkpoints/last.ckpt",
            "--trainer.callbacks=mavilt_pl.callbacks.ReconstructionMetrics",
        ],
        "BACKBONE": ["--config=demo/backbone.yaml", *module, "--data.batch_size=8"],
        "MODEL": ["--model", f"{chain}/stage2", "--tokenizer", f"{chain}/vqgan", "--device", "cpu"],
        "METRICS": ["--trainer.callbacks+=mavilt_pl.evaluation.ResultsWriter"],
    }

    def expand(command: str) -> list[str]:
        words: list[str] = []
        theirs = folder.parent / "theirs.csv"
        theirs.write_text("generated,reference\nClear.,Clear.\n")
        places = {"FOLDER": folder, "MIMIC": mimic_root, "CORPUS": corpus_path, "CHAIN": chain}
        places["PREDICTIONS"] = theirs
        for word in command.split():
            for key, path in places.items():
                word = word.replace(key, str(path))
            words += given.get(word, [word])
        return words

    return expand


@pytest.mark.parametrize("name", COMMANDS)
def test_every_file_is_found_again(
    name: str, folder: Path, words: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No sbatch, so that nothing is submitted where there is a cluster.
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    main(words(COMMANDS[name]))
    assert not [name for name in NAMES if (folder / name).read_text() != name]
    kept = [*folder.parent.glob("*/kept.txt")]
    assert len(kept) == 4 and all(path.read_text() == "kept" for path in kept)
    assert all((folder / name).is_symlink() for name in (*LINKS, "pictures/more"))


@pytest.mark.parametrize("name", ["report.html", "results.json"])
def test_results_replace_their_own_pages_only(
    name: str, folder: Path, words: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a run that has been tested, where everything else is right."""
    shutil.rmtree(folder)
    assert main(words(COMMANDS["test"])) == 0
    page = folder / name
    for _ in range(2):  # a page of its own is replaced
        assert main(words(COMMANDS["results"])) == 0
    page.write_text("mine")
    capsys.readouterr()
    assert main(words(COMMANDS["results"])) == 1
    assert f"{page} was not written by this command" in capsys.readouterr().err
    assert page.read_text() == "mine"
