"""Stage 1: align both directions of every pair, L = L(report | image) + L(image | report)."""

from __future__ import annotations

from mavilt_pl.language.module import LanguageModule


class Stage1(LanguageModule):
    """Image → report and report → image, without instructions. Batches: `batch_kind: pairs`."""
