"""Every stage through the command line: resume, two processes, and the page in the end."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from lightning import Callback, Trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM, AutoTokenizer
from vqa_rad import prepared
from words import DATA, FINDINGS, QUIET

from mavilt_pl.cli import main
from mavilt_pl.config_files import CONFIGS
from mavilt_pl.data.corpus import Corpus
from mavilt_pl.data.report_sections import compose
from mavilt_pl.language.options import TASKS

pytestmark = pytest.mark.slow


def language(chain: Path, corpus: Path) -> list[str]:
    return [
        *QUIET,
        f"--data.corpora=[{corpus}]",
        f"--data.tokens=[{chain}/tokens]",
        "--data.weights=null",
        DATA,
        f"--model.init_args.backbone={chain}/backbone/backbone",
        f"--model.init_args.tokens={chain}/tokens",
    ]


def vqgan(chain: Path, corpus: Path) -> list[str]:
    small = {"autoencoder.image_size": 32, "autoencoder.channels": 8, "quantizer.codebook_size": 32}
    encoder = f"--model.init_args.encoder={chain}/encoder/checkpoints/last.ckpt"
    sizes = [f"--model.init_args.{name}={value}" for name, value in small.items()]
    return [
        *QUIET,
        f"--data.corpora=[{corpus}]",
        "--data.weights=null",
        "--data.batch_size=8",
        encoder,
        *sizes,
    ]


def test_each_stage_left_what_the_next_one_takes(chain: Path) -> None:
    for name in ("encoder", "vqgan", "backbone", "stage1", "stage2"):
        assert (chain / name / "checkpoints" / "last.ckpt").exists()
        assert list((chain / name / "tensorboard").glob("events.out.tfevents.*"))
    assert (chain / "backbone" / "backbone" / "config.json").exists()
    first, second = (
        torch.load(chain / s / "checkpoints/last.ckpt", weights_only=True)
        for s in ("stage1", "stage2")
    )
    assert first["visual_tokenizer"] == second["visual_tokenizer"]


@pytest.mark.parametrize("module", ["vqgan", "stage1"])
def test_resumed_equals_never_stopped(
    chain: Path, corpus_path: Path, tmp_path: Path, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Resumed from the checkpoint of step 3 of 6, in the middle of an epoch: the same weights, bit
    for bit.
    """
    if module == "vqgan":
        more = [*vqgan(chain, corpus_path), "--model.init_args.gan_start=2"]
    else:
        more = [*language(chain, corpus_path), "--data.batch_size=4"]
    middle = tmp_path / "middle.ckpt"

    class Keep(Callback):
        """Stands where the learning-rate monitor stands, and keeps the checkpoint of step 3."""

        def __init__(self, interval: str):
            self.interval = interval

        def on_train_batch_end(self, trainer: Trainer, *_: object) -> None:
            if trainer.global_step == 3:
                trainer.save_checkpoint(middle)

    monkeypatch.setattr("mavilt_pl.cli.training.LearningRateMonitor", Keep)

    def fit(folder: str, *ckpt: str) -> dict:
        words = [
            *more,
            "--trainer.max_steps=6",
            "--trainer.val_check_interval=3",
            "--checkpoint_every=6",
            *ckpt,
        ]
        assert (
            main(
                [
                    "fit",
                    "--config",
                    f"demo/{module}.yaml",
                    *words,
                    f"--trainer.default_root_dir={tmp_path / folder}",
                ]
            )
            == 0
        )
        return torch.load(tmp_path / folder / "checkpoints/last.ckpt", weights_only=True)

    whole = fit("whole")
    resumed = fit("resumed", f"--ckpt_path={middle}")
    assert resumed["global_step"] == whole["global_step"] == 6
    for name, value in whole["state_dict"].items():
        assert torch.equal(value, resumed["state_dict"][name]), name
    for mine, other in zip(whole["optimizer_states"], resumed["optimizer_states"]):
        for key, state in mine["state"].items():
            assert all(torch.equal(v, other["state"][key][k]) for k, v in state.items())


