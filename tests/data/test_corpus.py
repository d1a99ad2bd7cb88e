"""Prepare: the counts add up, nothing is done twice, a bad file is rejected alone."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mavilt_pl.cli import main
from mavilt_pl.data.corpus import Corpus
from mavilt_pl.data.decode_journal import DecodeJournal
from mavilt_pl.data.radiograph import read_radiograph, read_sized, resize
from mavilt_pl.errors import UserError
from mavilt_pl.parallel.process_pool import IsolatedMap


def prepare_arguments(root: Path, out: Path, *options: str) -> list[str]:
    return ["prepare", "mimic-cxr-jpg", str(root), "--out", str(out), "--size", "32", *options]


def test_everything_read_is_kept_or_rejected(mimic_root: Path, tmp_path: Path) -> None:
    root, out = tmp_path / "raw", tmp_path / "out"
    shutil.copytree(mimic_root, root)
    damaged, missing = sorted(root.rglob("*.jpg"))[:2]
    damaged.write_bytes(damaged.read_bytes()[:200])
    missing.unlink()
    assert main(prepare_arguments(root, out, "--views", "PA")) == 0

    facts = json.loads((out / "corpus.json").read_text())
    rejects = list(csv.DictReader((out / "rejects.csv").open()))
    stages = Counter(row["stage"] for row in rejects)
    images, studies = facts["total"]["images"], facts["total"]["studies"]
    assert images["read"] == 61
    assert images["read"] == images["kept"] + images["rejected"]
    assert images["rejected"] == stages["views"] + stages["decode"]
    assert stages["views"] > 10
    assert studies["read"] == 61
    assert studies["read"] == studies["kept"] + studies["rejected"]
    assert studies["rejected"] == stages["images"]
    for kind, total in facts["total"].items():
        for column in total:
            assert total[column] == sum(split[kind][column] for split in facts["splits"].values())
    assert all(row["study"] and row["reason"] for row in rejects)
    undecoded = {Path(row["file"]).name for row in rejects if row["stage"] == "decode"}
    assert undecoded <= {damaged.name, missing.name}
    rows = pq.read_table(out / "studies.parquet").to_pylist()
    assert len(rows) == studies["kept"] == len(Corpus(out))


def test_pixels_are_those_of_the_files(corpus_path: Path, mimic_root: Path) -> None:
    corpus = Corpus(corpus_path)
    files = {path.stem: path for path in mimic_root.rglob("*.jpg")}
    for row in range(0, len(corpus), 7):
        (image,), ((number, view),) = corpus[row].images, corpus.image_rows(row)
        assert view == image.view
        expected = resize(read_radiograph(files[image.key]), 32).astype(int)
        assert np.abs(np.asarray(corpus.pixels(number)) - expected).max() <= 2


# `mavilt`, slowed down; it logs an "x" for each image that it adds to a journal.
SLOW_COMMAND = """
import sys, time
from mavilt_pl.cli import main
from mavilt_pl.data.decode_journal import DecodeJournal

add = DecodeJournal.add

def logged_add(self, result):
    add(self, result)
    open({log!r}, "a").write("x")
    time.sleep(0.05)

