"""Overlays of other loggers: their curves, beside TensorBoard's, over a resume too."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from tiny_runs import history, logged, vqgan

from mavilt_pl.cli import main


def wandb_losses(path: Path) -> list[float]:
    """The losses in a file of W&B: in its protobuf a key, a few bytes, and the value as JSON."""
    found = re.findall(rb"train/loss[^\w]{1,4}(\d\.\d{6,})", path.read_bytes())
    return [json.loads(value) for value in found]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_an_overlay_adds_a_logger_and_keeps_tensorboard(
    name: str, corpus_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path}/mlruns")
    # A database, its default, needs more packages than the client.
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    run = tmp_path / "run"
    words = [*vqgan(corpus_path, run), f"--config=loggers/{name}.yaml", "--ckpt_path=last"]
    key = {"wandb": "id", "mlflow": "run_name"}[name]
    words.append(f"--trainer.logger.init_args.{key}=one")
    for steps in (2, 4):
        assert main([*words, f"--trainer.max_steps={steps}"]) == 0
    assert history(run)["train/loss"] == [1, 2, 3, 4]
    loss = logged(run)
    if name == "wandb":
        # Two starts of one run, which together hold what TensorBoard does.
        starts = sorted((tmp_path / "wandb").glob("offline-run-*-one/run-one.wandb"))
        assert len(starts) == 2
        for start, expected in zip(starts, (loss[:2], loss[2:]), strict=True):
            found = wandb_losses(start)
            assert {f"{value:.6f}" for value in expected} == {f"{value:.6f}" for value in found}
    else:
        import mlflow

        rows = mlflow.search_runs(experiment_names=["mavilt"])
        assert rows["metrics.train/loss"].iloc[0] == pytest.approx(loss[-1])