def results(chain: Path, corpus: Path, out: Path, *more: str) -> dict[tuple, dict]:
    words = [
        "test",
        "--config",
        "demo/stage2.yaml",
        *language(chain, corpus),
        f"--trainer.default_root_dir={out}",
        "--data.eval_batch_size=3",
        f"--ckpt_path={chain}/stage2/checkpoints/last.ckpt",
        "--trainer.callbacks+=mavilt_pl.callbacks.ReportMetrics",
        "--trainer.callbacks+=mavilt_pl.callbacks.VQAMetrics",
        "--trainer.callbacks+=mavilt_pl.callbacks.SynthesisMetrics",
        f"--trainer.callbacks.tokenizer={chain}/vqgan/checkpoints/last.ckpt",
        f"--trainer.callbacks.judge={chain}/encoder/checkpoints/last.ckpt",
        "--trainer.callbacks+=mavilt_pl.callbacks.Forgetting",
        f"--trainer.callbacks.corpus={corpus}",
        "--trainer.callbacks+=mavilt_pl.evaluation.ResultsWriter",
        *more,
    ]
    wide = {**os.environ, "COLUMNS": "120"}
    done = subprocess.run(
        [sys.executable, "-m", "mavilt_pl.cli", *words], capture_output=True, text=True, env=wide
    )
    assert done.returncode == 0, done.stderr[-3000:]
    figures = json.loads((out / "test" / "results.json").read_text())["figures"]
    rows = [line.split() for line in done.stdout.splitlines()]
    for figure in figures:  # a person reads them at once, with their intervals
        if figure["control"] is None and "/" not in figure["metric"]:
            logged = [figure["task"], figure["metric"], f"{figure['value']:.4g}"]
            if figure["low"] is not None:
                logged += [f"({figure['low']:.4g}", "to", f"{figure['high']:.4g})"]
            assert any(row[: len(logged)] == logged for row in rows), (logged, done.stdout[-3000:])
    return {(f["task"], f["metric"], f["control"]): f for f in figures}


def test_two_processes_give_the_figures_of_one_and_the_page_shows_them(
    chain: Path, corpus_path: Path, tmp_path: Path
) -> None:
    """11 studies on two processes: every study once, every figure and interval equal to 1e-6."""
    one = results(chain, corpus_path, tmp_path / "one")
    two = results(
        chain, corpus_path, tmp_path / "two", "--trainer.devices=2", "--trainer.strategy=ddp"
    )
    assert one.keys() == two.keys() and one["report", "bleu_1", None]["n"] == 11
    assert {task for task, _, _ in one} == {"report", "vqa", "synthesis", "text"}
    assert ("vqa", "auroc_macro", "shuffled_images") in one
    for key, figure in one.items():
        for part in ("value", "low", "high", "n", "positives"):
            if figure[part] is None:  # such as the interval of a distance
                assert two[key][part] is None
            else:
                assert two[key][part] == pytest.approx(figure[part], abs=1e-6, rel=1e-5), key

    assert main(["results", str(tmp_path / "one")]) == 0
    page = (tmp_path / "one" / "report.html").read_text()
    assert "no medical device" in page and "shuffled" in page and "findings_f1_macro" in page
    assert page.count("data:image/png;base64") >= 8 and "http" not in page.replace("http-equiv", "")
    corpus_ids = [p.name for p in (corpus_path).glob("*")]
    assert "mimic-cxr:50000000" not in page and corpus_ids  # studies are named by a hash


