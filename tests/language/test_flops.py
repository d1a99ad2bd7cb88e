"""The FLOPs of a step against torch's own counter."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from stages import build_stage, pack_batch
from torch.utils.flop_counter import FlopCounterMode

from mavilt_pl.data.records import Question
from mavilt_pl.language import Stage2
from mavilt_pl.language.flops import step_flops


@pytest.mark.parametrize("head", ["tied", "untied"])
@pytest.mark.parametrize("method", ["full", "new_rows"])
def test_flops_are_those_that_torch_counts(
    head: str,
    method: str,
    make_backbone: Callable[..., Path],
    tokens: Path,
    tmp_path: Path,
) -> None:
    backbone = make_backbone(f"llama-{head}", tmp_path)
    module = build_stage(
        backbone, tokens, Stage2, max_text_tokens=40, method=method, attention="eager"
    )
    asked = [Question("Is there an effusion?", "yes", "pleural effusion", ("yes", "no"))]
    # Texts of one length, so that nothing is padding but the multiple of 8.
    studies = [{"text": "No edema. " * 6, "study": str(n), "questions": asked} for n in range(3)]
    batch: dict[str, Any] = {"codes": torch.randint(20, (3, 9)), "studies": studies}
    passes = pack_batch(module, batch)
    read = sum(packed.ids_BT.numel() for packed in passes)
    used = sum(sum(packed.lengths) for packed in passes)
    with FlopCounterMode(display=False) as counter:
        for packed in passes:
            module.model.token_losses(packed).sum().backward()
    expected = counter.get_total_flops() * used / read
    assert step_flops(module.model, passes) == pytest.approx(expected, rel=0.05)
