"""Build the sequences of ids that the language model reads, from texts, codes and questions.

A `PromptBuilder` needs a vocabulary and a tokenizer, no weights, so it works in the loader's worker
processes (`prompt_collate`). A text that exceeds a limit is truncated and counted; each kind of
event warns once. Messages never name a study: identifiers are patient data.

What is shown of a study is the codes of one image, or with several views each view's codes by name:
`{"frontal": [N], "lateral": [N]}`, either of which may be absent.

Shape legend: B studies, N codes an image.
"""

from __future__ import annotations

import warnings
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mavilt_pl.data.questions import wording
from mavilt_pl.data.records import Side
from mavilt_pl.data.unicode import encodable
from mavilt_pl.errors import MaviltWarning, UserError
from mavilt_pl.language.options import TASKS, ModelOptions, RegularizationOptions, TuningOptions
from mavilt_pl.language.prompts import REPORT_INSTRUCTIONS, SYNTHESIS_INSTRUCTIONS
from mavilt_pl.language.random_views import Views, choose_view, drop_views, study_random
from mavilt_pl.language.trees import Branch, Tree
from mavilt_pl.language.vocabulary import VIEW_TOKENS, VisualVocabulary

Images = Tensor | Sequence[Views]  # of B studies: codes int64 [B,N], or views
UNLIMITED = 2**31  # finite, so that `min` with another limit works


