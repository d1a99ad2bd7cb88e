"""A batch in passes of like lengths: the fewest padded positions, the same loss, and no study that
feels another.
"""

from __future__ import annotations

import weakref
from collections import Counter
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning import Callback, Trainer
from stages import build_stage, pack_batch, task_losses
from torch.utils.data import DataLoader

from mavilt_pl.data.records import Question
from mavilt_pl.language import Stage1, Stage2
from mavilt_pl.language.trees import Branch, Tree, group_by_length

CODES = torch.randint(0, 20, (6, 9), generator=torch.Generator().manual_seed(0))
REPORTS = [
    "No edema.",
    "Edema.",
    "No pleural effusion or pneumothorax. " * 3,
    "The heart is enlarged.",
    "Clear.",
    "No effusion. " * 5,
]


def laid(groups: list[list[Tree]]) -> int:
    return sum(len(group) * max([tree.length for tree in group]) for group in groups)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=7), st.integers(1, 4))
def test_groups_are_those_of_least_padding(lengths: list[int], count: int) -> None:
    """Against every way to cut the sorted lengths into at most this many groups."""
    trees = [Tree([0], [Branch([], [1] * length)]) for length in lengths]
    found = group_by_length(trees, count)
    assert len(found) <= count
    assert all(found)
    assert sorted(id(tree) for group in found for tree in group) == sorted(map(id, trees))
    line = sorted(trees, key=lambda tree: tree.length)
    least: dict[int, int] = {}
    for number in range(1, min(count, len(line)) + 1):
        cuts = combinations(range(1, len(line)), number - 1)
        least[number] = min(
            laid([line[a:b] for a, b in zip((0, *cut), (*cut, len(line)))]) for cut in cuts
        )
    assert laid(found) == min(least.values()) == least[len(found)]
    # No pass too many: fewer would have had more positions.
    for number in range(1, len(found)):
        assert least[number] > laid(found)


def batch(reports: list[str]) -> dict[str, Any]:
    asked = [Question("Is there an effusion?", "yes", "pleural effusion", ("yes", "no"))]
    studies = [
        {"text": text, "study": str(n), "questions": asked} for n, text in enumerate(reports)
    ]
    return {"codes": CODES, "studies": studies}


def build(stage: Any, llama: Path, tokens: Path, **keys: Any) -> Any:
    torch.manual_seed(0)
    return build_stage(llama, tokens, stage, lambda_reg=0.0, max_text_tokens=60, **keys).eval()


@pytest.mark.parametrize("stage", [Stage1, Stage2])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_loss_and_its_gradient_do_not_depend_on_the_groups(
    stage: Any, attention: str, llama: Path, tokens: Path
) -> None:
    values, gradients, passes = [], [], []
    for count in (1, 2, 3, 50):
        module = build(stage, llama, tokens, length_groups=count, attention=attention)
        packed = pack_batch(module, batch(REPORTS))
        losses = task_losses(module, packed)
        torch.stack([*losses.values()]).sum().backward()
        values.append({task: value.item() for task, value in losses.items()})
        gradients.append(module.model.backbone.get_input_embeddings().weight.grad)
        passes.append(len(packed))
    assert passes[:3] == [2, 4, 6]
    assert passes[3] > 8
    for value, gradient in zip(values[1:], gradients[1:]):
        assert value == pytest.approx(values[0], rel=1e-5)
        torch.testing.assert_close(gradient, gradients[0], atol=1e-6, rtol=1e-4)


def nats(module: Any, reports: list[str]) -> dict[tuple[int, ...], torch.Tensor]:
    """Nats of every target, by its text and its image."""
    found = {}
    for packed in pack_batch(module, batch(reports)):
        losses_M = module.model.token_losses(packed).detach()
        for number in packed.branch_M.unique():
            here = packed.branch_M == number
            row = packed.ids_BT[packed.row_M[here][0]]
            codes = row[row >= module.model.vocabulary.first_code][:9]
            found[(*codes.tolist(), *packed.target_M[here].tolist())] = losses_M[here]
    return found


