"""`mavilt run external`: a trained model on a dataset that it never saw."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from words import mavilt

from mavilt_pl.cli import main
from mavilt_pl.data.corpus import Corpus
from mavilt_pl.data.sources import nih

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(300)
def test_another_hospital_stands_next_to_the_own_test_set(chain: Path, tmp_path: Path) -> None:
    sizes = "--studies 24 --validate 4 --test 4 --size 48 --workers 2 --seed 9"
    mavilt(f"phantom mimic {sizes}", tmp_path / "raw")
    sets = {
        **{"source": "mimic-cxr-jpg", "data": tmp_path / "raw", "size": 32, "limit": 6},
        **{"model": chain / "stage2", "tokenizer": chain / "vqgan"},
        "tokens": f"[{chain / 'tokens'}]",
    }
    words = [part for key, value in sets.items() for part in ("--set", f"{key}={value}")]
    out = tmp_path / "external"
    assert main(["run", "external", "--out", str(out), *words]) == 0
    # Every study of it is tested, whatever its own splits are.
    corpus = Corpus(out / "corpora/external")
    assert len(corpus.rows("test")) == len(corpus) == 24
    figures = json.loads((out / "results.json").read_text())["figures"]
    areas = {}
    for figure in figures:
        assert figure["n"] and figure["protocol"]
        areas[figure["source"], figure["metric"], figure["control"]] = figure
    for source in ("phantom_mimic", "external_mimic-cxr-jpg"):
        assert (source, "psnr", None) in areas and (source, "accuracy", None) in areas
        assert (source, "accuracy", "shuffled_images") in areas
    # It has no training studies: what is most frequent at home is the answer to beat, not "yes".
    majority = areas["external_mimic-cxr-jpg", "accuracy", "majority_answer"]["value"]
    assert majority > 0.5
    # Its answers are read at the thresholds of the validation at home; it has none of its own.
    thresholds: dict[str, dict[str, set[float]]] = {}
    lines = (out / "stage2/test/predictions.jsonl").read_text().splitlines()[1:]
    for record in map(json.loads, lines):
        if "threshold" in record:
            of_source = thresholds.setdefault(record["source"], {})
            of_source.setdefault(record["topic"], set()).add(record["threshold"])
    home, away = thresholds["phantom_mimic"], thresholds["external_mimic-cxr-jpg"]
    assert home and all(len(values) == 1 for values in home.values())
    assert {topic: away[topic] for topic in home if topic in away} == {
        topic: home[topic] for topic in home if topic in away
    }
    page = (out / "report.html").read_text()
    assert "external_mimic-cxr-jpg" in page and "phantom_mimic" in page


def test_the_table_of_labels_is_what_the_reader_does() -> None:
    """The page says how names are mapped; a reader of the page must be able to rely on it."""
    page = (ROOT / "docs/external.md").read_text()
    rows = re.findall(r"^\| NIH \| (\w+) \| ([\w ]+) \|$", page, re.MULTILINE)
    assert dict(rows) == nih.NAMES
    kept = re.search(r"All other findings of NIH \(([^)]*)\)", page)
    assert kept is not None
    assert kept[1].split(", ") == [name for name in nih.FINDINGS if name not in nih.NAMES]
