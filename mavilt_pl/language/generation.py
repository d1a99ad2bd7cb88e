"""What a language module can do: write reports and answers, draw, weigh answers, read plain text.

Images are codes, int64 [B,N], or with several views each study's by name. Keys make sampling
independent of the batch that a study is in. Shape legend: B studies, N codes an image, M target
positions.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mavilt_pl.data.records import Side
from mavilt_pl.errors import UserError
from mavilt_pl.language import sampling as decoding
from mavilt_pl.language.prompt_builder import Images, Spelling, Views
from mavilt_pl.language.sampling import Scorer, finite
from mavilt_pl.language.sequences import Branch, Packed, Tree, at_once, pack

AT_ONCE = (
    2**22
)  # entries of the mask of one pass: 16 MB in float32, and as many scores in each head of a layer
CACHED = 2**15  # positions whose keys and values are kept at once while texts are written


class Generation(Spelling):
    """The part of a language module that decodes and scores."""

    device: Any
    context: int | None

    def pack(self, trees: Sequence[Tree]) -> Packed:
        raise NotImplementedError

    def token_losses(self, packed: Packed) -> Tensor:
        raise NotImplementedError

    def _write(
        self, prompts: Sequence[Sequence[int]], seed: int = 0, keys: Sequence[int] | None = None
    ) -> list[str]:
        """The text after each prompt, of as many prompts at a time as `CACHED` allows."""
        h, numbers = self.hparams, range(len(prompts)) if keys is None else keys
        each = max(map(len, prompts), default=0) + h["max_words"]
        rows = max(CACHED // (each * decoding.text_decoding(h["text_decoding"])["beams"]), 1)
        ids: list[list[int]] = []
        for start in range(0, len(prompts), rows):
            part = slice(start, start + rows)
            ids += decoding.write(
                self, prompts[part], h["max_words"], h["text_decoding"], seed, numbers[part]
            )  # type: ignore[arg-type]
        return self.tokenizer.batch_decode(ids, skip_special_tokens=True)

    def _may_name_views(self, named: bool) -> None:
        if named and not self.vocabulary.views:
            raise UserError(
                "found views by name (data.each_view), and this model knows one image without a "
                "name: set data.each_view to "
                "false, or train with model.init_args.views true"
            )

    def _prefixes(self, images: Images) -> list[list[int]]:
        self._may_name_views(not isinstance(images, Tensor))
        if isinstance(images, Tensor):
            self.vocabulary.check(images)
            return [self.image_prefix(shown) for shown in images.tolist()]
        self._check_views(images)
        return [self.image_prefix(shown) for shown in images]

    def _check_views(self, images: Sequence[Views]) -> None:
        for codes in (codes for shown in images for codes in shown.values()):
            self.vocabulary.check(torch.as_tensor(codes))

    def write_reports(
        self, images: Images, seed: int = 0, keys: Sequence[int] | None = None
    ) -> list[str]:
        """A report for each study, as `text_decoding` says."""
        prompts = [
            prefix + self.report_prompt("", training=False) for prefix in self._prefixes(images)
        ]
        return self._write(prompts, seed, keys)

    def write_answers(
        self,
        images: Images,
        questions: Sequence[Sequence[str]],
        seed: int = 0,
        keys: Sequence[Sequence[int]] | None = None,
    ) -> list[list[str]]:
        """An answer in free text to each question about each study; `keys` as `questions`."""
        prompts = [
            [*prefix, *self.question_prompt(question)]
            for prefix, asked in zip(self._prefixes(images), questions, strict=True)
            for question in asked
        ]
        flat = None if keys is None else [key for row in keys for key in row]
        said = iter(self._write(prompts, seed, flat))
        return [[next(said) for _ in asked] for asked in questions]

    def draw(
        self,
        texts: Sequence[str],
        seed: int = 0,
        keys: Sequence[int] | None = None,
        best_of: int = 1,
        scorer: Scorer | None = None,
        views: Sequence[Side] | None = None,
        given: Sequence[Views] | None = None,
    ) -> Tensor:
        """Codes int64 [B,N] of an image for each text: of `best_of` drawn, the one that `scorer`
        (codes [B,N] and texts → scores [B]) gives the highest score. With several views, of `views`
        (default: frontal), from those that are `given` of each study too.
        """
        h = self.hparams
        if best_of < 1 or (best_of > 1 and scorer is None):
            raise UserError(
                f"best_of: found {best_of}, {'no ' * (scorer is None)}scorer; expected 1, or more "
                f"and a scorer"
            )
        self._may_name_views(bool(views or given))
        sides = [*views] if views else [None] * len(texts)
        self._check_views(given or [])
        seen = [*given] if given else [None] * len(texts)
        prompts = [
            self.draw_prompt(text, view=side, given=other)
            for text, side, other in zip(texts, sides, seen, strict=True)
        ]
        free = [self.draw_prompt(None, view=side) for side in sides]
        drawn = [
            decoding.draw(
                self,  # type: ignore[arg-type]
                prompts,
                free,
                h["guidance"],
                h["temperature"],
                h["top_p"],
                seed,
                keys,
                h["top_k"],
                number,
            )
            for number in range(best_of)
        ]
        if scorer is None:
            return drawn[0]
        best_B = torch.stack(
            [scorer(codes_BN, texts).to(self.device) for codes_BN in drawn]
        ).argmax(0)
        return torch.stack(drawn)[best_B, torch.arange(len(texts), device=self.device)]

    @torch.inference_mode()
    def answer(
        self,
        images: Images,
        questions: Sequence[Sequence[tuple[str, Sequence[str]]]],
        seed: int = 0,
        keys: Sequence[int] | None = None,
    ) -> list[list[Any]]:
        """For each study and question, the likelihood of each candidate answer, per token and
        normalised over the candidates; free text (`write_answers`) for an open question, which has
        no candidates. The closed questions about a study read it once, as many at a time as
        `AT_ONCE` allows. `keys` are the studies'; free text is sampled by them and the question's
        words.
        """
        trees = []
        for prefix, asked in zip(self._prefixes(images), questions, strict=True):
            branches = [
                Branch(
                    self.question_prompt(question), [*self.words(candidate), self.vocabulary.end]
                )
                for question, candidates in asked
                for candidate in candidates
            ]
            if branches:
                trees.append(
                    self._fits(Tree(prefix, branches), f"unknown, questions {asked[0][0]!r} …")
                )
        open_questions = [
            [question for question, candidates in asked if not candidates] for asked in questions
        ]
        names = range(len(questions)) if keys is None else keys
        each = [
            [zlib.crc32(f"{key} {q}".encode()) for q in row]
            for key, row in zip(names, open_questions, strict=True)
        ]
        said = iter(
            text for row in self.write_answers(images, open_questions, seed, each) for text in row
        )
        likelihood = iter(self._likelihoods(trees) if trees else [])
        return [
            [
                torch.tensor([next(likelihood) for _ in candidates]).softmax(0).tolist()
                if candidates
                else next(said)
                for _, candidates in asked
            ]
            for asked in questions
        ]

    def _likelihoods(self, trees: Sequence[Tree]) -> list[float]:
        """Nats per token, negative, of each branch in order."""
        return [value for some in at_once(trees, AT_ONCE) for value in self._likelihoods_of(some)]

    def _likelihoods_of(self, trees: Sequence[Tree]) -> list[float]:
        packed = self.pack(trees).to(self.device)
        losses_M = finite(self.token_losses(packed))
        branches_count = int(packed.branch_M.max()) + 1
        total = losses_M.new_zeros(branches_count).index_add_(0, packed.branch_M, losses_M)
        length = losses_M.new_zeros(branches_count).index_add_(
            0, packed.branch_M, torch.ones_like(losses_M)
        )
        return (-total / length).tolist()

    @torch.inference_mode()
    def text_nats(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Plain text without images: all_reduce_sum nats and token count of each text, float [B] and int
        [B].
        """
        kept = [ids for ids in (self.words(text) for text in texts) if len(ids) > 1]
        if not kept:
            return torch.zeros(0, device=self.device), torch.zeros(0, dtype=torch.long)
        if self.context is not None and (longest := max(map(len, kept))) >= self.context:
            self.tell(
                "texts_cut",
                f"a plain text of {longest:,} tokens was cut to the context of {self.context}",
            )
            kept = [ids[: self.context - 1] for ids in kept]
        packed = pack([self.plain(ids) for ids in kept], self.vocabulary.end).to(self.device)
        losses_M = self.token_losses(packed)
        total = losses_M.new_zeros(len(kept)).index_add_(0, packed.branch_M, losses_M)
        return total, torch.tensor([len(ids) - 1 for ids in kept])
