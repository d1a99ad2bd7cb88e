"""Several processes at one task: every piece is made once, and the whole is what one process makes."""

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
from mavilt_pl.data.token_cache import TokenCache
from mavilt_pl.parallel.file_lock import file_lock
from mavilt_pl.parallel.shards import claim_shards
from mavilt_pl.vqgan.module import VQGAN

# A command with small shards and pieces, which says which of them this process has made.
SHARED = """
import sys, time
from mavilt_pl.cli import main
from mavilt_pl.data import corpus
from mavilt_pl.vqgan import verb
corpus.SHARD = verb.PIECE = 8
made = open(sys.argv[1], "w", buffering=1)
decode = corpus._decode_shard
corpus._decode_shard = lambda out, number, *rest: (print(number, file=made), decode(out, number, *rest))
pieces = verb.claim_shards
def told(*words):
    for number in pieces(*words):
        print(number, file=made)
        time.sleep(0.05)
        yield number
verb.claim_shards = told
sys.exit(main(sys.argv[2:]))
"""


def together(count: int, logs: Path, words: list[str]) -> list[int]:
    """Start so many processes at one task; the pieces that they have made."""
    logs.mkdir()
    running = [
        subprocess.Popen(
            [sys.executable, "-c", SHARED, str(logs / str(n)), *words], stdout=subprocess.DEVNULL
        )
        for n in range(count)
    ]
    assert [one.wait(timeout=300) for one in running] == [0] * count
    return sorted(int(line) for n in range(count) for line in (logs / str(n)).read_text().split())


def same_files(one: Path, other: Path) -> None:
    names = [
        sorted(str(p.relative_to(o)) for p in o.rglob("*") if p.is_file()) for o in (one, other)
    ]
    assert names[0] == names[1]
    assert [
        name for name in names[0] if not filecmp.cmp(one / name, other / name, shallow=False)
    ] == []


@pytest.mark.slow
def test_three_processes_prepare_one_corpus(mimic_root: Path, tmp_path: Path) -> None:
    def words(out: str) -> list[str]:
        return [
            "prepare",
            "mimic-cxr-jpg",
            str(mimic_root),
            "--out",
            str(tmp_path / out),
            "--size",
            "32",
            "--workers",
            "1",
        ]

    assert together(1, tmp_path / "alone.logs", words("alone")) == [*range(8)]
    assert together(3, tmp_path / "shared.logs", words("shared")) == [*range(8)]
    same_files(tmp_path / "alone", tmp_path / "shared")


@pytest.mark.slow
def test_two_processes_tokenize_every_image_once(
    chain: Path, corpus_path: Path, tmp_path: Path
) -> None:
    out = tmp_path / "tokens"
    words = [
        "tokenize",
        "--corpus",
        str(corpus_path),
        "--tokenizer",
        str(chain / "vqgan"),
        "--out",
        str(out),
    ]
    assert together(2, tmp_path / "logs", words) == [*range(8)]
    same_files(chain / "tokens", out)


@pytest.mark.slow
def test_a_killed_tokenize_keeps_its_pieces_and_drops_those_of_another_tokenizer(
    chain: Path, corpus_path: Path, tmp_path: Path
) -> None:
    out, log = tmp_path / "tokens", tmp_path / "log"
    words = [
        "tokenize",
        "--corpus",
        str(corpus_path),
        "--tokenizer",
        str(chain / "vqgan"),
        "--out",
        str(out),
    ]
    running = subprocess.Popen(
        [sys.executable, "-c", SHARED, str(log), *words], stdout=subprocess.DEVNULL
    )
    while running.poll() is None and not (out / "parts/00001.npy").exists():
        time.sleep(0.01)
    running.kill()
    assert running.wait() == -signal.SIGKILL and not (out / "tokens.json").exists()
    kept = len(list((out / "parts").glob("*.npy")))
    assert together(1, tmp_path / "logs", words) == [*range(kept, 8)]
    same_files(chain / "tokens", out)

    other = tmp_path / "other"
    (other / "parts").mkdir(parents=True)
    (other / "parts/00000.npy").write_bytes(b"of another tokenizer")
    assert main([*words[:-1], str(other)]) == 0
    same_files(out, other)


def test_a_piece_whose_holder_dies_is_taken_over(tmp_path: Path) -> None:
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


