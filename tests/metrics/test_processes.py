"""Two processes give the figures of one, on a count that does not divide by two."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torchmetrics import Metric

from mavilt_pl.metrics.decisions import YesNoScores
from mavilt_pl.metrics.feature_sets import FeatureSets, ImageKind
from mavilt_pl.metrics.findings_f1 import FindingsF1
from mavilt_pl.metrics.image import CodebookUse, ReconstructionScores
from mavilt_pl.metrics.text import Perplexity, TextScores
from mavilt_pl.metrics.vqa import GroupedAUROC, GroupedMean

STUDIES = 7


def figures(rows: range) -> dict[str, tuple]:
    """All metrics over the given studies, updated one study at a time."""
    random = torch.Generator().manual_seed(0)
    pixels = torch.rand(2, STUDIES, 1, 32, 32, generator=random) * 2 - 1
    features = torch.randn(3, STUDIES, 3, generator=random)
    scores = torch.rand(STUDIES, 2, generator=random)
    truths = torch.randint(0, 2, (STUDIES, 2), generator=random).float()
    texts = [
        " ".join(["no effusion", "the heart is enlarged", "small pneumothorax"][: 1 + i % 3])
        for i in range(STUDIES)
    ]
    metrics: dict[str, Metric] = {
        "text": TextScores(),
        "f1": FindingsF1(["cardiomegaly"]),
        "auroc": GroupedAUROC(["x", "y"]),
        "right": GroupedMean("accuracy", ["x"]),
        "image": ReconstructionScores(),
        "codes": CodebookUse(16),
        "features": FeatureSets("cxr", 3, "t"),
        "yes_no": YesNoScores(["x"]),
        "text nats": Perplexity(),
    }
    for i in rows:
        patient = [f"p{i // 2}"]
        metrics["text"].update([texts[i]], [texts[-1 - i]], patient)
        metrics["f1"].update([texts[i]], [{"cardiomegaly": ["present", "absent"][i % 2]}], patient)
        metrics["auroc"].update_columns(scores[i : i + 1], truths[i : i + 1], patient)
        metrics["right"].update([i % 3 > 0], [0], patient)
        metrics["image"].update(pixels[0, i : i + 1], pixels[1, i : i + 1], patient)
        metrics["codes"].update(torch.tensor([[i, 2 * i]]))
        for kind in ImageKind:
            metrics["features"].update(features[kind, i : i + 1], kind, patient)
        answer = scores[i, 0].item()
        metrics["yes_no"].update([answer], [float(i % 2)], [float(answer > 0.5)], [0], patient)
        metrics["text nats"].update([float(i)], [i + 1], patient)
    return {
        name: tuple(value)
        for metric in metrics.values()
        for name, value in metric.compute().items()
    }


def process(rank: int, world: int, out: str, studies: int) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29611"}
    dist.init_process_group("gloo", rank=rank, world_size=world)
    found = figures(range(rank, studies, world))
    if rank == 0:
        torch.save(found, out)
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("studies", [STUDIES, 1])  # of 1, one process has nothing at all
def test_two_processes_equal_one(tmp_path: Path, studies: int) -> None:
    mp.spawn(process, (2, str(tmp_path / "two.pt"), studies), nprocs=2)
    two, one = torch.load(tmp_path / "two.pt"), figures(range(studies))
    assert two.keys() == one.keys()
    assert studies == 1 or len(one) > 15
    for name, value in one.items():
        assert two[name] == pytest.approx(value, abs=1e-6, nan_ok=True), name
