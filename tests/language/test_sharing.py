"""Branches share their prefix if that changes nothing, and read it again otherwise: windows,
states, convolutions.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from stages import build_stage
from transformers import AutoModelForCausalLM, AutoTokenizer

from mavilt_pl.language.stage2 import Stage2
from mavilt_pl.language.trees import Branch, Tree, split_by_mask_size

CODES = [1, 2, 3, 4, 5, 6, 7, 8, 9]
USUAL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "window": ("MistralConfig", {"sliding_window": 8}),
    "some windows": (
        "Gemma3TextConfig",
        {
            "head_dim": 8,
            "sliding_window": 8,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
    "convolutions": ("Lfm2Config", {"layer_types": ["conv", "full_attention"], "block_ff_dim": 48}),
    "states": (
        "JambaConfig",
        {
            "num_experts": 2,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "mamba_d_state": 4,
            "use_mamba_kernels": False,
        },
    ),
    "a window wider than any sequence": ("MistralConfig", {"sliding_window": 200}),
    "experts": ("MixtralConfig", {"num_local_experts": 2, "num_experts_per_tok": 1}),
}
SHARING = {"a window wider than any sequence", "experts"}


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_branch_is_read_as_it_is_alone(
    kind: str, llama: Path, tokens: Path, tmp_path: Path
) -> None:
    name, special = CONFIGS[kind]
    tokenizer = AutoTokenizer.from_pretrained(llama)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        getattr(transformers, name)(vocab_size=len(tokenizer), **USUAL | special)
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    module = build_stage(tmp_path, tokens, Stage2, max_text_tokens=12).eval()
    assert module.generator.shares_prefix == (kind in SHARING)
    branches = [Branch([5, 6], [7, 8, 9]), Branch([10], [11, 12]), Branch([13, 14], [15])]
    prefix = module.prompts.image_prefix(CODES)
    with torch.no_grad():
        together = module.model.token_losses(module.generator.pack([Tree(prefix, branches)]))
        alone = [
            module.model.token_losses(module.generator.pack([Tree(prefix, [branch])]))
            for branch in branches
        ]
    torch.testing.assert_close(together, torch.cat(alone), atol=2e-4, rtol=1e-4)


def test_many_questions_are_answered_in_parts_of_bounded_size() -> None:
    """Of 300 questions, and of one with 3,000 candidate answers."""
    questions = [Branch([k] * 5, [2] * (1 + k % 3)) for k in range(300)]
    candidates = [Branch([1] * 5, [k, k]) for k in range(3000)]
    for branches, parts in ((questions, 3), (candidates, 4)):
        trees = [Tree([3] * 60, branches), Tree([4] * 30, branches[:2])]
        groups = [*split_by_mask_size(trees, 2**20)]
        found = [branch for group in groups for part in group for branch in part.branches]
        assert found == [*branches, *branches[:2]]
        assert all(part.prefix in ([3] * 60, [4] * 30) for group in groups for part in group)
        for group in groups:
            assert len(group) * max([tree.length for tree in group]) ** 2 <= 2**20
        assert sum(map(len, groups)) == parts + 1


def test_candidates_share_their_question(llama: Path, tokens: Path) -> None:
    """Each candidate's likelihood is that of its own sequence, and the question is read once."""
    module = build_stage(llama, tokens, Stage2, max_text_tokens=12).eval()
    prefix = module.prompts.image_prefix(CODES)
    shared = [Branch([5, 6], [7, 8, 9]), Branch([5, 6], [11]), Branch([5, 6], [12, 9])]
    branches = [Branch([10], [11, 12]), *shared, Branch([13, 14], [15]), *shared[:2]]
    tree = Tree(prefix, branches)
    packed = module.generator.pack([tree])
    # Prompts once, and of a shared one all ids of a target but the last.
    assert tree.length == len(prefix) + 3 + (2 + 2 + 0 + 1) + 3 + (2 + 2 + 0)
    assert packed.num_branches == len(branches)
    with torch.no_grad():
        together = module.model.token_losses(packed)
        alone = [
            module.model.token_losses(module.generator.pack([Tree(prefix, [branch])]))
            for branch in branches
        ]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=1e-4)


def test_a_hundred_answers_are_those_of_each_question_alone(llama: Path, tokens: Path) -> None:
    module = build_stage(llama, tokens, Stage2, max_text_tokens=20).eval()
    asked = [(f"Is there {'no ' * (k % 4)}edema in {k}?", ("yes", "no")) for k in range(100)]
    together = module.generator.answer_questions(torch.tensor([CODES]), [asked])[0]
    for k in (0, 50, 99):
        alone = module.generator.answer_questions(torch.tensor([CODES]), [[asked[k]]])[0][0]
        assert together[k] == pytest.approx(alone, abs=1e-5)
