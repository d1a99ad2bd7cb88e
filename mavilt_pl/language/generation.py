"""Generate reports, answers and images with a trained model, and score texts under it.

`beam_search` and `sampling` decode, `likelihoods` scores; here prompts are built and work is split.

Images are codes int64 [B,N], or with several views each study's by name. Sampled outputs depend on
the seed and the sample's key, not on the batch.

Shape legend: B studies, N codes an image, M target positions.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from mavilt_pl.data.records import Side
from mavilt_pl.errors import UserError
from mavilt_pl.language.beam_search import beam_search
from mavilt_pl.language.likelihoods import (
    Candidates,
    branch_log_likelihoods,
    candidate_branches,
    plain_text_nats,
)
from mavilt_pl.language.model import VisualLanguageModel
from mavilt_pl.language.options import SamplingOptions, check_image_sampling, check_text_sampling
from mavilt_pl.language.prompt_builder import Images, PromptBuilder
from mavilt_pl.language.random_views import Views
from mavilt_pl.language.sampling import noise_streams, sample_image, sample_text
from mavilt_pl.language.sequences import PackedBatch, pack
from mavilt_pl.language.trees import Tree, separate_branches

Scorer = Callable[[Tensor, Sequence[str]], Tensor]  # codes [B,N], texts → scores [B], high is good

# Positions whose keys and values are kept at once while text is generated. Beams and long prompts
# count, so the cache stays of one size whatever the batch and `num_beams` are.
CACHED_POSITIONS = 2**15


class Generator:
    """Decodes and scores with a model.

    Args:
        model: in evaluation mode when a method is called.
        prompts: builds the model's prompts.
        sampling: how images and text are generated.
        shares_prefix: whether the model keeps branches of one prefix apart.
    """

    def __init__(
        self,
        model: VisualLanguageModel,
        prompts: PromptBuilder,
        sampling: SamplingOptions | None = None,
        shares_prefix: bool = True,
    ):
        self.model = model
        self.prompts = prompts
        self.sampling = sampling or SamplingOptions()
        self.shares_prefix = shares_prefix

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return self.model.device

    def pack(self, trees: Sequence[Tree]) -> PackedBatch:
        """Pack trees as the model can read them, on its device."""
        readable = trees if self.shares_prefix else separate_branches(trees)
        return pack(readable, self.model.vocabulary.end, self.model.max_context).to(self.device)

    # Text.

    def generate_reports(
        self, images: Images, seed: int = 0, keys: Sequence[int] | None = None
    ) -> list[str]:
        """A report for each study.

        Args:
            images: codes of B studies.
            seed: of sampled text.
            keys: of the studies, for sampled text.
        """
        report = self.prompts.report_prompt()
        prompts = [prefix + report for prefix in self._prefixes(images)]
        return self._generate_texts(prompts, seed, keys)

    def generate_answers(
        self,
        images: Images,
        questions: Sequence[Sequence[str]],
        seed: int = 0,
        keys: Sequence[Sequence[int]] | None = None,
    ) -> list[list[str]]:
        """An answer in free text to each question about each study.

        Args:
            images: codes of B studies.
            questions: of each study.
            seed: of sampled text.
            keys: of the questions of each study.
        """
        prompts: list[list[int]] = []
        for prefix, asked in zip(self._prefixes(images), questions, strict=True):
            for question in asked:
                prompts.append(prefix + self.prompts.question_prompt(question))
        # Only the order of prompts ties keys to questions from here on.
        flat_keys = None
        if keys is not None:
            flat_keys = [key for study_keys in keys for key in study_keys]
        # All questions are one flat batch: studies differ in their number of questions.
        answers = self._generate_texts(prompts, seed, flat_keys)
        grouped: list[list[str]] = []
        start = 0
        for asked in questions:
            grouped.append(answers[start : start + len(asked)])
            start += len(asked)
        return grouped

    @torch.inference_mode()
    def _generate_texts(
        self, prompts: Sequence[Sequence[int]], seed: int, keys: Sequence[int] | None
    ) -> list[str]:
        """The text after each prompt, as many at a time as `CACHED_POSITIONS` allows."""
        limit = self.prompts.max_text_tokens
        # Keys are numbered before the split, so a text does not depend on the part that it is in.
        keys = range(len(prompts)) if keys is None else keys
        positions = max(map(len, prompts), default=0) + limit
        rows = max(CACHED_POSITIONS // (positions * self.sampling.text.num_beams), 1)
        ids: list[list[int]] = []
        for start in range(0, len(prompts), rows):
            part = slice(start, start + rows)
            ids += self.generate_ids(prompts[part], limit, seed, keys[part])
        return self.prompts.tokenizer.batch_decode(ids, skip_special_tokens=True)

    @torch.inference_mode()
    def generate_ids(
        self,
        prompts: Sequence[Sequence[int]],
        max_tokens: int,
        seed: int = 0,
        keys: Sequence[int] | None = None,
    ) -> list[list[int]]:
        """Text ids after each prompt, up to `<end>`, `max_tokens`, or the end of the context.

        Sampled text i is a function of (seed, keys[i]) and its prompt alone; keys default to 0, 1,
        …. Texts that the context cuts short are counted.
        """
        sampling = self.sampling.text
        check_text_sampling(sampling)
        if not prompts:
            return []
        # A limit for each prompt: one long question must not shorten the others' texts.
        limits = []
        for prompt in prompts:
            limits.append(min(max_tokens, self.prompts.remaining_context(len(prompt), 1)))
        if sampling.num_beams > 1:
            beams, penalty = sampling.num_beams, sampling.length_penalty
            texts = beam_search(self.model, prompts, limits, beams, penalty)
        else:
            streams = noise_streams(seed, keys, len(prompts))
            texts = sample_text(self.model, prompts, limits, sampling, streams)
        for text, limit in zip(texts, limits):
            # Reaching `max_tokens` is the caller's choice; being cut by the context is not.
            if len(text) == limit < max_tokens:
                self.prompts.count_and_warn(
                    "texts_cut_by_context",
                    f"a generated text ended after {limit} tokens, at the end of the model's "
                    "context",
                )
        return texts

    # Images.

    def generate_images(
        self,
        texts: Sequence[str],
        seed: int = 0,
        keys: Sequence[int] | None = None,
        best_of: int = 1,
        scorer: Scorer | None = None,
        views: Sequence[Side] | None = None,
        given: Sequence[Views] | None = None,
    ) -> Tensor:
        """Codes int64 [B,N] of an image for each text.

        Args:
            texts: reports, or findings.
            seed: of the sampling; image i is a function of (seed, keys[i]) and its prompt alone.
            keys: of the samples (default 0, 1, …).
            best_of: images generated for each text, of which `scorer` chooses one.
            scorer: scores codes [B,N] for their texts; the highest score is kept.
            views: with several views, the view of each image (default: frontal).
            given: with several views, the codes of each study's other views.

        Raises:
            UserError: settings contradict the model or one another.
        """
        if best_of < 1 or (best_of > 1 and scorer is None):
            found = "no scorer" if scorer is None else "a scorer"
            raise UserError(
                f"best_of: found {best_of} and {found}; expected 1, or more and a scorer"
            )
        check_image_sampling(self.sampling.image)
        prompts, unconditional = self._synthesis_prompts(texts, views, given)
        # Refuse before the first step: an image of fewer than N codes cannot be decoded.
        longest = max(map(len, prompts), default=0)
        self.prompts.remaining_context(longest, self.model.vocabulary.codes_per_image)
        # One batch for each of `best_of`, so memory does not grow with it.
        images = []
        for number in range(best_of):
            codes_BN = sample_image(
                self.model, prompts, self.sampling.image, unconditional, seed, keys, number
            )
            images.append(codes_BN)
        # Without a scorer there is nothing to choose from: best_of is 1.
        if scorer is None:
            return images[0]
        scores = [scorer(codes_BN, texts).to(self.device) for codes_BN in images]
        best_B = torch.stack(scores).argmax(0)
        return torch.stack(images)[best_B, torch.arange(len(texts), device=self.device)]

    def _synthesis_prompts(
        self,
        texts: Sequence[str],
        views: Sequence[Side] | None,
        given: Sequence[Views] | None,
    ) -> tuple[list[list[int]], list[list[int]]]:
        """Prompts with and without their condition; see `generate_images` for the arguments."""
        self._check_named_views(bool(views or given))
        self._check_view_codes(given or [])
        view_of: list[Any] = [*views] if views else [None] * len(texts)
        given_of: list[Any] = [*given] if given else [None] * len(texts)
        prompts: list[list[int]] = []
        unconditional: list[list[int]] = []
        for text, view, others in zip(texts, view_of, given_of, strict=True):
            prompts.append(self.prompts.synthesis_prompt(text, view=view, given=others))
            # Guidance away from "no text and no other view": training drops both together.
            unconditional.append(self.prompts.synthesis_prompt(None, view=view))
        return prompts, unconditional

    # Likelihoods.

    @torch.inference_mode()
    def answer_questions(
        self,
        images: Images,
        questions: Sequence[Sequence[tuple[str, Candidates]]],
        seed: int = 0,
        keys: Sequence[int] | None = None,
    ) -> list[list[Any]]:
        """Probabilities of the candidate answers of closed questions, text for open ones.

        A candidate's score is its mean log-likelihood per token; scores are normalised over the
        candidates. All closed questions about a study read its image once, as many at a time as
        `likelihoods.MASK_ENTRIES` allows.

        Args:
            images: codes of B studies.
            questions: of each study, each with its candidates; none for an open question.
            seed: of sampled text.
            keys: of the studies; free text is sampled by them and the question's words.

        Returns:
            For each study and question a list of probabilities, or a text.
        """
        trees = []
        for prefix, asked in zip(self._prefixes(images), questions, strict=True):
            branches = candidate_branches(self.prompts, asked)
            if branches:
                trees.append(self.prompts.check_length(Tree(prefix, branches)))
        # Both iterators yield in the order of studies and questions, so they are read in step.
        likelihoods = branch_log_likelihoods(self.model, trees, self.pack)
        texts = self._answer_open_questions(images, questions, seed, keys)
        answers: list[list[Any]] = []
        for asked in questions:
            row: list[Any] = []
            for _, candidates in asked:
                if candidates:
                    scores = [next(likelihoods) for _ in candidates]
                    row.append(torch.tensor(scores).softmax(0).tolist())
                else:
                    row.append(next(texts))
            answers.append(row)
        return answers

    def _answer_open_questions(
        self,
        images: Images,
        questions: Sequence[Sequence[tuple[str, Candidates]]],
        seed: int,
        keys: Sequence[int] | None,
    ) -> Iterator[str]:
        """Texts of all open questions, in order."""
        study_keys = range(len(questions)) if keys is None else keys
        open_questions, question_keys = [], []
        for key, asked in zip(study_keys, questions, strict=True):
            texts = [question for question, candidates in asked if not candidates]
            open_questions.append(texts)
            # Keyed by its words, not by its number: a study's other questions change no answer.
            question_keys.append([zlib.crc32(f"{key} {text}".encode()) for text in texts])
        for answers in self.generate_answers(images, open_questions, seed, question_keys):
            yield from answers

    @torch.inference_mode()
    def plain_text_nats(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Summed nats float [B] and token counts int [B]; see `likelihoods.plain_text_nats`."""
        return plain_text_nats(self.model, self.prompts, texts, self.pack)

    # Images as prefixes.

    def _prefixes(self, images: Images) -> list[list[int]]:
        self._check_named_views(not isinstance(images, Tensor))
        if isinstance(images, Tensor):
            self.model.vocabulary.check_codes(images)
            return [self.prompts.image_prefix(codes) for codes in images.tolist()]
        self._check_view_codes(images)
        return [self.prompts.image_prefix(views) for views in images]

    def _check_named_views(self, named: bool) -> None:
        # The other direction is fine: a model of several views reads an unnamed image as frontal.
        if named and not self.model.vocabulary.multi_view:
            raise UserError(
                "found views by name (data.each_view), and this model knows one image without a "
                "name: set data.each_view to false, or train with "
                "model.init_args.model.multi_view true"
            )

    def _check_view_codes(self, images: Sequence[Views]) -> None:
        for views in images:
            for codes in views.values():
                self.model.vocabulary.check_codes(torch.as_tensor(codes))
