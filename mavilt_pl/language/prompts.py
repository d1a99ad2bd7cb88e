"""Instructions in several wordings, and how prompts are spelled.

Wording 0 to HELD_OUT - 1 train; the last of each task is kept for the test, so that a model is asked in words that it
was not trained on.
"""

from __future__ import annotations

import zlib

REPORT = (
    "Describe this chest radiograph.",
    "Write the findings of this radiograph.",
    "What does the radiograph show?",
    "Describe the findings.",
    "Write a report of this chest radiograph.",
    "What are the findings of this chest radiograph?",
    "Report the findings of this radiograph.",
    "Report this chest radiograph.",
    "Write the report.",
    "Report the findings.",
)
DRAW = (
    "Draw the chest radiograph of this report:",
    "Generate a radiograph that shows:",
    "Draw a radiograph with these findings:",
    "Generate the chest radiograph of this report:",
    "Draw a chest radiograph that shows:",
    "Draw the radiograph with these findings:",
    "Generate a chest radiograph:",
    "Draw the radiograph that this report describes:",
)


def wording(choices: tuple[str, ...], key: str, training: bool) -> str:
    """One of the training wordings, by a stable hash of `key`; the held-out one for evaluation."""
    return choices[zlib.crc32(key.encode()) % (len(choices) - 1)] if training else choices[-1]
