"""Several processes at one task write each shard once, with the result of one process."""

from __future__ import annotations

import errno
import fcntl
import filecmp
import io
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mavilt_pl.cli import main
from mavilt_pl.data import prepare
from mavilt_pl.data.token_cache import TokenCache
from mavilt_pl.parallel.file_lock import file_lock
from mavilt_pl.parallel.shards import claim_shards
from mavilt_pl.vqgan.module import VQGAN

# A command with small shards, which logs the numbers of those that this process works on.
LOGGED_COMMAND = """
import sys, time
from mavilt_pl.cli import main
from mavilt_pl.data import decode_shard, prepare
from mavilt_pl.vqgan import encode_corpus

prepare.SHARD = encode_corpus.SHARD = 8
log = open(sys.argv[1], "w", buffering=1)
decode = decode_shard.ShardDecoder.decode
claim_shards = encode_corpus.claim_shards

def logged_decode(self, number):
    print(number, file=log)
    decode(self, number)

def logged_claim(*args):
    for number in claim_shards(*args):
        print(number, file=log)
        time.sleep(0.05)
        yield number

decode_shard.ShardDecoder.decode = logged_decode
encode_corpus.claim_shards = logged_claim
sys.exit(main(sys.argv[2:]))
"""


def start(log: Path, argv: list[str]) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", LOGGED_COMMAND, str(log), *argv], stdout=subprocess.DEVNULL
    )


def run_together(count: int, logs: Path, argv: list[str]) -> list[int]:
    """Start `count` processes with the same command; return the sorted shards of all of them."""
    logs.mkdir()
    processes = [start(logs / str(n), argv) for n in range(count)]
    assert [process.wait(timeout=300) for process in processes] == [0] * count
    numbers = []
    for n in range(count):
        numbers += map(int, (logs / str(n)).read_text().split())
    return sorted(numbers)


def relative_files(folder: Path) -> list[str]:
    # The secret is random; all other files are functions of the dataset.
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "secret.key"]
    return sorted(str(path.relative_to(folder)) for path in files)


def assert_same_files(one: Path, other: Path) -> None:
    names = relative_files(one)
    assert names == relative_files(other)
    for name in names:
        assert filecmp.cmp(one / name, other / name, shallow=False), name


def prepare_arguments(root: Path, out: Path, *options: str) -> list[str]:
    argv = ["prepare", "mimic-cxr-jpg", str(root), "--out", str(out), "--size", "32"]
    return [*argv, "--workers", "1", *options]


@pytest.mark.slow
def test_three_processes_prepare_one_corpus(mimic_root: Path, tmp_path: Path) -> None:
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    expected = [*range(8)]
    assert run_together(1, tmp_path / "logs1", prepare_arguments(mimic_root, alone)) == expected
    assert run_together(3, tmp_path / "logs3", prepare_arguments(mimic_root, shared)) == expected
    # The folder is no setting, so prepare.json is the same too.
    assert_same_files(alone, shared)


def tokenize_arguments(chain: Path, corpus: Path, out: Path) -> list[str]:
    argv = ["tokenize", "--corpus", str(corpus), "--tokenizer", str(chain / "vqgan")]
    return [*argv, "--out", str(out)]


@pytest.mark.slow
def test_two_processes_tokenize_every_image_once(
    chain: Path, corpus_path: Path, tmp_path: Path
) -> None:
    out = tmp_path / "tokens"
    argv = tokenize_arguments(chain, corpus_path, out)
    assert run_together(2, tmp_path / "logs", argv) == [*range(8)]
    assert_same_files(chain / "tokens", out)