class PromptBuilder:
    """Prompts and targets of all tasks as ids.

    Args:
        vocabulary: ids of special tokens and codes.
        tokenizer: of the language model, from transformers.
        max_context: positions that the model can read; None for no limit.
        instructed: put an instruction before each report and image (Stage 2).
        model: `max_text_tokens` and `multi_view`.
        tuning: `directions`.
        regularization: `condition_dropout` and `view_dropout`.
    """

    def __init__(
        self,
        vocabulary: VisualVocabulary,
        tokenizer: Any,
        max_context: int | None = None,
        instructed: bool = False,
        model: ModelOptions | None = None,
        tuning: TuningOptions | None = None,
        regularization: RegularizationOptions | None = None,
    ):
        self.vocabulary = vocabulary
        self.tokenizer = tokenizer
        self.max_context = max_context
        self.instructed = instructed
        self.max_text_tokens = (model or ModelOptions()).max_text_tokens
        self.directions = (tuning or TuningOptions()).directions
        self.regularization = regularization or RegularizationOptions()
        self.counts: Counter[str] = Counter()  # events since the last batch
        self._warned: set[str] = set()

    def count_and_warn(self, event: str, text: str) -> None:
        """Count an event, and warn of the first of its kind."""
        # Counts reach the log with the batch: a worker process has no logger.
        self.counts[event] += 1
        if event not in self._warned:
            self._warned.add(event)
            warnings.warn(
                f"{text}; later ones are only counted, in train/{event}",
                MaviltWarning,
                stacklevel=3,
            )

    # Texts.

    def tokenize(self, text: str) -> list[int]:
        """Ids of a text, all below V.

        Text that looks like a special token, ours or the tokenizer's, is spelled out like any
        other.
        """
        # No special tokens of the tokenizer's own (BOS, EOS): sequences have `<begin>` and `<end>`.
        encoded = self.tokenizer(
            encodable(text), add_special_tokens=False, split_special_tokens=True
        )
        return encoded["input_ids"]

    def truncate(self, text: str) -> list[int]:
        """The first `max_text_tokens` ids of a text; truncated texts are counted."""
        ids = self.tokenize(text)
        limit = self.max_text_tokens
        if len(ids) > limit:
            message = f"a text of {len(ids):,} tokens was truncated to max_text_tokens = {limit}"
            self.count_and_warn("texts_truncated", message)
        return ids[:limit]

    def text_target(self, text: str) -> list[int]:
        """A text target: at most `max_text_tokens` ids, and `<end>`."""
        return [*self.truncate(text), self.vocabulary.end]

    def has_text(self, text: str, name: str) -> bool:
        """Whether there is a text to predict; empty ones are counted."""
        if text.strip():
            return True
        self.count_and_warn("texts_empty", f"an empty {name} was skipped")
        return False

    def remaining_context(self, length: int, needed: int, what: str = "a prompt") -> int:
        """Positions that the model's context leaves after `length`.

        Raises:
            UserError: fewer than `needed`; the message begins with `what`.
        """
        if self.max_context is None:
            return UNLIMITED
        if self.max_context - length < needed:
            raise UserError(
                f"{what}: found {length} tokens, and {needed} more are to follow; the model's "
                f"context is {self.max_context} tokens. Shorten the text, lower max_text_tokens, "
                "or take a model of longer context"
            )
        return self.max_context - length

    # Prompts.

    def image_prefix(self, shown: Sequence[int] | Views) -> list[int]:
        """`<begin>` and one image, or each view behind its token, frontal first."""
        ids = [self.vocabulary.special_token_id("<begin>")]
        if not isinstance(shown, Mapping):
            return ids + self._image(shown)
        # In a fixed order, so the prompt does not depend on how a study lists its views.
        for view in VIEW_TOKENS:
            if view in shown:
                ids += self._image(shown[view], view)
        return ids

    def _image(self, codes: Sequence[int], view: Side | None = None) -> list[int]:
        first = self.vocabulary.first_code
        closing = self.vocabulary.special_token_id("</image>")
        ids = [first + int(code) for code in codes]
        return [*self._image_opening(view), *ids, closing]

    def _image_opening(self, view: Side | None) -> list[int]:
        """`<image>`, and with several views its token; an unnamed image counts as frontal."""
        opening = [self.vocabulary.special_token_id("<image>")]
        if self.vocabulary.multi_view:
            opening.append(self.vocabulary.view_token_id(view or "frontal"))
        return opening

    def instruction_length(self) -> int:
        """Tokens of the longest report instruction; 0 without instructions."""
        if not self.instructed:
            return 0
        return max(len(self.tokenize(instruction)) for instruction in REPORT_INSTRUCTIONS)

    def longest_pair(self) -> int:
        """Positions of the longest possible pair of images and text."""
        # <begin> <image> codes </image> instruction <report> text <end>; with views, two images and
        # a view token in each.
        images, special = (2, 9) if self.vocabulary.multi_view else (1, 5)
        codes = images * self.vocabulary.codes_per_image
        return codes + self.instruction_length() + self.max_text_tokens + special

    def report_prompt(self, key: str = "", training: bool = False) -> list[int]:
        """What follows the image when a report is requested. `key` chooses the wording."""
        ids: list[int] = []
        if self.instructed:
            ids += self.tokenize(wording(REPORT_INSTRUCTIONS, key, training))
        return [*ids, self.vocabulary.special_token_id("<report>")]

    def question_prompt(self, question: str) -> list[int]:
        """What follows the image when a question is asked."""
        # Without the report's instruction: the question itself is the instruction.
        return [*self.truncate(question), self.vocabulary.special_token_id("<answer>")]

    def synthesis_text(self, text: str, key: str = "", training: bool = False) -> str:
        """The text that an image is generated from, with its instruction."""
        if not self.instructed:
            return text
        return f"{wording(SYNTHESIS_INSTRUCTIONS, key, training)} {text}"

    def synthesis_prompt(
        self,
        text: str | None,
        key: str = "",
        training: bool = False,
        view: Side | None = None,
        given: Views | None = None,
    ) -> list[int]:
        """The given views, the text, and the opening of the image to generate.

        Args:
            text: a report, or findings; None for no condition.
            key: chooses the wording of the instruction.
            training: whether trained wordings are used.
            view: of the image to generate.
            given: codes of the study's other views.
        """
        ids = self.image_prefix(given or {})
        if text is not None:
            ids += self.truncate(self.synthesis_text(text, key, training))
        return ids + self._image_opening(view)

    # Trees: prompts with their targets.

    def plain_text_tree(self, ids: Sequence[int]) -> Tree:
        """Plain text without an image; every token but the first is a target. Two ids or more."""
        begin = self.vocabulary.special_token_id("<begin>")
        branch = Branch([], [*ids[1:]], TASKS.index("text"))
        return Tree([begin, ids[0]], [branch])

    def reading_tree(
        self, shown: Sequence[int] | Views, study: Mapping[str, Any], training: bool
    ) -> Tree | None:
        """A study's image, and branches for its report and its questions; None without targets."""
        key = study["study"]
        branches: list[Branch] = []
        if self._trains("report", key, training) and self.has_text(study["text"], "report"):
            prompt, target = self.report_prompt(key, training), self.text_target(study["text"])
            branches.append(Branch(prompt, target, TASKS.index("report")))
        # Stage 1 aligns pairs only, even if the corpus has questions.
        questions = study.get("questions", ()) if self.instructed else ()
        for question in questions:
            if self.has_text(question.answer, f"answer to {question.question!r}"):
                prompt = self.question_prompt(question.question)
                target = self.text_target(question.answer)
                branches.append(Branch(prompt, target, TASKS.index("vqa")))
        if not branches:
            return None
        return Tree(self.image_prefix(shown), branches)

    def synthesis_tree(
        self,
        shown: Sequence[int] | Views,
        text: str,
        key: str,
        random: np.random.Generator | None = None,
    ) -> Tree:
        """A report → image sequence; with several views, to one of them from the others.

        Args:
            shown: what there is of the study.
            text: its report.
            key: chooses the wording of the instruction.
            random: in training, drops the condition at random and chooses the view to generate;
                without it nothing is dropped and the first view is generated.
        """
        training = random is not None
        options = self.regularization
        is_dropped = random is not None and random.random() < options.condition_dropout
        if isinstance(shown, Mapping):
            view, others = choose_view(shown, random)
            codes = shown[view]
            # No condition means none: neither the text nor another view of the patient.
            given = None
            if not is_dropped:
                given = drop_views(others, options.view_dropout, random, at_least=0)
        else:
            view, codes, given = None, shown, None
        condition = None if is_dropped else text
        prompt = self.synthesis_prompt(condition, key, training, view, given)
        target = [self.vocabulary.first_code + int(code) for code in codes]
        return Tree(prompt, [Branch([], target, TASKS.index("synthesis"), is_image=True)])

    def _trains(self, task: str, key: str, training: bool) -> bool:
        """Whether a study is trained in the direction of `report` or of `synthesis`."""
        if self.directions == "both" or not training:
            return True
        # crc32, not `hash`: Python's hash of a string differs from process to process.
        return task == ("report", "synthesis")[zlib.crc32(key.encode()) % 2]

    def check_length(self, tree: Tree) -> Tree:
        """The tree, if its prefix and longest branch fit the model's context.

        Raises:
            UserError: they do not.
        """
        longest = max(branch.length for branch in tree.branches)
        self.remaining_context(len(tree.prefix) + longest, 0, "a study's image, prompt and target")
        return tree

    def trees(self, batch: Mapping[str, Any], training: bool) -> list[list[Tree]]:
        """A collated batch as trees: those of reading, of synthesis, and of plain text."""
        self.vocabulary.check_codes(batch["codes"])
        reading: list[Tree] = []
        synthesis: list[Tree] = []
        for shown, study in zip(self._shown(batch), batch["studies"]):
            random = study_random(study) if training else None
            # Views of reading come first in the study's random numbers, whatever is trained.
            visible = shown
            if isinstance(shown, Mapping):
                rate = self.regularization.view_dropout
                visible = drop_views(shown, rate, random, at_least=1)
            reading_tree = self.reading_tree(visible, study, training)
            if reading_tree is not None:
                reading.append(self.check_length(reading_tree))
            # Synthesis starts from all views again: what reading did not see may be its target.
            key, text = study["study"], study["text"]
            if text.strip() and self._trains("synthesis", key, training):
                synthesis_tree = self.synthesis_tree(shown, text, key, random)
                synthesis.append(self.check_length(synthesis_tree))
        plain: list[Tree] = []
        for text in batch.get("replay", []):
            ids = self.truncate(text)
            if len(ids) > 1:  # the first token is only read
                plain.append(self.plain_text_tree(ids))
        # Separate lists, so that short kinds of sequences are not padded to long ones.
        return [reading, synthesis, plain] if plain else [reading, synthesis]

    def _shown(self, batch: Mapping[str, Any]) -> Sequence[Any]:
        """Codes [N] or views of each study."""
        # Either mismatch would train without an error on prompts that the model is not meant for.
        if self.vocabulary.multi_view != ("views" in batch):
            raise UserError(
                f"model.init_args.model.multi_view is {self.vocabulary.multi_view} and "
                f"data.each_view {'views' in batch}: set both to true, or both to false"
            )
        if not self.vocabulary.multi_view:
            return batch["codes"].tolist()
        for views in batch["views"]:
            for codes in views.values():
                self.vocabulary.check_codes(torch.as_tensor(codes))
        return batch["views"]
