"""Studies in results and pages cannot be traced without the corpus and its secret."""

import hashlib
import hmac
import json
import shutil
from pathlib import Path

import pytest

from mavilt_pl.cli import main
from mavilt_pl.data.corpus import Corpus
from tests.conftest import QUIET


@pytest.fixture(scope="module")
def tested(chain: Path, corpus_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tested run of the tokenizer with its page."""
    run = tmp_path_factory.mktemp("hidden") / "vqgan"
    words = [
        *("test", "--config", "demo/vqgan.yaml", *QUIET),
        f"--data.corpora=[{corpus_path}]",
        "--data.weights=null",
        "--model.init_args.autoencoder.image_size=32",
        "--model.init_args.autoencoder.channels=8",
        "--model.init_args.quantizer.codebook_size=32",
        f"--model.init_args.encoder={chain}/encoder/checkpoints/last.ckpt",
        f"--ckpt_path={chain}/vqgan/checkpoints/last.ckpt",
        f"--trainer.default_root_dir={run}",
        "--trainer.callbacks+=mavilt_pl.callbacks.ReconstructionMetrics",
        "--trainer.callbacks+=mavilt_pl.evaluation.ResultsWriter",
    ]
    assert main(words) == 0
    assert main(["results", str(run)]) == 0
    return run


def written(run: Path) -> str:
    """All text below a run, as an attacker finds it."""
    return "\n".join(path.read_text(errors="replace") for path in run.rglob("*") if path.is_file())


def test_a_study_cannot_be_found_from_what_is_published(tested: Path, corpus_path: Path) -> None:
    """Every word of the output is tried as a salt for every study, as in a search by force."""
    text = written(tested)
    samples = json.loads((tested / "test/samples.json").read_text())["tokenizer"]
    names = {sample["study"] for sample in samples}
    assert len(names) == 8
    made_by = json.loads((tested / "test/results.json").read_text())["made_by"]
    salts = {"", *made_by["corpus"].values()}
    for study in Corpus(corpus_path):
        assert study.study not in text and study.patient not in text
        for salt in salts:
            for name in (study.study, f"{study.source}:{study.study}"):
                digests = [
                    hashlib.sha256(f"{salt}/{name}".encode()).hexdigest(),
                    hashlib.sha256(f"{salt}{name}".encode()).hexdigest(),
                    hmac.new(salt.encode(), name.encode(), hashlib.sha256).hexdigest(),
                ]
                assert not any(digest.startswith(tuple(names)) for digest in digests)


def test_whoever_holds_the_corpus_finds_the_study(tested: Path, corpus_path: Path) -> None:
    corpus = Corpus(corpus_path)
    samples = json.loads((tested / "test/samples.json").read_text())["tokenizer"]
    own = {corpus.hidden_name(study.study) for study in corpus if study.split == "test"}
    assert {sample["study"] for sample in samples} <= own and len(own) == 11


def test_the_secret_is_kept_when_a_corpus_is_prepared_again_and_never_shared(
    mimic_root: Path, tmp_path: Path
) -> None:
    command = ["prepare", "mimic-cxr-jpg", str(mimic_root), "--size", "8", "--workers", "1"]
    one, other = tmp_path / "one", tmp_path / "other"
    for out in (one, other, one):
        assert main([*command, "--out", str(out)]) == 0
    secrets = [(folder / "secret.key").read_text() for folder in (one, other)]
    assert secrets[0] != secrets[1] and len(bytes.fromhex(secrets[0])) == 32
    before = Corpus(one)
    (one / "corpus.json").unlink()
    assert main([*command, "--out", str(one)]) == 0
    assert Corpus(one).hidden_name("s5") == before.hidden_name("s5")
    assert Corpus(one).fingerprint == Corpus(other).fingerprint


@pytest.mark.parametrize("content", [None, "", "not hexadecimal", "00"])
def test_a_corpus_without_its_secret_hides_all_the_same(
    corpus_path: Path, tmp_path: Path, content: str | None
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(corpus_path, copy)
    (copy / "secret.key").unlink()
    if content is not None:
        (copy / "secret.key").write_text(content)
    assert Corpus(copy).hidden_name("s5") != Corpus(copy).hidden_name("s5")