@pytest.mark.slow
def test_a_killed_tokenize_keeps_its_shards_and_drops_those_of_another_tokenizer(
    chain: Path, corpus_path: Path, tmp_path: Path
) -> None:
    out = tmp_path / "tokens"
    argv = tokenize_arguments(chain, corpus_path, out)
    process = start(tmp_path / "log", argv)
    while process.poll() is None and not (out / "parts/00001.npy").exists():
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not (out / "tokens.json").exists()
    kept = len(list((out / "parts").glob("*.npy")))
    assert run_together(1, tmp_path / "logs", argv) == [*range(kept, 8)]
    assert_same_files(chain / "tokens", out)

    other = tmp_path / "other"
    (other / "parts").mkdir(parents=True)
    (other / "parts/00000.npy").write_bytes(b"of another tokenizer")
    (other / "parts/encoder.json").write_text('{"corpus": "other", "tokenizer": "other"}')
    assert main(tokenize_arguments(chain, corpus_path, other)) == 0
    assert_same_files(out, other)


def test_a_shard_whose_holder_dies_is_taken_over(tmp_path: Path) -> None:
    (tmp_path / "done").mkdir()

    def done() -> set[int]:
        return {int(path.name) for path in (tmp_path / "done").iterdir()}

    reader, writer = os.pipe()
    if not (child := os.fork()):
        with file_lock(tmp_path / "00001.lock"):
            os.write(writer, b".")
            time.sleep(600)
    os.read(reader, 1)
    seen = []
    try:
        for number in claim_shards(tmp_path, 3, done):
            seen.append(number)
            (tmp_path / "done" / str(number)).touch()
            if number == 2:
                os.kill(child, signal.SIGKILL)
    finally:
        os.waitpid(child, 0)
    assert seen == [0, 2, 1]


