"""Studies of a prepared corpus as training and evaluation items.

Shape legend: H W pixels, N codes an image, F findings.
"""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch.utils.data import ConcatDataset, Dataset

from mavilt_pl.data.corpus import Corpus
from mavilt_pl.data.pixels import to_float
from mavilt_pl.data.questions import from_labels
from mavilt_pl.data.records import SIDES, Question, Side, Study, View
from mavilt_pl.data.report_sections import clean, compose
from mavilt_pl.data.samplers import SeededIndex
from mavilt_pl.data.token_cache import TokenCache
from mavilt_pl.errors import MaviltWarning

BatchKind = Literal["images", "pairs", "instructions", "text"]


@dataclass(frozen=True)
class ItemOptions:
    """What an item contains; the keys are those of `CXRDataModule`, which documents them."""

    batch_kind: BatchKind = "images"
    findings: tuple[str, ...] = ()
    sections: str = "findings"
    cleaning: str = "none"
    views: tuple[View, ...] | None = None
    each_view: bool = False
    augment: bool = False
    ask_labels: bool = True
    blank_is_absent: bool = False
    questions_per_study: int | None = None
    replay_share: float = 0.25

    def text_of(self, study: Study) -> str:
        """The cleaned text of a study's report."""
        return clean(compose(study, self.sections), self.cleaning)

    def questions_of(self, study: Study, training: bool) -> list[Question]:
        """Questions that came with the study, and those made from its labels."""
        made = from_labels(study, self.findings, training) if self.ask_labels else ()
        return [*study.questions, *made]

    def view_rows(self, corpus: Corpus, row: int) -> dict[Side, int]:
        """Pixel-store rows of a study's first frontal and first lateral image, frontal first."""
        found: dict[Side, int] = {}
        for number, view in corpus.image_rows(row):
            # Of several images of a side the first counts, as in `image_row`.
            if (not self.views or view in self.views) and view in SIDES:
                found.setdefault(SIDES[view], number)
        return dict(sorted(found.items()))

    def image_row(self, corpus: Corpus, row: int) -> int | None:
        """Pixel-store row of a study's image: the first of the requested views."""
        if self.each_view:
            return next(iter(self.view_rows(corpus, row).values()), None)
        for number, view in corpus.image_rows(row):
            if not self.views or view in self.views:
                return number
        return None


