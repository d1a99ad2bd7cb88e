"""Stage 1: align both directions of every pair, L = L(report | image) + L(image | report)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mavilt_pl.language.module import LanguageModule
from mavilt_pl.language.prompt_builder import TASKS, Views
from mavilt_pl.language.sequences import Branch, Tree


class Stage1(LanguageModule):
    """Image → report and report → image, without instructions. Batches: `batch_kind: pairs`."""

    def reading(
        self, shown: Sequence[int] | Views, study: Mapping[str, Any], training: bool
    ) -> Tree | None:
        text, key = study["text"], study["study"]
        if not self.takes("report", key, training) or not self.has_text(text, key, "report"):
            return None
        report = Branch(
            self.report_prompt(key, training), self.target_words(text, key), TASKS.index("report")
        )
        return Tree(self.image_prefix(shown), [report])
