"""Stage 1: align both directions of every pair, L = L(report | image) + L(image | report)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mavilt_pl.language.module import TASKS, LanguageModule
from mavilt_pl.language.sequences import Branch, Tree


class Stage1(LanguageModule):
    """Image → report and report → image, without instructions. Batches: `wants: pairs`."""

    def reading(self, codes: Sequence[int], study: Mapping[str, Any], training: bool) -> Tree:
        target = self.target_words(study["text"])
        report = Branch(self.report_prompt(study["study"], training), target, TASKS.index("report"))
        return Tree(self.image_prefix(codes), [report])