class StudyDataset(Dataset):
    """Studies of one split of one corpus.

    Studies that lack a needed image, text or question are skipped with one warning. With
    `batch_kind: images` and `each_view`, each view is an item of its own.

    Args:
        corpus: the prepared corpus.
        split: train, val or test.
        options: what an item contains.
        tokens: codes of the corpus, for pairs and instructions.
        replay: plain texts, one of which a training item may bring along.
        limit: at most this many studies, the same ones each time.
    """

    def __init__(
        self,
        corpus: Corpus,
        split: str,
        options: ItemOptions,
        tokens: TokenCache | None = None,
        replay: Sequence[str] = (),
        limit: int | None = None,
    ):
        self.corpus, self.split, self.options = corpus, split, options
        self.tokens, self.replay = tokens, replay
        self.name = corpus.name
        self._augmentation: Any = None
        studies, self.omitted = self._usable_studies()
        # Not the first studies: tables are often in the order of patients, and a few of them would
        # fill the limit. A fixed seed, so that all runs are scored on the same ones.
        if limit is not None and len(studies) > limit:
            chosen = np.random.default_rng(0).permutation(len(studies))[:limit]
            studies = [studies[index] for index in sorted(chosen)]
        # Decided once, not in every epoch: a list of numbers costs little, parsing JSON does.
        self.rows: list[int] = []  # of the studies' table, one an item
        self.images: list[int | None] = []  # of the pixel store, one an item
        for row in studies:
            for image in self._item_images(row):
                self.rows.append(row)
                self.images.append(image)
        self.labels = corpus.labels(options.findings, options.blank_is_absent)
        # The negative control: the study whose image stands in for each study's own.
        self.control = self._other_patients()

    def _usable_studies(self) -> tuple[list[int], str]:
        """Rows of the usable studies, and what the others lack in words."""
        usable: list[int] = []
        lacking: Counter[str] = Counter()
        for row in map(int, self.corpus.rows(self.split)):
            lacks = self._lacks(row)
            if lacks is None:
                usable.append(row)
            else:
                lacking[lacks] += 1
        omitted = ", ".join(f"{count:,} without {what}" for what, count in lacking.items())
        if usable and omitted:
            total = len(usable) + lacking.total()
            rank_zero_warn(
                f"{self.name}: of {total:,} {self.split} studies, skipped {omitted}",
                category=MaviltWarning,
            )
        return usable, omitted

    def _lacks(self, row: int) -> str | None:
        """What a study lacks; None if it has everything. A question needs no report."""
        options, kind = self.options, self.options.batch_kind
        if kind != "images" and not options.text_of(self.corpus.text(row)):
            if kind != "instructions":
                return "a text"
            if not options.questions_of(self.corpus[row], self.split == "train"):
                return "a text or a question"
        if kind != "text" and options.image_row(self.corpus, row) is None:
            return "an image of the requested views"
        return None

    def _item_images(self, row: int) -> list[int | None]:
        """Images of a study that are items of their own."""
        if self.options.batch_kind == "images" and self.options.each_view:
            return [*self.options.view_rows(self.corpus, row).values()]
        return [self.options.image_row(self.corpus, row)]

    def _other_patients(self) -> list[int]:
        """For each item, an item of another patient; every item is used once.

        Patients stand in a random order on a ring, each patient's items together. Turning the ring
        by the largest number of items that a patient has leads to another patient.
        """
        patients = [self.corpus.text(row).patient for row in self.rows]
        names, number, counts = np.unique(patients, return_inverse=True, return_counts=True)
        patient_order = np.random.default_rng(1).permutation(len(names))
        # `number` is each item's patient; sorting by the patients' random places keeps each
        # together.
        ring = np.argsort(patient_order[number], kind="stable")
        control = list(range(len(self.rows)))
        for item, other in zip(ring, np.roll(ring, counts.max(initial=0))):
            control[item] = int(other)
        return control

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """An item; a `SeededIndex` brings its augmentation and its choice of questions."""
        seed = getattr(index, "seed", None)
        # Only the training sampler gives seeds; an evaluation has nothing random.
        random = None if seed is None else np.random.default_rng(seed)
        row, image = self.rows[index], self.images[index]
        study = self.corpus[row]
        item: dict[str, Any] = {
            "source": self.name,
            # With the source, because two datasets may use the same number for different people.
            "patient": f"{study.source}:{study.patient}",
            "study": f"{study.source}:{study.study}",
            "hidden_name": self.corpus.hidden_name(study.study),
            "hidden_patient": self.corpus.hidden_name(study.patient),
            "labels": torch.from_numpy(np.asarray(self.labels[row], dtype=np.float32)),
            "label_names": dict(study.labels),
            "attributes": dict(study.attributes),
            "text": self.options.text_of(study),
        }
        # Plain text reads neither pixels nor codes.
        if self.options.batch_kind == "text":
            return item
        assert image is not None  # studies without an image were skipped
        item["image_row"] = image
        views = {number: view for number, view in self.corpus.image_rows(row)}
        item["attributes"]["view"] = views[image]
        if self.options.batch_kind == "images":
            item["pixels"] = self._pixels(image, random)
            return item
        self._add_codes(item, index)
        # The order of the draws in it is part of what makes a resumed run equal to an uninterrupted
        # one.
        self._add_random(item, study, random)
        return item

    def _add_codes(self, item: dict[str, Any], index: int) -> None:
        """Codes of the item's image or views, and of its control."""
        assert self.tokens is not None
        other = self.control[index]
        item["codes"] = torch.from_numpy(self.tokens[item["image_row"]])
        control_image = self.images[other]
        assert control_image is not None
        item["control_codes"] = torch.from_numpy(self.tokens[control_image])
        if not self.options.each_view:
            return
        item["view_rows"] = self.options.view_rows(self.corpus, self.rows[index])
        item["views"] = self._view_codes(item["view_rows"])
        if self.split != "train":  # controls are for evaluation
            others = self.options.view_rows(self.corpus, self.rows[other])
            item["control_views"] = self._view_codes(others)

    def _view_codes(self, view_rows: dict[Side, int]) -> dict[Side, list[int]]:
        assert self.tokens is not None
        return {view: self.tokens[image].tolist() for view, image in view_rows.items()}

    def _add_random(
        self, item: dict[str, Any], study: Study, random: np.random.Generator | None
    ) -> None:
        """What training chooses at random: a replayed text, questions, and the model's own seed."""
        if self.replay and random is not None and random.random() < self.options.replay_share:
            item["replay"] = self.replay[int(random.integers(len(self.replay)))]
        if self.options.batch_kind == "instructions":
            questions = self.options.questions_of(study, self.split == "train")
            item["questions"] = self._choose_questions(questions, random)
        if random is not None:
            # What the model drops at random follows from the study, not from the rank that has it:
            # two ranks learn what one learns.
            item["rng_seed"] = int(random.integers(2**63))

    def _choose_questions(
        self, questions: list[Question], random: np.random.Generator | None
    ) -> list[Question]:
        """In training at most `questions_per_study`, others each time; in evaluation all."""
        limit = self.options.questions_per_study
        if random is None or limit is None or len(questions) <= limit:
            return questions
        chosen = random.permutation(len(questions))[:limit]
        # Sorted, so that the order of the questions does not depend on the choice.
        return [questions[index] for index in sorted(chosen)]

    def _pixels(self, image: int, random: np.random.Generator | None) -> torch.Tensor:
        """float32 [1,H,W] in [-1, 1]; augmented in training."""
        raw = np.asarray(self.corpus.pixels(image))
        if random is not None and self.options.augment:
            raw = self._augment(raw, random)
        return to_float(raw)[None]

    def _augment(self, raw: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """Small shifts, rotations, zooms and exposures; never a flip, since sides matter."""
        if self._augmentation is None:
            # Imported on use: it takes a second, and only training with `augment` needs it.
            import albumentations as A

            affine = A.Affine(
                scale=(0.95, 1.08), translate_percent=(-0.04, 0.04), rotate=(-4, 4), p=0.8
            )
            exposure = A.RandomBrightnessContrast(brightness_limit=0.08, contrast_limit=0.12, p=0.8)
            self._augmentation = A.Compose([affine, exposure])
        # Albumentations has a generator of its own, which would differ from worker to worker.
        self._augmentation.set_random_seed(int(random.integers(2**31)))
        return self._augmentation(image=raw)["image"]


class SeededConcatDataset(ConcatDataset):
    """Items of all corpora, one after another; keeps the seed of a `SeededIndex`."""

    def __getitem__(self, index: int) -> Any:
        # torch's own version does arithmetic on the index, and the result would lose the seed.
        number = bisect.bisect_right(self.cumulative_sizes, index)
        within = index - (self.cumulative_sizes[number - 1] if number else 0)
        seed = getattr(index, "seed", None)
        if seed is not None:
            within = SeededIndex.at(within, *seed)
        return self.datasets[number][within]
