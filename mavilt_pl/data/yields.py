"""Whether a dataset yields the reports and questions that were asked for, and fits the disk.

It is checked when the tables have been read and before an image is decoded: a path one folder too
deep would otherwise cost hours, and show when the language model has nothing to train on.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mavilt_pl.data.check_images import format_bytes
from mavilt_pl.data.corpus_parts import RejectRow
from mavilt_pl.data.decode_shard import wanted_views
from mavilt_pl.data.records import Question, Study
from mavilt_pl.data.sources import source_options
from mavilt_pl.errors import MaviltWarning, UserError


class Yields:
    """Counts studies, those with a text, and the questions of files that find their study.

    Args:
        settings: contents of prepare.json.
        questions: of the files, by study id.
    """

    def __init__(self, settings: Mapping[str, Any], questions: Mapping[str, tuple[Question, ...]]):
        self.settings, self.questions = settings, questions
        self.num_studies = self.num_texts = self.num_questions = self.num_images = 0
        self.views = wanted_views(settings["views"])

    def count(self, studies: Sequence[Study]) -> None:
        """Add studies."""
        for study in studies:
            self.num_studies += 1
            # A study of the whole report alone has a text too.
            self.num_texts += bool(study.findings or study.impression or study.report)
            # Those of the dataset itself, as of VQA-RAD, need no file.
            self.num_questions += len(self.questions.get(study.study, ()))
            for image in study.images:
                self.num_images += not self.views or image.view in self.views

    def check(self, rejects: Sequence[RejectRow]) -> None:
        """Refuse a dataset of which nothing useful can come; warn if reports are missing.

        Args:
            rejects: of the readers.

        Raises:
            UserError: a path of reports or questions was given and yields nothing.
        """
        # Without studies there is another reason, which is said when the shards are joined.
        if not self.num_studies:
            return
        if self.settings["questions"] and not self.num_questions:
            raise UserError(self._no_question(rejects))
        # Datasets without reports are published so, and some readers take none.
        if self.num_texts or "reports" not in source_options(self.settings["source"]):
            return
        # Named and not found is a mistake; not named may be meant: images train the tokenizer.
        if self.settings.get("reports"):
            raise UserError(
                f"--reports {self.settings['reports']}: a report of none of {self.num_studies:,} "
                f"studies is there; expected {_expected_reports(self.settings['source'])}"
            )
        warnings.warn(
            f"{self.settings['root']}: 0 of {self.num_studies:,} studies have a report. The corpus "
            "trains the tokenizer only; for reports, prepare it again with --reports, which takes "
            f"{_expected_reports(self.settings['source'])}",
            MaviltWarning,
            stacklevel=3,
        )

    def check_disk(self, out: Path) -> None:
        """Refuse a dataset whose pixels do not fit the disk.

        Args:
            out: folder of the corpus.

        Raises:
            UserError: they do not.
        """
        size = self.settings["size"]
        # One byte a pixel; rows and journals are small.
        needed, free = self.num_images * size**2, shutil.disk_usage(out).free
        if needed > free:
            raise UserError(
                f"{out}: {self.num_images:,} images of {size} × {size} take {format_bytes(needed)},"
                f" and {format_bytes(free)} are free: free some space, name another --out, or take "
                "a smaller --size"
            )

    def _no_question(self, rejects: Sequence[RejectRow]) -> str:
        # Usable, and about other studies: the study ids or the dataset are the wrong ones.
        num_usable = sum(map(len, self.questions.values()))
        reasons = [reason for _, _, stage, reason in rejects if stage == "question"]
        first = f"; the first reason: {reasons[0]}" if reasons else ""
        return (
            f"--questions {self.settings['questions']}: {num_usable:,} usable questions, and 0 of "
            f"them are about one of {self.num_studies:,} studies{first}"
        )


def _expected_reports(source: str) -> str:
    if source == "indiana":
        return "ecgen-radiology or NLMCXR_reports.tgz"
    return "mimic-cxr-reports.zip, or the folder that holds files/p10/p10000032/s50414267.txt"