def cache_missing_names(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Cache negative look-ups as NFS may.

    A name that was asked for and missing stays missing until its folder is listed again.
    """
    missing: set[str] = set()
    exists, listdir, io_open, replace = Path.exists, os.listdir, io.open, os.replace

    def cached_exists(path: Path) -> bool:
        if folder not in path.parents:
            return exists(path)
        if not exists(path):
            missing.add(str(path))
        return str(path) not in missing

    def refreshing_listdir(path: str | Path) -> list[str]:
        for name in list(missing):
            if Path(name).parent == Path(path):
                missing.discard(name)
        return listdir(path)

    def cached_open(path: Any, *args: Any, **options: Any) -> Any:
        mode = args[0] if args else "r"
        if str(path) in missing and mode in ("r", "rb"):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        return io_open(path, *args, **options)

    def cached_replace(source: Path, target: Path) -> None:
        replace(source, target)
        missing.discard(str(target))

    monkeypatch.setattr(Path, "exists", cached_exists)
    monkeypatch.setattr("os.replace", cached_replace)
    monkeypatch.setattr("os.listdir", refreshing_listdir)
    monkeypatch.setattr("io.open", cached_open)


def finish_during_first_wait(
    monkeypatch: pytest.MonkeyPatch, name: str, finish: Callable[[], object]
) -> list[str]:
    """Let another process finish everything while this one first waits for the lock `name`.

    The list it returns is filled with the name when that has happened.
    """
    seen: list[str] = []
    lockf = fcntl.lockf

    def lockf_after_finish(file: Any, operation: int) -> None:
        if Path(file.name).name == name and not seen:
            seen.append(name)
            finish()
        lockf(file, operation)

    monkeypatch.setattr("fcntl.lockf", lockf_after_finish)
    return seen


@pytest.mark.parametrize("lock", [".lock", "00000.lock"])
def test_prepare_does_nothing_if_another_process_finished_while_it_waited(
    mimic_root: Path, corpus_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lock: str
) -> None:
    """The other has removed the parts, and NFS still caches that corpus.json is missing."""
    out = tmp_path / "corpus"

    def finish() -> None:
        shutil.copytree(corpus_path, out, dirs_exist_ok=True)
        shutil.rmtree(out / "parts")

    cache_missing_names(monkeypatch, out)
    seen = finish_during_first_wait(monkeypatch, lock, finish)
    assert main(prepare_arguments(mimic_root, out, "--name", "phantom_mimic")) == 0
    assert seen == [lock]
    assert_same_files(corpus_path, out)


@pytest.fixture(scope="module")
def tokenized(
    corpus_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[str], Path]:
    """The command of an untrained tokenizer, without its folder, and a finished cache."""
    folder = tmp_path_factory.mktemp("untrained")
    torch.manual_seed(0)
    autoencoder = {
        "image_size": 32,
        "channels": 8,
        "channel_multipliers": [1, 2],
        "num_res_blocks": 1,
        "attention_resolutions": [],
        "latent_dim": 8,
    }
    module = VQGAN(autoencoder, {"codebook_size": 16, "code_dim": 4})
    checkpoint = {"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams)}
    torch.save(checkpoint, folder / "vqgan.ckpt")
    argv = ["tokenize", "--corpus", str(corpus_path), "--tokenizer", str(folder / "vqgan.ckpt")]
    argv.append("--out")
    assert main([*argv, str(folder / "tokens")]) == 0
    return argv, folder / "tokens"


@pytest.mark.parametrize("lock", [".lock", "00000.lock"])
def test_tokenize_does_nothing_if_another_process_finished_while_it_waited(
    tokenized: tuple[list[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lock: str
) -> None:
    argv, finished = tokenized
    out = tmp_path / "tokens"

    def finish() -> None:
        shutil.copytree(finished, out, dirs_exist_ok=True)
        shutil.rmtree(out / "parts")

    cache_missing_names(monkeypatch, out)
    seen = finish_during_first_wait(monkeypatch, lock, finish)
    assert main([*argv, str(out)]) == 0
    assert seen == [lock]
    assert_same_files(finished, out)


def test_prepare_starts_while_another_process_begins_the_corpus(
    mimic_root: Path, corpus_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other has claimed the folder, or writes its settings between two looks at it."""
    claimed, begun = tmp_path / "claimed", tmp_path / "begun"
    claimed.mkdir()
    (claimed / "prepare.json").touch()
    assert main(prepare_arguments(mimic_root, claimed, "--name", "phantom_mimic")) == 0
    assert_same_files(corpus_path, claimed)

    begun.mkdir()
    list_names = prepare.list_names

    def list_then_write(folder: Path) -> set[str]:
        names = list_names(folder)
        if folder == begun and not names:
            shutil.copy(corpus_path / "prepare.json", folder)
        return names

    monkeypatch.setattr(prepare, "list_names", list_then_write)
    assert main(prepare_arguments(mimic_root, begun, "--name", "phantom_mimic")) == 0
    assert_same_files(corpus_path, begun)


def test_a_cache_that_vanishes_while_it_is_opened_is_not_finished(
    tokenized: tuple[list[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process begins to write it again: it removes tokens.json first."""
    argv, finished = tokenized
    out = tmp_path / "tokens"
    shutil.copytree(finished, out)

    class VanishingCache(TokenCache):
        def __init__(self, *args: Any):
            (out / "tokens.json").unlink(missing_ok=True)
            super().__init__(*args)

    monkeypatch.setattr("mavilt_pl.vqgan.encode_corpus.TokenCache", VanishingCache)
    assert main([*argv, str(out)]) == 0
    assert_same_files(finished, out)


@pytest.mark.parametrize("options", [[], ["--only=step"]])
def test_a_recipe_warns_and_continues_on_a_file_system_without_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", no_locks)
    monkeypatch.setattr("fcntl.lockf", no_locks)
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        "steps: [{name: step, run: 'phantom mimic {out}/raw --studies 3 --validate 1 --test 1 "
        "--size 48 --workers 1', writes: raw}]"
    )
    with pytest.warns(UserWarning, match="lies on a file system without locks"):
        assert main(["run", str(recipe), "--out", str(tmp_path / "run"), *options]) == 0
    assert (tmp_path / "run/raw").exists()
