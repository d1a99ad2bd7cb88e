"""Stage 2: three instructed tasks, report, synthesis and answers. A study's report and questions
share its image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mavilt_pl.data.questions import wording
from mavilt_pl.language.module import LanguageModule
from mavilt_pl.language.prompt_builder import TASKS, Views
from mavilt_pl.language.prompts import DRAW, REPORT
from mavilt_pl.language.sequences import Branch, Tree


class Stage2(LanguageModule):
    """Instruction and image → report; instruction and report → image; question and image → answer.

    Batches: `batch_kind: instructions`. The image of a study is read once; its report and its questions
    are branches that do not see each other.
    """

    def instruction_length(self) -> int:
        return max(len(self.words(words)) for words in REPORT)

    def report_prompt(self, key: str, training: bool) -> list[int]:
        return [*self.words(wording(REPORT, key, training)), self.vocabulary.mark("<report>")]

    def draw_words(self, text: str, key: str, training: bool) -> str:
        return f"{wording(DRAW, key, training)} {text}"

    def reading(
        self, shown: Sequence[int] | Views, study: Mapping[str, Any], training: bool
    ) -> Tree | None:
        text, key = study["text"], study["study"]
        branches = []
        if self.takes("report", key, training) and self.has_text(text, key, "report"):
            prompt = self.report_prompt(key, training)
            branches.append(Branch(prompt, self.target_words(text, key), TASKS.index("report")))
        branches += [
            Branch(
                self.question_prompt(q.question, key),
                self.target_words(q.answer, key),
                TASKS.index("answer"),
            )
            for q in study["questions"]
            if self.has_text(q.answer, key, f"answer to {q.question!r}")
        ]
        return Tree(self.image_prefix(shown), branches) if branches else None
