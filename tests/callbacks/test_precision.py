"""`trainer.precision` of a test: what it decodes with, what it says of it, and what it leaves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from words import DATA, QUIET

from mavilt_pl.callbacks import ReportMetrics
from mavilt_pl.cli import main
from mavilt_pl.language import Stage2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "dtype"), [("32-true", torch.float32), ("bf16-mixed", torch.bfloat16)]
)
def test_a_test_decodes_in_the_precision_asked_for(
    precision: str,
    dtype: torch.dtype,
    chain: Path,
    corpus_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[Any] = []
    update = ReportMetrics.update_metrics

    def looked_at(self: Any, observation: Any) -> None:
        seen.append(observation.module)
        assert {weight.dtype for weight in observation.module.parameters()} == {dtype}
        update(self, observation)

    monkeypatch.setattr(ReportMetrics, "update_metrics", looked_at)
    checkpoint = chain / "stage2/checkpoints/last.ckpt"
    words = [
        *("test", "--config=demo/stage2.yaml", "--config=metrics/report.yaml", *QUIET, DATA),
        f"--data.corpora=[{corpus_path}]",
        f"--data.tokens=[{chain}/tokens]",
        "--data.weights=null",
        f"--model.init_args.tokens={chain}/tokens",
        f"--model.init_args.backbone={chain}/backbone/backbone",
        f"--ckpt_path={checkpoint}",
        f"--trainer.default_root_dir={tmp_path}",
        f"--trainer.precision={precision}",
    ]
    assert main(words) == 0
    results = json.loads((tmp_path / "test/results.json").read_text())
    name = str(dtype).removeprefix("torch.")
    assert results["made_by"]["precision"] == name
    protocols = {figure["protocol"] for figure in results["figures"]}
    assert all(("bfloat16" in protocol) == (name == "bfloat16") for protocol in protocols)
    # The module is afterwards what the checkpoint says, to the bit.
    saved = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert isinstance(seen[0], Stage2)
    for key, value in seen[0].state_dict().items():
        assert torch.equal(value, saved[key]), key