def test_forgetting_is_seen_while_training(chain: Path, corpus_path: Path, tmp_path: Path) -> None:
    """On the validation texts, from before the first step on; that first figure is of the backbone
    by plain transformers.
    """
    words = [
        "fit",
        "--config=demo/stage1.yaml",
        *language(chain, corpus_path),
        f"--trainer.default_root_dir={tmp_path}",
        "--data.batch_size=4",
        "--trainer.callbacks+=mavilt_pl.callbacks.Forgetting",
        f"--trainer.callbacks.corpus={corpus_path}",
        "--trainer.max_steps=2",
        "--trainer.val_check_interval=1",
        "--trainer.limit_val_batches=1",
        "--model.init_args.regularization.lambda_reg=0.03",
    ]
    assert main(words) == 0
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    logged = {event.step: event.value for event in events.Scalars("val/text_perplexity")}
    assert sorted(logged) == [0, 1, 2] and logged[2] != logged[0]
    assert [event.value for event in events.Scalars("val/lambda_reg")] == pytest.approx([0.03] * 3)
    folder = chain / "backbone" / "backbone"
    tokenizer, model = (
        AutoTokenizer.from_pretrained(folder),
        AutoModelForCausalLM.from_pretrained(folder).eval(),
    )
    corpus, nats, count = Corpus(corpus_path), 0.0, 0
    for row in corpus.rows("val"):
        ids = tokenizer(compose(corpus[row], "findings+impression"), add_special_tokens=False)[
            "input_ids"
        ]
        # The mark before a text is a row of its own, which starts at the mean of the words' rows
        # and so tells next to nothing.
        with torch.no_grad():
            scores = model(input_ids=torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
        nats -= float(scores.gather(1, torch.tensor(ids[1:])[:, None]).sum())
        count += len(ids) - 1
    assert logged[0] == pytest.approx(math.exp(nats / count), rel=0.1)


def test_stage2_of_questions_without_reports(chain: Path, mimic_root: Path, tmp_path: Path) -> None:
    """VQA-RAD alone: its questions are trained and scored, and no report or drawing is scored
    against an empty text.
    """
    corpus, tokens = prepared(mimic_root, tmp_path), tmp_path / "tokens"
    assert (
        main(
            [
                "tokenize",
                "--corpus",
                str(corpus),
                "--tokenizer",
                str(chain / "vqgan"),
                "--out",
                str(tokens),
            ]
        )
        == 0
    )
    words = [
        *language(chain, corpus),
        f"--data.tokens=[{tokens}]",
        f"--trainer.default_root_dir={tmp_path / 'run'}",
    ]
    short = ["--data.batch_size=8", "--trainer.max_steps=2", "--trainer.val_check_interval=2"]
    assert main(["fit", "--config", "demo/stage2.yaml", *words, *short]) == 0
    tested = [
        "test",
        "--config",
        "demo/stage2.yaml",
        *words,
        f"--ckpt_path={tmp_path / 'run'}/checkpoints/last.ckpt",
        "--trainer.callbacks+=mavilt_pl.callbacks.ReportMetrics",
        "--trainer.callbacks+=mavilt_pl.callbacks.VQAMetrics",
        "--trainer.callbacks+=mavilt_pl.callbacks.SynthesisMetrics",
        f"--trainer.callbacks.tokenizer={chain}/vqgan/checkpoints/last.ckpt",
        f"--trainer.callbacks.judge={chain}/encoder/checkpoints/last.ckpt",
        "--trainer.callbacks+=mavilt_pl.evaluation.ResultsWriter",
    ]
    assert main(tested) == 0
    figures = json.loads((tmp_path / "run" / "test" / "results.json").read_text())["figures"]
    assert {figure["task"] for figure in figures} == {"vqa"}
    found = {(figure["metric"], figure["control"]): figure for figure in figures}
    for metric in (
        "accuracy",
        "open_exact_match",
        "open_f1",
    ):  # closed by likelihood, open in free text; each with its control
        assert {found[metric, control]["n"] for control in (None, "shuffled_images")} == {
            len(Corpus(corpus).rows("test"))
        }
    assert main(["results", str(tmp_path / "run")]) == 0
    page = (tmp_path / "run" / "report.html").read_text()
    assert (
        page.count("open_exact_match") == 2
        and "answer: in the chest" in page
        and "answer: yes" in page
    )


@pytest.mark.parametrize(
    "config", sorted(p.relative_to(CONFIGS).as_posix() for p in CONFIGS.glob("*.yaml"))
)
def test_config_files_parse(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["fit", "--config", config, "--print_config"])
    assert left.value.code == 0 and "class_path" in capsys.readouterr().out
    assert FINDINGS


@pytest.mark.parametrize("overlay", [[], ["--config", "baselines/llm_cxr.yaml"]])
def test_stage2_has_the_mix_of_llm_cxr(
    overlay: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """20 : 20 : 55 : 5 (arXiv 2305.11490); a task that is not named would have a weight of 1."""
    with pytest.raises(SystemExit):
        main(["fit", "--config", "stage2.yaml", *overlay, "--print_config"])
    weights = yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]["tuning"][
        "task_weights"
    ]
    assert set(weights) == set(TASKS)
    shares = [
        weights[task] / sum(weights.values()) for task in ("report", "synthesis", "vqa", "text")
    ]
    assert shares == pytest.approx([0.2, 0.2, 0.55, 0.05])
