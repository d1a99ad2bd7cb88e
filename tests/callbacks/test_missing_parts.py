"""Corpora without labels, or of a single study: what can be computed is, the rest is said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from words import DATA, QUIET, mavilt

from mavilt_pl.cli import main
from mavilt_pl.data.sources import read_source

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def unlabelled(mimic_root: Path, chain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The studies of `mimic_root` as R2Gen's annotation gives them: reports and nothing else."""
    root = tmp_path_factory.mktemp("r2gen")

    groups: dict[str, list[dict[str, object]]] = {"train": [], "val": [], "test": []}
    for study in read_source("mimic-cxr-jpg", mimic_root, lambda *_: None):
        path = study.images[0].path
        entry = {"id": study.study, "report": study.findings, "image_path": [path.name]}
        groups[study.split].append(entry)
        (root / "images").mkdir(exist_ok=True)
        (root / "images" / path.name).write_bytes(path.read_bytes())
    (root / "annotation.json").write_text(json.dumps(groups))
    mavilt("prepare r2gen --size 32 --workers 1", root, "--out", root / "corpus")
    mavilt(
        *("tokenize --device cpu", "--corpus", root / "corpus", "--tokenizer", chain / "vqgan"),
        *("--out", root / "tokens"),
    )
    return root


def figures_of(chain: Path, corpora: Path, out: Path, *more: str) -> dict[str, float]:
    """The figures of a test of Stage 2 with all metrics."""
    words = [
        *("test", "--config=demo/stage2.yaml", *QUIET),
        f"--data.corpora=[{corpora}/corpus]",
        f"--data.tokens=[{corpora}/tokens]",
        "--data.weights=null",
        f"--model.init_args.tokens={corpora}/tokens",
        f"--model.init_args.backbone={chain}/backbone/backbone",
        f"--ckpt_path={chain}/stage2/checkpoints/last.ckpt",
        f"--trainer.default_root_dir={out}",
        "--trainer.callbacks=mavilt_pl.callbacks.ReportMetrics",
        "--trainer.callbacks+=mavilt_pl.callbacks.VQAMetrics",
        "--trainer.callbacks+=mavilt_pl.callbacks.SynthesisMetrics",
        f"--trainer.callbacks.tokenizer={chain}/vqgan/checkpoints/last.ckpt",
        f"--trainer.callbacks.judge={chain}/encoder/checkpoints/last.ckpt",
        "--trainer.callbacks+=mavilt_pl.evaluation.ResultsWriter",
        *more,
    ]
    assert main(words) == 0
    results = json.loads((out / "test/results.json").read_text())
    return {figure["metric"]: figure["value"] for figure in results["figures"]}


@pytest.mark.parametrize("findings", [DATA, "--data.findings=null"])
@pytest.mark.filterwarnings("default")
def test_a_corpus_without_labels(
    findings: str,
    unlabelled: Path,
    chain: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    recwarn: pytest.WarningsRecorder,
) -> None:
    figures = figures_of(chain, unlabelled, tmp_path, findings)
    assert "bleu_4" in figures and "fid_cxr" in figures
    assert not any(name.startswith(("findings_f1", "auroc")) for name in figures)
    said = capsys.readouterr().err + " ".join(str(one.message) for one in recwarn)
    assert "findings F1" in said


def test_a_single_study(unlabelled: Path, chain: Path, tmp_path: Path) -> None:
    figures = figures_of(chain, unlabelled, tmp_path, DATA, "--data.limit_test=1")
    assert "bleu_4" in figures
