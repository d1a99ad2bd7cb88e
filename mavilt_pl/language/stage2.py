"""Stage 2: three instructed tasks, report, synthesis and VQA."""

from __future__ import annotations

from mavilt_pl.language.module import LanguageModule


class Stage2(LanguageModule):
    """Instruction and image → report; instruction and report → image; question and image → answer.

    Batches: `batch_kind: instructions`. The image of a study is read once; its report and its
    questions are branches that do not see one another.
    """

    instructed = True
