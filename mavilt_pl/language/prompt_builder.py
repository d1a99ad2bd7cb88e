"""How studies are spelled as ids: texts, images, views and instructions as the sequences that a
language module reads.
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

from mavilt_pl.data.records import Side
from mavilt_pl.errors import UserError
from mavilt_pl.language.sequences import Branch, Tree
from mavilt_pl.language.vocabulary import VIEW_MARKS, VisualVocabulary

TASKS = ("report", "image", "answer", "text")
Views = Mapping[Side, Sequence[int]]  # codes [N] of each view
Images = Tensor | Sequence[Views]  # of B studies: codes [B,N], or views


class Spelling:
    """The part of a language module that makes sequences; what a subclass says is `reading`, and
    how it asks.

    What does not fit is told: a text of more than `max_words` tokens is cut, a pair without a text
    has nothing to learn from and is left out, both counted by each process (`train/texts_cut`,
    `train/texts_empty`: how often, in targets and prompts, validation included) and warned of once;
    whatever then exceeds the model's context is a `UserError` that names the study.

    What is shown of a study is the codes of one image, or with `views` each view's codes by name:
    `{frontal: [N], lateral: [N]}`, where either may be absent.
    """

    vocabulary: VisualVocabulary
    tokenizer: Any
    hparams: Any
    context: int | None
    counts: Counter[str]

    def tell(self, count: str, text: str) -> None:
        """Count what was not used as it came, and warn of the first of its kind."""
        self.counts[count] += 1
        if self.counts[count] == 1:
            warnings.warn(f"{text}; further ones are only counted, in train/{count}", stacklevel=3)

    def words(self, text: str) -> list[int]:
        """Ids of a text, all of them below V: what looks like a mark, or like a special token of
        the tokenizer, is spelled out like any other text.
        """
        return self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)[
            "input_ids"
        ]

    def cut_words(self, text: str, key: str = "") -> list[int]:
        """At most `max_words` tokens of a text; what is cut is counted. `key` names the text's
        study.
        """
        ids, most = self.words(text), self.hparams["max_words"]
        if len(ids) > most:
            whose = f"study {key}: " if key else ""
            self.tell(
                "texts_cut", f"{whose}a text of {len(ids):,} tokens was cut to max_words = {most}"
            )
        return ids[:most]

    def target_words(self, text: str, key: str = "") -> list[int]:
        """A text target: at most `max_words` tokens, and `<end>`."""
        return [*self.cut_words(text, key), self.vocabulary.end]

    def has_text(self, text: str, key: str, name: str) -> bool:
        """False, and counted, where there is nothing to be said."""
        if text.strip():
            return True
        self.tell("texts_empty", f"study {key}: its {name} is empty and was left out")
        return False

    def room(self, length: int, least: int, what: str = "a prompt") -> int:
        """How many positions the model's context has left after `length`. Raises `UserError` for
        fewer than `least`.
        """
        if self.context is None:
            return 2**31
        if self.context - length < least:
            raise UserError(
                f"{what}: found {length} tokens, and {least} more are to follow; the model's "
                f"context is {self.context} tokens. "
                "Shorten the text, lower max_words, or take a model of longer context"
            )
        return self.context - length

    def _image(self, codes: Sequence[int], view: Side | None = None) -> list[int]:
        v = self.vocabulary
        return [*self._opening(view), *(v.first_code + int(c) for c in codes), v.mark("</image>")]

    def _opening(self, view: Side | None) -> list[int]:
        """What an image begins with; codes without a view's name are taken for a frontal image."""
        v = self.vocabulary
        return (
            [v.mark("<image>"), v.view_mark(view or "frontal")] if v.views else [v.mark("<image>")]
        )

    def image_prefix(self, shown: Sequence[int] | Views) -> list[int]:
        """One image, or each view behind its mark, frontal first."""
        begin = self.vocabulary.mark("<begin>")
        if not isinstance(shown, Mapping):
            return [begin, *self._image(shown)]
        return [
            begin,
            *(i for view in VIEW_MARKS if view in shown for i in self._image(shown[view], view)),
        ]

    def instruction_length(self) -> int:
        """Tokens of the longest instruction of a report."""
        return 0

    def report_prompt(self, key: str, training: bool) -> list[int]:
        """What follows the image when a report is wanted."""
        return [self.vocabulary.mark("<report>")]

    def question_prompt(self, question: str, key: str = "") -> list[int]:
        return [*self.cut_words(question, key), self.vocabulary.mark("<answer>")]

    def draw_words(self, text: str, key: str, training: bool) -> str:
        """What a drawing is asked for with."""
        return text

    def draw_prompt(
        self,
        text: str | None,
        key: str = "",
        training: bool = False,
        view: Side | None = None,
        given: Views | None = None,
    ) -> list[int]:
        """The other views that are `given`, the text (None: no condition), then the opening of the
        image of `view`.
        """
        words = [] if text is None else self.cut_words(self.draw_words(text, key, training), key)
        return [*self.image_prefix(given or {}), *words, *self._opening(view)]

    def drawing(
        self,
        shown: Sequence[int] | Views,
        text: str,
        key: str,
        random: np.random.Generator | None = None,
    ) -> Tree:
        """One report→image sequence, with several views to one of them (in training any, else the
        first) from the others; in training (where there is `random`) all that it is drawn from is
        dropped now and then.
        """
        training = random is not None
        dropped = random is not None and random.random() < self.hparams["condition_dropout"]
        view, given = None, None
        if isinstance(shown, Mapping):
            names = [name for name in VIEW_MARKS if name in shown]
            view = names[0] if random is None else names[int(random.integers(len(names)))]
            others = {name: codes for name, codes in shown.items() if name != view}
            given = None if dropped else self._kept(others, random, least=0)
            shown = shown[view]
        target = [self.vocabulary.first_code + int(c) for c in shown]
        prompt = self.draw_prompt(None if dropped else text, key, training, view, given)
        return Tree(prompt, [Branch([], target, TASKS.index("image"), image=True)])

    def _kept(self, views: Views, random: np.random.Generator | None, least: int) -> Views:
        """The views that are not left out by chance; at least so many stay, the first of them."""
        if random is None or len(views) <= least:
            return views
        stays = [random.random() >= self.hparams["view_dropout"] for _ in views]
        kept = {name: codes for (name, codes), stay in zip(views.items(), stays) if stay}
        return kept if len(kept) >= least else dict([*views.items()][:least])

    def plain(self, ids: Sequence[int]) -> Tree:
        """Plain text without an image: every word but the first is a target. Two words or more."""
        return Tree(
            [self.vocabulary.mark("<begin>"), ids[0]], [Branch([], [*ids[1:]], TASKS.index("text"))]
        )

    def reading(
        self, shown: Sequence[int] | Views, study: Mapping[str, Any], training: bool
    ) -> Tree | None:
        """What is shown of a study and all that is to be said of it; None where that is nothing."""
        raise NotImplementedError

    def takes(self, task: str, key: str, training: bool) -> bool:
        """Whether a study is trained in the direction of `report` or of `image`."""
        return (
            self.hparams["directions"] == "both"
            or not training
            or task == ("report", "image")[zlib.crc32(key.encode()) % 2]
        )

    def _fits(self, tree: Tree, study: str) -> Tree:
        longest = max(len(branch.prompt) + len(branch.target) for branch in tree.branches)
        self.room(len(tree.prefix) + longest, 0, f"study {study}, image, prompt and target")
        return tree

    def trees(self, batch: Mapping[str, Any], training: bool) -> list[list[Tree]]:
        """The batch as groups of trees; each group is one pass through the model."""
        self.vocabulary.check(batch["codes"])
        reading, drawing = [], []
        for shown, study in zip(self._shown(batch), batch["studies"]):
            key = study["study"]
            random = self._random(study) if training else None
            seen = self._kept(shown, random, least=1) if isinstance(shown, Mapping) else shown
            read = self.reading(seen, study, training)
            if read is not None:
                reading.append(self._fits(read, key))
            if study["text"].strip() and self.takes("image", key, training):
                drawing.append(self._fits(self.drawing(shown, study["text"], key, random), key))
        texts = [self.cut_words(text, "replayed") for text in batch.get("replay", [])]
        replayed = [self.plain(ids) for ids in texts if len(ids) > 1]
        return [reading, drawing, *([replayed] if replayed else [])]

    @staticmethod
    def _random(study: Mapping[str, Any]) -> np.random.Generator:
        """A study's own chance, so that it does not matter which rank has it; torch's where the
        data bring none.
        """
        return np.random.default_rng(
            study["rng_seed"] if "rng_seed" in study else int(torch.randint(2**62, ()))
        )

    def _shown(self, batch: Mapping[str, Any]) -> Sequence[Any]:
        """Of each study its codes [N], or its views."""
        if self.vocabulary.views != ("views" in batch):
            raise UserError(
                f"model.init_args.views is {self.vocabulary.views} and data.each_view "
                f"{'views' in batch}: set both to true, "
                "or both to false"
            )
        if not self.vocabulary.views:
            return batch["codes"].tolist()
        self.vocabulary.check(
            torch.tensor([codes for views in batch["views"] for codes in views.values()])
        )
        return batch["views"]
