"""Beam search over text, as transformers does it: the same candidates, scores and stopping rule.

Here it works on a cache that hides padding, on restricted rows, and with a limit for each prompt.

Shape legend: B samples, S beams a sample, V rows of text and `<end>`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from mavilt_pl.language.cached_forward import CachedForward, check_finite, left_pad
from mavilt_pl.language.model import VisualLanguageModel
from mavilt_pl.language.sampling import text_log_probs


class Candidate(NamedTuple):
    """An extension of a beam: its log-likelihood, the beam, and the next token."""

    score: float
    beam: int
    token: int


@dataclass
class Sample:
    """The beams of one prompt.

    Args:
        limit: tokens at most.
        num_beams: S.
        length_penalty: power of the length that a log-likelihood is divided by.
    """

    limit: int
    num_beams: int
    length_penalty: float
    open_texts: list[list[int]] = field(default_factory=lambda: [[]])
    finished: list[tuple[float, list[int]]] = field(default_factory=list)  # best first
    is_done: bool = False

    def _finish(self, candidates: Sequence[tuple[float, list[int]]]) -> None:
        """Keep the best S finished texts."""
        # `sorted` is stable: of equal scores the text that finished first stays first.
        self.finished = sorted([*self.finished, *candidates], key=lambda text: -text[0])
        self.finished = self.finished[: self.num_beams]

    def advance(self, candidates: Sequence[Candidate], length: int, end: int) -> list[Candidate]:
        """Extend the open texts by the best candidates; return those that stay open.

        A sample is done when it has S finished texts and no open one can still beat the worst of
        them at its present length (transformers' `early_stopping=False`), or at its limit.

        Args:
            candidates: best first; at least S of them do not end here.
            length: of the texts with their next token.
            end: id of `<end>`.
        """
        # A finished text of this length has `length` tokens with `<end>`, an open one without it.
        norm = length**self.length_penalty
        kept = self._sort_out(candidates, norm, end)
        if self._cannot_improve(kept, norm):
            self.is_done = True

        extended = []
        for candidate in kept:
            extended.append([*self.open_texts[candidate.beam], candidate.token])

        # At the limit open texts compete with finished ones as they are, without `<end>`.
        if length == self.limit and not self.is_done:
            cut_off = [(one.score / norm, text) for one, text in zip(kept, extended)]
            self._finish(cut_off)
            self.is_done = True

        # The batch keeps S rows a sample, so the beams of a finished sample are fed too; a score of
        # −∞ keeps them from ever being chosen, and nothing of them is read.
        missing = self.num_beams - len(kept)
        self.open_texts = extended + [[] for _ in range(missing)]
        return kept + [Candidate(-torch.inf, 0, end)] * missing

    def _sort_out(self, candidates: Sequence[Candidate], norm: float, end: int) -> list[Candidate]:
        """The best S candidates that stay open; those that end are finished."""
        kept: list[Candidate] = []
        ended: list[tuple[float, list[int]]] = []
        for rank, candidate in enumerate(candidates):
            # −∞: a row that the tokenizer never uses, or a beam of a sample that is done.
            if candidate.score == -torch.inf or self.is_done:
                break
            if candidate.token == end:
                # Only an end among the best S counts, as in transformers: an unlikely end of a
                # likely beam must not become a result.
                if rank < self.num_beams:
                    ended.append((candidate.score / norm, self.open_texts[candidate.beam]))
            elif len(kept) < self.num_beams:
                kept.append(candidate)
        self._finish(ended)
        return kept

    def _cannot_improve(self, kept: Sequence[Candidate], norm: float) -> bool:
        """Whether S texts are finished and no open one beats the worst of them now."""
        if len(self.finished) < self.num_beams:
            return False
        best_open = kept[0].score / norm if kept else -torch.inf
        return self.finished[-1][0] >= best_open


def beam_search(
    model: VisualLanguageModel,
    prompts: Sequence[Sequence[int]],
    limits: Sequence[int],
    num_beams: int,
    length_penalty: float,
) -> list[list[int]]:
    """The best finished text of each prompt, by log-likelihood / length ** penalty.

    The length counts `<end>`.

    Args:
        model: in evaluation mode.
        prompts: ids of each prompt.
        limits: tokens of each text at most.
        num_beams: S.
        length_penalty: 1 as in transformers.
    """
    end, device, count = model.vocabulary.end, model.device, len(prompts)
    ids_BT, mask_BT = left_pad(prompts, end, device)
    forward = CachedForward(model, mask_BT)
    samples = [Sample(limit, num_beams, length_penalty) for limit in limits]

    # The prompt is read once a sample: before the first token S beams would be the same, and the
    # best S candidates S copies of one. Rows multiply at the first `reorder`.
    log_probs_BSV = text_log_probs(model, check_finite(forward(ids_BT)))[:, None]
    score_BS = log_probs_BSV.new_zeros(count, 1)

    for length in range(1, max(limits) + 1):
        best = _best_candidates(score_BS[..., None] + log_probs_BSV, num_beams)
        kept: list[Candidate] = []  # S a sample, flat: the rows of the next pass
        rows: list[int] = []  # of the cache that each of them continues
        beams_now = log_probs_BSV.shape[1]
        for number, (sample, candidates) in enumerate(zip(samples, best)):
            for candidate in sample.advance(candidates, length, end):
                kept.append(candidate)
                rows.append(number * beams_now + candidate.beam)
        if all(sample.is_done for sample in samples):
            break

        forward.reorder(torch.tensor(rows, device=device))
        scores = torch.tensor([candidate.score for candidate in kept], device=device)
        score_BS = scores.view(count, num_beams)
        tokens = torch.tensor([candidate.token for candidate in kept], device=device)
        log_probs = text_log_probs(model, forward(tokens[:, None]))
        log_probs_BSV = log_probs.view(count, num_beams, -1)
    # Every sample reached its limit or was done before, so each has a finished text.
    return [sample.finished[0][1] for sample in samples]


def _best_candidates(score_BSV: Tensor, num_beams: int) -> list[list[Candidate]]:
    """The best 2 S extensions of each sample: at least S of them do not end."""
    beams, rows = score_BSV.shape[1:]
    # Each of the S beams has one `<end>`, so of 2 S candidates at most S end.
    best = score_BSV.flatten(1).topk(min(2 * num_beams, beams * rows))
    found = []
    for scores, indices in zip(best.values.tolist(), best.indices.tolist()):
        candidates = []
        for score, index in zip(scores, indices):
            # The index counts through the flattened [S,V].
            candidates.append(Candidate(score, index // rows, index % rows))
        found.append(candidates)
    return found
