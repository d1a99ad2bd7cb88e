"""Prepare: everything adds up, nothing is done twice, a poisoned file costs itself only."""

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
from mavilt_pl.data.corpus import Corpus, _Journal
from mavilt_pl.data.radiograph import read_radiograph, resize
from mavilt_pl.parallel.process_pool import IsolatedMap


def test_what_is_read_is_kept_or_rejected(mimic_root: Path, tmp_path: Path) -> None:
    root, out = tmp_path / "raw", tmp_path / "out"
    shutil.copytree(mimic_root, root)
    damaged, missing = sorted(root.rglob("*.jpg"))[:2]
    damaged.write_bytes(damaged.read_bytes()[:200])
    missing.unlink()
    command = [
        "prepare",
        "mimic-cxr-jpg",
        str(root),
        "--out",
        str(out),
        "--size",
        "32",
        "--views",
        "PA",
    ]
    assert main(command) == 0
    facts = json.loads((out / "corpus.json").read_text())
    rejects = list(csv.DictReader((out / "rejects.csv").open()))
    stages = Counter(row["stage"] for row in rejects)
    images, studies = facts["total"]["images"], facts["total"]["studies"]
    assert images["read"] == 61 == images["kept"] + images["rejected"]
    assert images["rejected"] == stages["views"] + stages["decode"] and stages["views"] > 10
    assert (
        studies["read"] == 61 == studies["kept"] + studies["rejected"]
        and studies["rejected"] == stages["images"]
    )
    for what, total in facts["total"].items():
        for column in total:
            assert total[column] == sum(split[what][column] for split in facts["splits"].values())
    assert all(row["study"] and row["reason"] for row in rejects)
    assert {Path(row["file"]).name for row in rejects if row["stage"] == "decode"} <= {
        damaged.name,
        missing.name,
    }
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


@pytest.mark.slow
def test_killed_at_any_moment_no_image_is_done_twice_or_lost(
    mimic_root: Path, tmp_path: Path
) -> None:
    """Every decode leaves a line in a log; killed again and again, the corpus is the same and no
    finished image is redone.
    """
    log = tmp_path / "decoded"
    code = (
        "import sys, time, mavilt_pl.data.corpus as corpus\nfrom mavilt_pl.cli import main\n"
        "add = corpus._Journal.add\n"
        f"def told(self, made):\n    add(self, made); open({str(log)!r}, 'a').write('x'); "
        f"time.sleep(0.05)\n"
        "corpus._Journal.add = told\n"
        "if __name__ == '__main__':\n    sys.exit(main(sys.argv[1:]))\n"
    )
    script = tmp_path / "slow.py"
    script.write_text(code)
    command = [
        sys.executable,
        str(script),
        "prepare",
        "mimic-cxr-jpg",
        str(mimic_root),
        "--size",
        "32",
        "--workers",
        "1",
    ]
    out = tmp_path / "out"
    kills = 0
    while not (out / "corpus.json").exists():
        running = subprocess.Popen(
            [*command, "--out", str(out)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        before = log.stat().st_size if log.exists() else 0
        while running.poll() is None and (log.stat().st_size if log.exists() else 0) < before + 20:
            time.sleep(0.02)
        if running.poll() is None and kills < 2:
            os.killpg(running.pid, signal.SIGKILL)
            kills += 1
        assert running.wait() in (0, -signal.SIGKILL)
    assert kills == 2 and log.stat().st_size == 61
    assert main([*command[2:], "--out", str(tmp_path / "whole")]) == 0
    assert Corpus(out).fingerprint == Corpus(tmp_path / "whole").fingerprint


def test_a_line_without_its_pixels_is_not_believed(tmp_path: Path) -> None:
    tasks = [("a", 4, "pad"), ("b", 4, "pad"), ("c", 4, "pad")]
    journal = _Journal(tmp_path, 0, 4, tasks)
    journal.add(np.full((4, 4), 1, np.uint8))
    journal.add("b: no image")
    journal.add(np.full((4, 4), 3, np.uint8))
    journal.close()
    assert _Journal(tmp_path, 0, 4, tasks).reasons == [None, "b: no image", None]
    os.truncate(journal.pixels_path, 20)
    again = _Journal(tmp_path, 0, 4, tasks)
    assert again.reasons == [None, "b: no image"] and journal.pixels_path.stat().st_size == 16
    again.close()
    assert _Journal(tmp_path, 0, 4, tasks[:2]).reasons == []  # other files: begun anew


def work(task: str) -> str:
    if task == "die":
        os.kill(os.getpid(), signal.SIGSEGV)
    if task == "hang":
        time.sleep(60)
    return task.upper()


def test_a_file_that_kills_or_hangs_its_decoder_costs_itself_only() -> None:
    careful = IsolatedMap(work, lambda task, why: f"{task}: {why}", workers=2, timeout=6.0)
    tasks = ["a", "b", "die", "c", "hang", "d", "e"]
    made = list(careful(tasks))
    careful.close()
    assert made == [
        "A",
        "B",
        "die: the decoder died on it",
        "C",
        "hang: the decoder took more than 6 s",
        "D",
        "E",
    ]


def test_damage_to_a_finished_corpus_is_told(
    corpus_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, change in (
        ("studies.arrow", lambda p: os.truncate(p, 100)),
        ("pixels-00000.npy", Path.unlink),
    ):
        broken = tmp_path / name
        shutil.copytree(corpus_path, broken)
        change(broken / name)
        assert main(["doctor", str(broken)]) == 1
        assert "prepare it again" in capsys.readouterr().err


def test_views_and_sizes_that_make_no_sense_are_refused(
    mimic_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        main(
            [
                "prepare",
                "mimic-cxr-jpg",
                str(mimic_root),
                "--out",
                str(tmp_path / "o"),
                "--views",
                "SIDE",
            ]
        )
        == 1
    )
    assert "expected views among PA, AP" in capsys.readouterr().err


def test_a_picture_twice_the_size_gives_the_same_pixels(tmp_path: Path) -> None:
    """The fast path (a JPEG decoded at a quarter) against the plain one."""
    from mavilt_pl.data.radiograph import read_sized

    random = np.random.default_rng(0)
    smooth = np.asarray(
        Image.fromarray(random.integers(0, 255, (24, 20), dtype=np.uint8)).resize(
            (1000, 1200), Image.Resampling.BICUBIC
        )
    )
    Image.fromarray(smooth).save(tmp_path / "a.jpg", quality=95)
    slow = resize(read_radiograph(tmp_path / "a.jpg"), 64).astype(int)
    for fit in ("pad", "crop"):
        slow = resize(read_radiograph(tmp_path / "a.jpg"), 64, fit).astype(int)
        assert np.abs(read_sized(tmp_path / "a.jpg", 64, fit) - slow).max() <= 3
