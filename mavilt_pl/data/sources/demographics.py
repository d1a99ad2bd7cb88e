"""What tables say of patients and scanners, in words that all datasets share.

A study's attributes are `sex`, `age`, `ethnicity` and `scanner`, each where the dataset has it.
Results are broken down by them. Ages are kept as groups: exact ages stay in the dataset's tables.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from mavilt_pl.data.sources.tables import find_table, load_table
from mavilt_pl.errors import UserError

ATTRIBUTES = ("sex", "age", "ethnicity", "scanner")
SEXES = {"m": "male", "male": "male", "f": "female", "female": "female"}
# The first year of each group but the first.
AGE_LIMITS = (18, 40, 60, 80)
OLDEST = 120  # years; tables have typing errors, such as the 414 years of ChestX-ray14
# DICOM's age string (PS3.5 6.2): three digits and the unit.
_AGE = re.compile(r"0*(?P<number>\d{1,3})(?:\.\d+)?(?P<unit>[YMWD]?)", re.IGNORECASE)
# How MIMIC-IV's values of `race` begin, and the group that papers report; others are "other".
RACES = {
    "WHITE": "white",
    "PORTUGUESE": "white",
    "BLACK": "black",
    "ASIAN": "asian",
    "HISPANIC": "hispanic",
    "SOUTH AMERICAN": "hispanic",
}
NOT_STATED = ("", "UNKNOWN", "UNABLE TO OBTAIN", "PATIENT DECLINED TO ANSWER")


def parse_sex(value: str) -> str:
    """`female`, `male`, or nothing for every other value.

    >>> parse_sex("F"), parse_sex("unknown")
    ('female', '')
    """
    return SEXES.get(value.strip().lower(), "")


def parse_age(value: str) -> str:
    """The age group of an age in years, or in DICOM's notation; nothing if it is neither.

    >>> parse_age("058Y"), parse_age("80"), parse_age("3M"), parse_age("414")
    ('40 to 59', '80 and over', 'under 18', '')
    """
    match = _AGE.fullmatch(value.strip())
    if match is None:
        return ""
    # Of months, weeks and days there are 999 at most: a child's.
    if match["unit"].upper() in ("M", "W", "D"):
        return "under 18" if match["unit"].upper() != "M" or int(match["number"]) < 216 else ""
    return age_group(int(match["number"]))


def age_group(years: int) -> str:
    """The group of an age in years; nothing for an age that nobody has.

    >>> age_group(17), age_group(18)
    ('under 18', '18 to 39')
    """
    if not 0 <= years <= OLDEST:
        return ""
    if years < AGE_LIMITS[0]:
        return f"under {AGE_LIMITS[0]}"
    # Each group ends where the next begins.
    for first, following in itertools.pairwise(AGE_LIMITS):
        if years < following:
            return f"{first} to {following - 1}"
    return f"{AGE_LIMITS[-1]} and over"


def known(**values: str) -> dict[str, str]:
    """Attributes without those that are not known.

    >>> known(sex="female", age="", scanner=" DX 3000 ")
    {'sex': 'female', 'scanner': 'DX 3000'}
    """
    # Names of scanners come with any number of spaces; they must be one group.
    stripped = {name: " ".join(value.split()) for name, value in values.items()}
    return {name: value for name, value in stripped.items() if value}


class MimicPatients:
    """Sex, ethnicity and age of MIMIC's patients, from tables of MIMIC-IV's module `hosp`.

    MIMIC-CXR and MIMIC-IV share `subject_id` and the shift of each patient's dates. The age at a
    study is `anchor_age` plus the years between `anchor_year` and the study's date. MIMIC-IV gives
    ages above 89 as 91.

    Args:
        folder: with patients.csv.gz and, for ethnicity, admissions.csv.gz; or the folder above it.

    Raises:
        UserError: patients.csv.gz is missing, or a table is damaged.
    """

    def __init__(self, folder: Path):
        self._folder = folder / "hosp" if (folder / "hosp").is_dir() else folder
        if find_table(self._folder, "patients") is None:
            raise UserError(
                f"option patients: {folder} holds no patients.csv.gz; expected the folder hosp of "
                "MIMIC-IV"
            )
        columns = ("subject_id", "gender", "anchor_age", "anchor_year")
        # `hosp` has larger tables, which are not needed.
        rows = load_table(self._folder, "patients", columns, key=("subject_id",))
        self._by_subject = {row["subject_id"]: row for row in rows.to_dict("records")}
        self._ethnicities = self._read_ethnicities()

    def _read_ethnicities(self) -> dict[str, str]:
        """The ethnicity of each subject, as most of its admissions have it."""
        # Who was never admitted has no row, and the table may be left out.
        if find_table(self._folder, "admissions") is None:
            return {}
        rows = load_table(self._folder, "admissions", ("subject_id", "race"))
        counts: dict[str, Counter[str]] = {}
        for subject, race in zip(rows["subject_id"], rows["race"]):
            group = _ethnicity(race)
            if group:
                counts.setdefault(subject, Counter())[group] += 1
        # The first of equally frequent ones by name, so that the order of rows decides nothing.
        return {
            subject: min(of_subject, key=lambda name: (-of_subject[name], name))
            for subject, of_subject in counts.items()
        }

    def attributes(self, subject: str, study_date: str) -> dict[str, str]:
        """What is known of a patient at the time of a study.

        Args:
            subject: subject_id.
            study_date: YYYYMMDD, or "" if it is not known.
        """
        # MIMIC-CXR has patients that MIMIC-IV has not.
        row: Mapping[str, str] = self._by_subject.get(subject, {})
        if not row:
            return {}
        age = ""
        # Without a date, or with a cell that is no number, the age stays unknown.
        numbers = (study_date[:4], row["anchor_year"], row["anchor_age"])
        if all(number.isdigit() for number in numbers):
            years = int(study_date[:4]) - int(row["anchor_year"])
            age = age_group(int(row["anchor_age"]) + years)
        ethnicity = self._ethnicities.get(subject, "")
        return known(sex=parse_sex(row["gender"]), age=age, ethnicity=ethnicity)


def _ethnicity(race: str) -> str:
    """The group of a value of `race`; nothing where it was not stated.

    >>> _ethnicity("BLACK/AFRICAN AMERICAN"), _ethnicity("UNKNOWN"), _ethnicity("MULTIPLE")
    ('black', '', 'other')
    """
    # Versions of MIMIC-IV spell the same values in other cases.
    value = race.strip().upper()
    if value in NOT_STATED:
        return ""
    # By its beginning: an origin may follow, such as PUERTO RICAN.
    for beginning, group in RACES.items():
        if value.startswith(beginning):
            return group
    return "other"