DecodeJournal.add = logged_add
if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_killed_prepare_loses_no_image_and_decodes_none_twice(
    mimic_root: Path, tmp_path: Path
) -> None:
    """Killed twice, the corpus is the same, and each image is decoded once."""
    log, script, out = tmp_path / "decoded", tmp_path / "slow.py", tmp_path / "out"
    log.touch()
    script.write_text(SLOW_COMMAND.format(log=str(log)))
    kills = 0
    while not (out / "corpus.json").exists():
        process = subprocess.Popen(
            [sys.executable, script, *prepare_arguments(mimic_root, out, "--workers", "1")],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        before = log.stat().st_size
        while process.poll() is None and log.stat().st_size < before + 20:
            time.sleep(0.02)
        if process.poll() is None and kills < 2:
            os.killpg(process.pid, signal.SIGKILL)
            kills += 1
        assert process.wait() in (0, -signal.SIGKILL)
    assert kills == 2
    assert log.stat().st_size == 61
    assert main(prepare_arguments(mimic_root, tmp_path / "whole", "--workers", "1")) == 0
    assert Corpus(out).fingerprint == Corpus(tmp_path / "whole").fingerprint


def test_a_journal_line_without_its_pixels_is_dropped(tmp_path: Path) -> None:
    tasks = [(name, 4, "pad", None) for name in "abc"]
    journal = DecodeJournal(tmp_path, 0, 4, tasks)
    journal.add(np.full((4, 4), 1, np.uint8))
    journal.add("b: no image")
    journal.add(np.full((4, 4), 3, np.uint8))
    journal.close()
    assert DecodeJournal(tmp_path, 0, 4, tasks).reasons == [None, "b: no image", None]

    os.truncate(journal.pixels_path, 20)
    reopened = DecodeJournal(tmp_path, 0, 4, tasks)
    assert reopened.reasons == [None, "b: no image"]
    assert journal.pixels_path.stat().st_size == 16
    reopened.close()
    # A journal of other files is started again.
    assert DecodeJournal(tmp_path, 0, 4, tasks[:2]).reasons == []


def work(task: str) -> str:
    if task == "die":
        os.kill(os.getpid(), signal.SIGSEGV)
    if task == "hang":
        time.sleep(60)
    return task.upper()


@pytest.mark.slow
def test_a_file_that_kills_or_stalls_its_decoder_fails_alone() -> None:
    isolated_map = IsolatedMap(work, lambda task, why: f"{task}: {why}", workers=2, timeout=6.0)
    results = list(isolated_map(["a", "b", "die", "c", "hang", "d", "e"]))
    isolated_map.close()
    assert results == [
        "A",
        "B",
        "die: the decoder died on it",
        "C",
        "hang: the decoder took more than 6 s",
        "D",
        "E",
    ]


def test_damage_to_a_finished_corpus_is_reported(
    corpus_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, change in (
        ("studies.arrow", lambda path: os.truncate(path, 100)),
        ("pixels-00000.npy", Path.unlink),
    ):
        broken = tmp_path / name
        shutil.copytree(corpus_path, broken)
        change(broken / name)
        assert main(["doctor", str(broken)]) == 1
        assert "prepare it again" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["thesis.tex", "parts/00000.npy"])
def test_a_folder_of_other_files_is_refused_and_left_alone(
    mimic_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """Only prepare.json says that OUT, and OUT/parts in it, are of `mavilt prepare`."""
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_text("years of work")
    assert main(prepare_arguments(mimic_root, tmp_path)) == 1
    assert "is not empty and not a corpus in progress" in capsys.readouterr().err
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [file]
    assert file.read_text() == "years of work"

    file.unlink()
    (tmp_path / "prepare.json").write_text('{"recipe": "bread"}')
    assert main(prepare_arguments(mimic_root, tmp_path)) == 1
    assert "is not a record of `mavilt prepare`" in capsys.readouterr().err


def test_files_of_others_in_a_corpus_in_progress_stay(mimic_root: Path, tmp_path: Path) -> None:
    (tmp_path / "prepare.json").touch()
    note = tmp_path / "parts" / "note.txt"
    note.parent.mkdir()
    note.write_text("keep")
    assert main(prepare_arguments(mimic_root, tmp_path, "--workers", "1")) == 0
    assert [path.name for path in note.parent.iterdir()] == ["note.txt"]


def test_unknown_views_are_refused(
    mimic_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(prepare_arguments(mimic_root, tmp_path / "out", "--views", "SIDE")) == 1
    assert "expected views among PA, AP" in capsys.readouterr().err


def test_a_large_jpeg_gives_the_same_pixels_by_either_path(tmp_path: Path) -> None:
    """The fast path (a JPEG decoded at a quarter) against the plain one."""
    noise = np.random.default_rng(0).integers(0, 255, (24, 20), dtype=np.uint8)
    smooth = Image.fromarray(noise).resize((1000, 1200), Image.Resampling.BICUBIC)
    smooth.save(tmp_path / "a.jpg", quality=95)
    for fit in ("pad", "crop"):
        expected = resize(read_radiograph(tmp_path / "a.jpg"), 64, fit).astype(int)
        assert np.abs(read_sized(tmp_path / "a.jpg", 64, fit) - expected).max() <= 3


def test_blank_labels_are_unknown_or_absent(corpus_path: Path) -> None:
    """As classifiers of CheXpert's tables are trained: where a corpus labels the finding at all."""
    corpus = Corpus(corpus_path)
    findings = ["consolidation", "pneumothorax", "enlarged cardiomediastinum"]
    unknown, absent = corpus.labels(findings), corpus.labels(findings, blank_is_absent=True)
    blank = np.isnan(unknown)
    # Phantoms with clear lungs do not mention a consolidation.
    assert 0 < blank[:, 0].mean() < 0.6
    assert not blank[:, 1].any()
    np.testing.assert_array_equal(absent[:, 0], np.nan_to_num(unknown[:, 0]))
    # Phantoms do not have it: nothing is known.
    assert np.isnan(absent[:, 2]).all()


MANY_SHARDS = """
import resource, sys
from mavilt_pl.data.corpus import Corpus

resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))
corpus = Corpus(sys.argv[1])
print([int(corpus.pixels(image)[0, 0]) for image in range(corpus.n_images)])
"""


def test_a_corpus_may_have_more_shards_than_a_process_may_open(
    corpus_path: Path, tmp_path: Path
) -> None:
    out = tmp_path / "corpus"
    shutil.copytree(corpus_path, out)
    (pixels,) = [np.load(path) for path in out.glob("pixels-*.npy")]
    # The images again and again, in shards of one and of two.
    images = [np.full_like(pixels[0], number % 251) for number in range(300)]
    shards = [images[start : start + 1 + start % 2] for start in range(0, 300, 1)]
    for number, shard in enumerate(shards):
        np.save(out / f"pixels-{number:05d}.npy", np.stack(shard))
    facts = json.loads((out / "corpus.json").read_text())
    facts |= {"shards": len(shards), "images": sum(map(len, shards))}
    (out / "corpus.json").write_text(json.dumps(facts))
    run = subprocess.run(
        [sys.executable, "-c", MANY_SHARDS, str(out)], capture_output=True, text=True
    )
    expected = [int(image[0, 0]) for shard in shards for image in shard]
    assert run.returncode == 0 and json.loads(run.stdout) == expected, run.stderr
    # A shard that lost its end is found when the corpus is opened.
    path = out / "pixels-00250.npy"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"pixels-00250.npy lacks its last 1 bytes"):
        Corpus(out)
