"""Check what `MAViLT` is asked for before anything is computed."""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from mavilt_pl.data.records import OTHER, Side
from mavilt_pl.errors import MaviltWarning, UserError
from mavilt_pl.inference.judge import Judge
from mavilt_pl.inference.study_encoder import NO_VIEWS
from mavilt_pl.language.prompt_builder import PromptBuilder


def check_questions(
    prompts: PromptBuilder, questions: Sequence[str], answers: Sequence[str] | None
) -> None:
    """Refuse what cannot be answered; warn of questions that are truncated.

    Raises:
        UserError: an answer is given twice, or the model has learned no questions.
    """
    # Its answers would be the continuation of a report.
    if not prompts.instructed:
        raise UserError(
            "the model has learned no questions: it is of Stage 1; expected a checkpoint of Stage 2"
        )
    # Twice the same answer would share its probability.
    if answers is not None and len({*answers}) < len(answers):
        raise UserError(
            f"answers: found {[*answers]}; expected each of them once: drop repeated ones"
        )
    for question in questions:
        _warn_if_truncated(prompts, f"question {textwrap.shorten(question, 40)!r}", question)


def check_texts(
    prompts: PromptBuilder, texts: Sequence[str], scorer: Judge | None, best_of: int
) -> None:
    """Warn of truncated texts, and of texts that the judge cannot score."""
    for number, text in enumerate(texts, 1):
        _warn_if_truncated(prompts, f"text {number}", prompts.synthesis_text(text))
        if scorer and best_of > 1 and not scorer.stated_findings(text):
            _warn(
                f"text {number} states none of the judge's findings "
                f"({', '.join(scorer.findings)}); the first of its {best_of} images was kept"
            )


def check_given(texts: Sequence[str], view: Side | None, given: Any, multi_view: bool) -> None:
    """Check what view is generated, and what it is generated from.

    Raises:
        UserError: the model has no views, there is no such view, or the given images do not fit.
    """
    if (view or given) and not multi_view:
        raise UserError(NO_VIEWS)
    generated: Side = view or "frontal"
    if generated not in OTHER:
        raise UserError(f"view: found {generated!r}; expected one of {', '.join(OTHER)}")
    if given is not None and len(given) != len(texts):
        raise UserError(
            f"given: found the images of {len(given)} studies for {len(texts)} texts; expected "
            "one each"
        )
    # What is generated cannot be given; so of the two views there is one to give.
    other = OTHER[generated]
    for study in given or ():
        if not isinstance(study, Mapping) or set(study) != {other}:
            raise UserError(
                f"given: found {study!r}; expected {{{other!r}: FILE}}, the view that the "
                f"{generated} one is generated from"
            )


def _warn_if_truncated(prompts: PromptBuilder, name: str, text: str) -> None:
    # Counted as the prompt will be: in tokens of this model.
    found, limit = len(prompts.tokenize(text)), prompts.max_text_tokens
    if found > limit:
        _warn(f"{name}: its {found:,} tokens were truncated to max_text_tokens = {limit}")


def _warn(text: str) -> None:
    # Points at the user's call of `ask` or `draw`.
    warnings.warn(text, MaviltWarning, stacklevel=5)
