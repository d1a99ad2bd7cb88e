"""Score given texts with a trained model: candidate answers of closed questions, and plain text.

Nothing is sampled here: one pass over packed sequences gives the likelihood of every branch.

Shape legend: B texts, M target positions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from mavilt_pl.language.cached_forward import check_finite
from mavilt_pl.language.model import VisualLanguageModel
from mavilt_pl.language.prompt_builder import PromptBuilder
from mavilt_pl.language.sequences import PackedBatch
from mavilt_pl.language.trees import Branch, Tree, split_by_mask_size

Candidates = Sequence[str]  # possible answers; empty for an open question
Pack = Callable[[Sequence[Tree]], PackedBatch]  # lays out trees on the model's device

# Entries of the attention mask of one pass: 16 MB in float32, and as many scores in each head. The
# mask grows with the square of a study's questions, so a bound on studies would not bound memory.
MASK_ENTRIES = 2**22


def candidate_branches(
    prompts: PromptBuilder, questions: Sequence[tuple[str, Candidates]]
) -> list[Branch]:
    """A branch for each candidate answer of a study's closed questions, in order.

    Args:
        prompts: builds the question's prompt.
        questions: of one study, each with its candidates; open questions have none.
    """
    end = prompts.vocabulary.end
    branches = []
    for question, candidates in questions:
        if not candidates:
            continue
        prompt = prompts.question_prompt(question)
        for candidate in candidates:
            # `<end>` is scored too: without it "no" would get the probability of "no change".
            branches.append(Branch(prompt, [*prompts.tokenize(candidate), end]))
    return branches


def branch_log_likelihoods(
    model: VisualLanguageModel, trees: Sequence[Tree], pack: Pack
) -> Iterator[float]:
    """Mean log-likelihood per token of each branch, in order.

    Args:
        model: in evaluation mode.
        trees: prefixes with the branches to score.
        pack: lays out trees as the model can read them.
    """
    for group in split_by_mask_size(trees, MASK_ENTRIES):
        packed = pack(group)
        losses_M = check_finite(model.token_losses(packed))
        # Branches are numbered through the group, so one scatter sums the tokens of each.
        count = packed.num_branches
        total = losses_M.new_zeros(count).index_add_(0, packed.branch_M, losses_M)
        ones_M = torch.ones_like(losses_M)
        length = losses_M.new_zeros(count).index_add_(0, packed.branch_M, ones_M)
        # The mean, not the sum: a sum would prefer the candidate of fewer tokens.
        yield from (-total / length).tolist()


def plain_text_nats(
    model: VisualLanguageModel, prompts: PromptBuilder, texts: Sequence[str], pack: Pack
) -> tuple[Tensor, Tensor]:
    """Summed nats float [B] and token counts int [B] of plain texts, without images.

    Texts of fewer than two tokens are skipped; texts beyond the context are truncated.

    Args:
        model: in evaluation mode.
        prompts: tokenizes the texts.
        texts: plain text.
        pack: lays out trees as the model can read them.
    """
    kept = []
    for text in texts:
        ids = prompts.tokenize(text)
        # The first token is only read: nothing of the text comes before it to predict it from.
        if len(ids) > 1:
            kept.append(ids)
    if not kept:
        return torch.zeros(0, device=model.device), torch.zeros(0, dtype=torch.long)
    context, longest = model.max_context, max(map(len, kept))
    if context is not None and longest >= context:
        prompts.count_and_warn(
            "texts_truncated",
            f"a plain text of {longest:,} tokens was truncated to the context of {context}",
        )
        # One position of the context is taken by `<begin>`.
        kept = [ids[: context - 1] for ids in kept]
    packed = pack([prompts.plain_text_tree(ids) for ids in kept])
    losses_M = model.token_losses(packed)
    # Sums and counts, not means: a corpus' perplexity weights every token alike.
    total = losses_M.new_zeros(len(kept)).index_add_(0, packed.branch_M, losses_M)
    return total, torch.tensor([len(ids) - 1 for ids in kept])