def forgetful(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """As NFS may: what was once asked for and missing in a folder is missing until the folder is
    listed again.
    """
    missing: set[str] = set()
    exists, listing, open_, replace = Path.exists, os.listdir, io.open, os.replace

    def remembered(path: Path) -> bool:
        if folder not in path.parents:
            return exists(path)
        if not exists(path):
            missing.add(str(path))
        return str(path) not in missing

    def listed(path: str | Path) -> list[str]:
        missing.difference_update([one for one in missing if Path(one).parent == Path(path)])
        return listing(path)

    def opened(path: Any, *words: Any, **more: Any) -> Any:
        if str(path) in missing and (words or ["r"])[0] in ("r", "rb"):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        return open_(path, *words, **more)

    def replaced(one: Path, other: Path) -> None:
        replace(one, other)
        missing.discard(str(other))

    monkeypatch.setattr(Path, "exists", remembered)
    monkeypatch.setattr("os.replace", replaced)
    monkeypatch.setattr("os.listdir", listed)
    monkeypatch.setattr("io.open", opened)


def after_first(
    monkeypatch: pytest.MonkeyPatch, name: str, finish: Callable[[], object]
) -> list[str]:
    """Another process finishes the whole while this one first waits for the lock of that name;
    fills the list that it gives.
    """
    seen: list[str] = []
    lock = fcntl.lockf

    def waited(file: Any, kind: int) -> None:
        if Path(file.name).name == name and not seen:
            seen.append(name)
            finish()
        lock(file, kind)

    monkeypatch.setattr("fcntl.lockf", waited)
    return seen


@pytest.mark.parametrize("at", [".lock", "00000.lock"])
def test_who_waited_while_the_whole_was_finished_does_nothing(
    mimic_root: Path, corpus_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    """The finisher has removed the parts, and this machine still remembers that corpus.json was
    missing.
    """
    out = tmp_path / "corpus"

    def finish() -> None:
        shutil.copytree(corpus_path, out, dirs_exist_ok=True)
        shutil.rmtree(out / "parts")

    forgetful(monkeypatch, out)
    seen = after_first(monkeypatch, at, finish)
    words = [
        "prepare",
        "mimic-cxr-jpg",
        str(mimic_root),
        "--out",
        str(out),
        "--size",
        "32",
        "--name",
        "phantom_mimic",
    ]
    assert main([*words, "--workers", "1"]) == 0
    assert seen == [at]
    same_files(corpus_path, out)


@pytest.fixture(scope="module")
def tokenized(
    corpus_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[str], Path]:
    """The command of an untrained tokenizer but for its folder, and the cache that it made."""
    folder = tmp_path_factory.mktemp("untrained")
    torch.manual_seed(0)
    net = VQGAN(
        {
            "image_size": 32,
            "channels": 8,
            "channel_multipliers": [1, 2],
            "num_res_blocks": 1,
            "attention_resolutions": [],
            "latent_dim": 8,
        },
        {"codebook_size": 16, "code_dim": 4},
    )
    torch.save(
        {"state_dict": net.state_dict(), "hyper_parameters": dict(net.hparams)},
        folder / "vqgan.ckpt",
    )
    words = [
        "tokenize",
        "--corpus",
        str(corpus_path),
        "--tokenizer",
        str(folder / "vqgan.ckpt"),
        "--out",
    ]
    assert main([*words, str(folder / "tokens")]) == 0
    return words, folder / "tokens"


@pytest.mark.parametrize("at", [".lock", "00000.lock"])
def test_who_waited_while_the_codes_were_finished_does_nothing(
    tokenized: tuple[list[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    (words, whole), out = tokenized, tmp_path / "tokens"

    def finish() -> None:
        shutil.copytree(whole, out, dirs_exist_ok=True)
        shutil.rmtree(out / "parts")

    forgetful(monkeypatch, out)
    seen = after_first(monkeypatch, at, finish)
    assert main([*words, str(out)]) == 0 and seen == [at]
    same_files(whole, out)


def test_a_task_that_starts_while_another_begins_the_corpus(
    mimic_root: Path, corpus_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its settings are being written, or are written between two looks at the folder."""
    words = [
        "prepare",
        "mimic-cxr-jpg",
        str(mimic_root),
        "--size",
        "32",
        "--name",
        "phantom_mimic",
        "--workers",
        "1",
    ]
    begun, now = tmp_path / "begun", tmp_path / "now"
    begun.mkdir()
    (begun / "prepare.json.part").write_text("{")
    assert main([*words, "--out", str(begun)]) == 0
    same_files(corpus_path, begun)

    now.mkdir()
    exists = Path.exists

    def written_after(path: Path) -> bool:
        there = exists(path)
        if path == now / "prepare.json" and not there:
            shutil.copy(corpus_path / "prepare.json", path)
        return there

    monkeypatch.setattr(Path, "exists", written_after)
    assert main([*words, "--out", str(now)]) == 0
    same_files(corpus_path, now)


def test_a_cache_that_vanishes_while_it_is_looked_at_is_not_finished(
    tokenized: tuple[list[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process begins to write it anew: it takes tokens.json away first."""
    (words, whole), out = tokenized, tmp_path / "tokens"
    shutil.copytree(whole, out)

    class Gone(TokenCache):
        def __init__(self, *words: Any):
            (out / "tokens.json").unlink(missing_ok=True)
            super().__init__(*words)

    monkeypatch.setattr("mavilt_pl.data.token_cache.TokenCache", Gone)
    assert main([*words, str(out)]) == 0
    same_files(whole, out)


@pytest.mark.parametrize("more", [[], ["--only=step"]])
def test_where_files_cannot_be_locked_a_recipe_warns_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: list[str]
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
    with pytest.warns(UserWarning, match="lies where files cannot be locked"):
        assert main(["run", str(recipe), "--out", str(tmp_path / "run"), *more]) == 0
    assert (tmp_path / "run/raw").exists()
