"""Several processes at one task: every piece is made once, and the whole is what one process makes."""

from __future__ import annotations

import filecmp
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mavilt_pl.cli import main
from mavilt_pl.pieces import held, open_pieces

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
pieces = verb.open_pieces
def told(*words):
    for number in pieces(*words):
        print(number, file=made)
        time.sleep(0.05)
        yield number
verb.open_pieces = told
sys.exit(main(sys.argv[2:]))
"""


def together(count: int, logs: Path, words: list[str]) -> list[int]:
    """Start so many processes at one task; the pieces that they have made."""
    logs.mkdir()
    running = [subprocess.Popen([sys.executable, "-c", SHARED, str(logs / str(n)), *words], stdout=subprocess.DEVNULL) for n in range(count)]  # fmt: skip
    assert [one.wait(timeout=300) for one in running] == [0] * count
    return sorted(int(line) for n in range(count) for line in (logs / str(n)).read_text().split())


def same_files(one: Path, other: Path) -> None:
    names = [sorted(str(p.relative_to(o)) for p in o.rglob("*") if p.is_file()) for o in (one, other)]
    assert names[0] == names[1]
    assert [name for name in names[0] if not filecmp.cmp(one / name, other / name, shallow=False)] == []


@pytest.mark.slow
def test_three_processes_prepare_one_corpus(mimic_root: Path, tmp_path: Path) -> None:
    def words(out: str) -> list[str]:
        return ["prepare", "mimic-cxr-jpg", str(mimic_root), "--out", str(tmp_path / out), "--size", "32", "--workers", "1"]  # fmt: skip

    assert together(1, tmp_path / "alone.logs", words("alone")) == [*range(8)]
    assert together(3, tmp_path / "shared.logs", words("shared")) == [*range(8)]
    same_files(tmp_path / "alone", tmp_path / "shared")


@pytest.mark.slow
def test_two_processes_tokenize_every_image_once(chain: Path, corpus_path: Path, tmp_path: Path) -> None:
    out = tmp_path / "tokens"
    words = ["tokenize", "--corpus", str(corpus_path), "--tokenizer", str(chain / "vqgan"), "--out", str(out)]
    assert together(2, tmp_path / "logs", words) == [*range(8)]
    same_files(chain / "tokens", out)


@pytest.mark.slow
def test_a_killed_tokenize_keeps_its_pieces_and_drops_those_of_another_tokenizer(
    chain: Path, corpus_path: Path, tmp_path: Path
) -> None:
    out, log = tmp_path / "tokens", tmp_path / "log"
    words = ["tokenize", "--corpus", str(corpus_path), "--tokenizer", str(chain / "vqgan"), "--out", str(out)]
    running = subprocess.Popen([sys.executable, "-c", SHARED, str(log), *words], stdout=subprocess.DEVNULL)
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

    def done(number: int) -> bool:
        return (tmp_path / "done" / str(number)).exists()

    reader, writer = os.pipe()
    if not (child := os.fork()):
        with held(tmp_path / "00001.lock"):
            os.write(writer, b".")
            time.sleep(600)
    os.read(reader, 1)
    seen = []
    try:
        for number in open_pieces(tmp_path, 3, done):
            seen.append(number)
            (tmp_path / "done" / str(number)).touch()
            if number == 2:
                os.kill(child, signal.SIGKILL)
    finally:
        os.waitpid(child, 0)
    assert seen == [0, 2, 1]