@pytest.mark.parametrize("stage", [Stage1, Stage2])
def test_another_report_in_the_batch_changes_nothing_of_a_study(
    stage: Any, llama: Path, tokens: Path
) -> None:
    """Of the same length, so that the groups are the same, and of another, so that they are not."""
    module = build(stage, llama, tokens, length_groups=2)
    assert len(pack_batch(module, batch(REPORTS))) == 4
    before = nats(module, REPORTS)
    changed = tuple((CODES[4] + module.model.vocabulary.first_code).tolist())
    for other in ("No edema. ", "Edema? No.", "The heart is enlarged. " * 8):
        after = nats(module, [*REPORTS[:4], other, REPORTS[5]])
        others = {key for key in before if key[:9] != changed}
        assert others == {key for key in after if key[:9] != changed}
        assert len(others) == len(before) * 5 // 6
        for key in others:
            torch.testing.assert_close(after[key], before[key], atol=1e-5, rtol=1e-4)


def test_a_training_reads_its_batches_in_groups(llama: Path, tokens: Path, tmp_path: Path) -> None:
    """Through a Trainer: with groups and without, the weights of a training are the same."""
    weights, passes = [], []
    for count in (1, 3):
        module = build(
            Stage2,
            llama,
            tokens,
            length_groups=count,
            condition_dropout=0.0,
            learning_rate=1e-3,
            warmup_steps=1,
        )
        loader = DataLoader([batch(REPORTS)] * 3, batch_size=None, collate_fn=None)  # type: ignore[arg-type]
        trainer = Trainer(
            max_steps=3,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
        )
        module.model.transformer.register_forward_hook(lambda *_, count=count: passes.append(count))
        trainer.fit(module, loader)
        weights.append(module.model.backbone.get_input_embeddings().weight.detach())
    assert Counter(passes) == {1: 6, 3: 18}
    torch.testing.assert_close(weights[1], weights[0], atol=1e-5, rtol=1e-3)


class Descent(Stage2):
    """Plain gradient descent, so that what a step changes is its gradient."""

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=1.0)


class Held(Descent):
    """One backward for all passes, as Lightning makes it."""

    def sum_of_passes(self, passes: Any, pass_loss: Any, batch_index: int) -> torch.Tensor:
        return torch.stack([pass_loss(packed) for packed in passes]).sum()

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any) -> None:
        optimizer.zero_grad()


class Saved:
    """A tensor that autograd keeps."""

    def __init__(self, tensor: torch.Tensor):
        self.tensor = tensor


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_backward_a_pass_is_one_backward(
    precision: Any, llama: Path, tokens: Path, tmp_path: Path
) -> None:
    """Of two batches accumulated, with λ_reg and clipping: the same losses and the same step."""
    weights, losses, alive = [], [], []

    class Losses(Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, *_: Any) -> None:
            losses[-1].append(float(outputs["loss"]))

    for kind in (Held, Descent):
        module = build(kind, llama, tokens, condition_dropout=0.0, view_dropout=0.0)
        module.regularizer.lambda_reg = 0.1
        saved: weakref.WeakSet[Any] = weakref.WeakSet()

        def before(*_: Any, saved: weakref.WeakSet[Any] = saved) -> None:
            # Tensors that earlier passes have saved and that are still there.
            alive[-1] = max(alive[-1], len(saved))

        def keep(tensor: torch.Tensor, saved: weakref.WeakSet[Any] = saved) -> Saved:
            saved.add(kept := Saved(tensor))
            return kept

        losses.append([])
        alive.append(0)
        module.model.transformer.register_forward_pre_hook(before)
        trainer = Trainer(
            max_steps=2,
            accumulate_grad_batches=2,
            gradient_clip_val=0.5,
            precision=precision,
            callbacks=[Losses()],
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
        )
        batches = [batch(REPORTS[:4]), batch(REPORTS[3:]), batch(REPORTS[1:5]), batch(REPORTS)]
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda kept: kept.tensor):
            trainer.fit(module, DataLoader(batches, batch_size=None))  # type: ignore[arg-type]
        weights.append([parameter.detach() for parameter in module.parameters()])
    # A few are of the pass itself: its embedding comes before.
    assert alive[0] > 100 and alive[1] < 10
    assert losses[1] == pytest.approx(losses[0], abs=1e-5 if precision == "32-true" else 1e-2)
    for found, expected in zip(weights[1], weights[0], strict=True):
        tolerance = 1e-6 if precision == "32-true" else 1e-3
        torch.testing.assert_close(found, expected, atol=tolerance, rtol=0)
