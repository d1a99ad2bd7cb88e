"""Instructions in several wordings. All but the last of each task train; the last is kept for
validation and test, so that a model is asked in words that it was not trained on
(`data.questions.wording`).
"""

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
