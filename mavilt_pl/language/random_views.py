"""Random choices of training: which views of a study are read, and which one is generated.

Each study has random numbers of its own. They are consumed in a fixed order (views that are read,
condition, view to generate, views that are given), which is part of a run: another order trains on
other prompts.

Shape legend: N codes an image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from mavilt_pl.data.records import Side
from mavilt_pl.language.vocabulary import VIEW_TOKENS

Views = Mapping[Side, Sequence[int]]  # codes [N] of each view


def study_random(study: Mapping[str, Any]) -> np.random.Generator:
    """A study's own random numbers, so that it does not matter which rank has it.

    Without a seed from the data, torch's global generator decides.
    """
    # `rng_seed` is a function of seed, epoch and the study's position in the epoch, so a study's
    # dropout is the same with any number of ranks and workers, and after a resume.
    seed = study["rng_seed"] if "rng_seed" in study else int(torch.randint(2**62, ()))
    return np.random.default_rng(seed)


def drop_views(
    views: Views, probability: float, random: np.random.Generator | None, at_least: int
) -> Views:
    """The views that survive dropout; at least this many stay, the first ones.

    Args:
        views: of a study.
        probability: that a view is dropped.
        random: the study's random numbers; None drops nothing.
        at_least: smallest number of views to keep.

    >>> drop_views({"frontal": [1], "lateral": [2]}, 1.0, np.random.default_rng(0), at_least=1)
    {'frontal': [1]}
    """
    # No random number is consumed here, so a study of one view keeps its sequence of numbers.
    if random is None or len(views) <= at_least:
        return views
    kept = {}
    for name, codes in views.items():
        if random.random() >= probability:
            kept[name] = codes
    if len(kept) >= at_least:
        return kept
    return dict([*views.items()][:at_least])


def choose_view(shown: Views, random: np.random.Generator | None) -> tuple[Side, Views]:
    """The view to generate, and the other views.

    Args:
        shown: views of a study, one or more.
        random: chooses the view; None takes the first, frontal if there is one.

    >>> choose_view({"frontal": [1], "lateral": [2]}, None)
    ('frontal', {'lateral': [2]})
    """
    # In the order of the tokens, so the choice does not depend on how a study lists its views.
    names = [name for name in VIEW_TOKENS if name in shown]
    chosen = names[0]
    if random is not None:
        chosen = names[int(random.integers(len(names)))]
    others = {name: codes for name, codes in shown.items() if name != chosen}
    return chosen, others
