"""Sex, age and ethnicity of phantom patients, as the tables of MIMIC-IV's module `hosp`.

They are drawn apart from the images, so no figure of a model can depend on them: what a breakdown
by subgroup finds on phantoms is chance.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from mavilt_pl.phantom.files import write_table

FOLDER = "mimic-iv/hosp"
AGES = (18, 92)  # years; MIMIC-IV has adults, and gives ages above 89 as 91
RACES = {
    "WHITE": 0.6,
    "BLACK/AFRICAN AMERICAN": 0.2,
    "HISPANIC/LATINO - PUERTO RICAN": 0.1,
    "ASIAN - CHINESE": 0.06,
    "UNKNOWN": 0.04,
}


def write_demographics(root: Path, subjects: Iterable[int], year: int, seed: int) -> None:
    """Write patients.csv.gz and admissions.csv.gz.

    Args:
        root: of the dataset.
        subjects: subject_id of each patient or study.
        year: of all studies.
        seed: of everything random.
    """
    folder = root / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    # Rows of the two tables, one each a patient.
    patients: list[dict[str, Any]] = []
    admissions: list[dict[str, Any]] = []
    for subject in dict.fromkeys(subjects):
        # By subject, so that more studies do not change the earlier patients.
        random = np.random.default_rng([seed, subject])
        patients.append(
            {
                "subject_id": subject,
                "gender": "FM"[int(random.integers(2))],
                "anchor_age": min(int(random.integers(*AGES)), 91),
                "anchor_year": year,
            }
        )
        # An admission of its own each, so that no patient is without a stated or unstated race.
        race = random.choice([*RACES], p=[*RACES.values()])
        admissions.append({"subject_id": subject, "hadm_id": 20_000_000 + subject, "race": race})
    write_table(folder / "patients.csv.gz", patients)
    write_table(folder / "admissions.csv.gz", admissions)
