"""Instructions in several wordings.

All wordings but the last of each task are trained. The last is held out for validation and test, so
a model is evaluated on wordings that it was not trained on (`data.questions.wording`).
"""

REPORT_INSTRUCTIONS = (
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
SYNTHESIS_INSTRUCTIONS = (
    "Draw the chest radiograph of this report:",
    "Generate a radiograph that shows:",
    "Draw a radiograph with these findings:",
    "Generate the chest radiograph of this report:",
    "Draw a chest radiograph that shows:",
    "Draw the radiograph with these findings:",
    "Generate a chest radiograph:",
    "Draw the radiograph that this report describes:",
)
