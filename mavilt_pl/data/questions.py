"""Questions made from labels. Uncertain and unmentioned labels make none."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

from mavilt_pl.data.study import Question, Study

WORDINGS = ("Is there {}?", "Does the radiograph show {}?", "Is {} present?")
YES_NO = ("yes", "no")
# What a finding is called in a question, where its name in the tables does not read well.
SPOKEN = {
    "pleural effusion": "a pleural effusion",
    "pneumothorax": "a pneumothorax",
    "lung lesion": "a nodule or mass",
    "support devices": "a tube, line or device",
    "edema": "pulmonary edema",
    "fracture": "a fracture",
    "lung opacity": "a lung opacity",
}


def from_labels(study: Study, findings: Sequence[str]) -> tuple[Question, ...]:
    """A presence question for each finding that is known to be present or absent, in a wording fixed by the study."""
    asked = []
    for finding in findings:
        label = study.labels.get(finding)
        if label in ("present", "absent"):
            wording = WORDINGS[zlib.crc32(f"{study.study}/{finding}".encode()) % len(WORDINGS)]
            text = wording.format(SPOKEN.get(finding, finding))
            asked.append(Question(text, "yes" if label == "present" else "no", finding, YES_NO))
    return tuple(asked)
