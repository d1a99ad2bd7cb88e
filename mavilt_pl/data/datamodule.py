"""One LightningDataModule for all modules: images, pairs, instructions or plain text, from prepared
corpora.
"""

from __future__ import annotations

import bisect
import os
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning import LightningDataModule
from lightning.pytorch.utilities import rank_zero_warn
from torch.utils.data import ConcatDataset, DataLoader, Dataset
from torch.utils.data.distributed import DistributedSampler

from mavilt_pl.data.corpus import Corpus
from mavilt_pl.data.pixels import to_float
from mavilt_pl.data.questions import from_labels
from mavilt_pl.data.records import SIDES, Question, Side, Study, View
from mavilt_pl.data.report_sections import clean, compose
from mavilt_pl.data.token_cache import TokenCache
from mavilt_pl.errors import UserError

BatchKind = Literal["images", "pairs", "instructions", "text"]
BESIDE = (
    "views",
    "control_views",
    "replay",
)  # what a batch has in lists, outside the studies' records


class SeededIndex(int):
    """The number of an item that a training draws, and the seed of what is random about it: (seed,
    epoch, place in the epoch).

    So an augmented image is the same whichever worker or rank makes it, and whenever the run was
    broken off before.
    """

    seed: tuple[int, ...] | None = None

    @classmethod
    def at(cls, number: int, *seed: int) -> SeededIndex:
        drawn = cls(number)
        drawn.seed = seed
        return drawn


class StudyDataset(Dataset):
    """Studies of one split of one corpus as items of the kind that is wanted."""

    def __init__(self, module: CXRDataModule, number: int, split: str):
        self.module, self.split = module, split
        self.corpus = module.opened[number]
        self.tokens = module.caches[number] if module.caches else None
        self.name = self.corpus.name
        lacks = {row: self._lacks(row) for row in map(int, self.corpus.rows(split))}
        rows = [row for row, what in lacks.items() if what is None]
        left = Counter(what for what in lacks.values() if what)
        self.left = ", ".join(f"{count:,} without {what}" for what, count in left.items())
        if rows and left:
            rank_zero_warn(
                f"{self.name}: of {len(lacks):,} {split} studies are left out {self.left}"
            )
        limit = module.hparams[
            {"train": "limit_train", "val": "limit_val", "test": "limit_test"}[split]
        ]
        if limit is not None and len(rows) > limit:
            rows = [
                rows[i] for i in sorted(np.random.default_rng(0).permutation(len(rows))[:limit])
            ]
        # Of images alone, with `each_view`, each view is an item of its own.
        apart = module.hparams["batch_kind"] == "images" and module.hparams["each_view"]
        shown = [
            [*module.views_of(self.corpus, row).values()]
            if apart
            else [module.image_of(self.corpus, row)]
            for row in rows
        ]
        self.images = [image for images in shown for image in images]
        self.rows = [row for row, images in zip(rows, shown) for _ in images]
        self.labels = self.corpus.labels(module.findings)
        # The negative control: every study beside the image of another patient's study, fixed for
        # the whole split.
        self.stranger = self._strangers()

    def _lacks(self, row: int) -> str | None:
        """What a study has not of what is wanted; None where it has all. A question is to be
        answered without a report too.
        """
        module, batch_kind = self.module, self.module.hparams["batch_kind"]
        asked = batch_kind == "instructions"
        if (
            batch_kind != "images"
            and not module.text_of(self.corpus.text(row))
            and not (asked and module.questions_of(self.corpus[row], self.split))
        ):
            return "a text or a question" if asked else "a text"
        return (
            "an image of the wanted views"
            if batch_kind != "text" and module.image_of(self.corpus, row) is None
            else None
        )

    def _strangers(self) -> list[int]:
        """Each patient's studies stand together in a random order of patients; one turn of the ring
        by the largest number of studies a patient has leads to another patient, and every image is
        used once.
        """
        patients = [self.corpus.text(row).patient for row in self.rows]
        names, number, counts = np.unique(patients, return_inverse=True, return_counts=True)
        ring = np.argsort(np.random.default_rng(1).permutation(len(names))[number], kind="stable")
        stranger = list(range(len(self.rows)))
        for here, there in zip(ring, np.roll(ring, counts.max(initial=0))):
            stranger[here] = int(there)
        return stranger

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """An item; where `index` is a `SeededIndex`, with its augmentation and its choice of questions."""
        random = (
            None if (seed := getattr(index, "seed", None)) is None else np.random.default_rng(seed)
        )
        row = self.rows[index]
        study = self.corpus[row]
        module = self.module
        item: dict[str, Any] = {
            "source": self.name,
            "patient": f"{study.source}:{study.patient}",
            "study": f"{study.source}:{study.study}",
            "labels": torch.from_numpy(np.asarray(self.labels[row], dtype=np.float32)),
            "label_names": dict(study.labels),
            "text": module.text_of(study),
        }
        batch_kind = module.hparams["batch_kind"]
        if batch_kind == "text":
            return item
        image = self.images[index]
        assert image is not None  # rows without an image were left out above
        item["image_row"] = image
        if batch_kind == "images":
            item["pixels"] = module.pixels(self.corpus, image, random)
        else:
            assert self.tokens is not None
            item["codes"] = torch.from_numpy(self.tokens[image])
            other = self.images[self.stranger[index]]
            assert other is not None
            item["control_codes"] = torch.from_numpy(self.tokens[other])
            if module.hparams["each_view"]:
                item["view_rows"] = module.views_of(self.corpus, row)
                item["views"] = self._codes_of(item["view_rows"])
                if self.split != "train":  # a control of evaluation
                    theirs = module.views_of(self.corpus, self.rows[self.stranger[index]])
                    item["control_views"] = self._codes_of(theirs)
            if (
                module.replayed
                and random is not None
                and random.random() < module.hparams["replay_share"]
            ):
                item["replay"] = module.replayed[int(random.integers(len(module.replayed)))]
            if batch_kind == "instructions":
                item["questions"] = self._drawn(module.questions_of(study, self.split), random)
            if random is not None:
                item["rng_seed"] = int(random.integers(2**63))
        return item

    def _codes_of(self, views: dict[Side, int]) -> dict[Side, list[int]]:
        """Codes of each view of a study by the rows of its images."""
        assert self.tokens is not None
        return {view: self.tokens[image].tolist() for view, image in views.items()}

    def _drawn(
        self, questions: list[Question], random: np.random.Generator | None
    ) -> list[Question]:
        """In training, at most as many as are wanted, others each time; in evaluation all."""
        most = self.module.hparams["questions_per_study"]
        if random is None or most is None or len(questions) <= most:
            return questions
        return [questions[i] for i in sorted(random.permutation(len(questions))[:most])]


class SeededConcatDataset(ConcatDataset):
    """The training items of all corpora, one after another."""

    def __getitem__(self, index: int) -> Any:
        number = bisect.bisect_right(self.cumulative_sizes, index)
        within = index - (self.cumulative_sizes[number - 1] if number else 0)
        seed = getattr(index, "seed", None)
        return self.datasets[number][within if seed is None else SeededIndex.at(within, *seed)]


def collate(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Items side by side: tensors stacked, everything else as lists; `studies` keeps what belongs
    to each study.
    """
    batch: dict[str, Any] = {
        "studies": [
            {k: v for k, v in item.items() if not isinstance(v, torch.Tensor) and k not in BESIDE}
            for item in items
        ]
    }
    for key in ("pixels", "codes", "control_codes", "labels"):
        if key in items[0]:
            batch[key] = torch.stack([item[key] for item in items])
    for key in BESIDE:
        if found := [item[key] for item in items if key in item]:
            batch[key] = found
    batch["patient"] = [item["patient"] for item in items]
    batch["text"] = [item["text"] for item in items]
    return batch


class WeightedSourceSampler(DistributedSampler):
    """Training order over several sources: an epoch is as long as all sources together, drawn from
    each by its weight, each source without repetition until it is used up. The order is a function
    of (seed, epoch) alone, and what is random about an item of its place in it; ranks take turns,
    and what is left over of an epoch that they cannot share out evenly is left out. An epoch that
    was broken off goes on after the `taken` items that all ranks together have used, however many
    ranks there are now.

    A `DistributedSampler` by name so that Lightning leaves it alone.
    """

    def __init__(
        self, sizes: Sequence[int], weights: Sequence[float], seed: int, rank: int, world: int
    ):
        self.sizes, self.weights, self.seed = list(sizes), list(weights), seed
        self.rank, self.num_replicas, self.epoch, self.taken = rank, world, 0, 0
        self.num_samples = sum(sizes) // world
        self.total_size = self.num_samples * world

    def _order(self) -> list[int]:
        random = np.random.default_rng([self.seed, self.epoch])
        share = np.asarray(self.weights) / sum(self.weights)
        counts = np.floor(share * sum(self.sizes)).astype(int)
        counts[0] += sum(self.sizes) - counts.sum()
        starts = np.cumsum([0, *self.sizes[:-1]])
        picked = []
        for start, size, count in zip(starts, self.sizes, counts):
            rounds = [random.permutation(size) for _ in range(-(-int(count) // size))]
            picked.append(start + np.concatenate(rounds)[:count] if rounds else np.empty(0, int))
        order = np.concatenate(picked)
        return [int(i) for i in random.permutation(order)]

    def __iter__(self) -> Iterator[SeededIndex]:
        order, taken, epoch, self.taken = self._order(), self.taken, self.epoch, 0
        whole = (len(order) - taken) // self.num_replicas * self.num_replicas
        places = range(taken + self.rank, taken + whole, self.num_replicas)
        return (SeededIndex.at(order[place], self.seed, epoch, place) for place in places)

    def __len__(self) -> int:
        return self.num_samples


class UnpaddedDistributedSampler(DistributedSampler):
    """Rank r takes studies r, r + world, …: every study exactly once, none repeated to fill up a
    rank.
    """

    def __init__(self, size: int, rank: int, world: int):
        self.size, self.rank, self.num_replicas, self.epoch = size, rank, world, 0

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.rank, self.size, self.num_replicas))

    def __len__(self) -> int:
        return len(range(self.rank, self.size, self.num_replicas))


class ResumableLoader(DataLoader):
    """A loader that Lightning can save and set back to the place it had reached within the epoch:
    the number of items that all ranks together have used, so that another batch size or number of
    ranks goes on at the same place.
    """

    taken = 0

    @property
    def each(self) -> int:
        """Items that one batch of every rank uses."""
        return self.batch_size * self.sampler.num_replicas  # type: ignore[attr-defined,operator,return-value]

    @property
    def left(self) -> int:
        """Batches of this rank that are left of the epoch."""
        return (sum(self.sampler.sizes) - self.taken) // self.each  # type: ignore[attr-defined]

    def __iter__(self) -> Iterator[Any]:
        taken = self.taken = self.sampler.taken  # type: ignore[attr-defined]
        for batch in super().__iter__():
            taken += self.each
            self.taken = taken
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Where the next batch comes from: after an epoch's last one, the start of the next epoch."""
        epoch = self.sampler.epoch  # type: ignore[attr-defined]
        return (
            {"epoch": epoch, "taken": self.taken} if self.left else {"epoch": epoch + 1, "taken": 0}
        )

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.taken = self.sampler.taken = state["taken"]  # type: ignore[attr-defined]
        self.sampler.epoch = state["epoch"]  # type: ignore[attr-defined]


class CXRDataModule(LightningDataModule):
    """Prepared corpora as batches.

    A batch is a dict: `pixels` float32 [B,1,H,W] in [-1, 1] or `codes` int64 [B,N]; `labels`
    float32 [B,F] (1, 0, nan); `text` and `patient`, lists of B strings; `studies`, a list of B
    dicts (study, source, text, label_names, questions; in training `rng_seed`, the seed of what the
    model leaves out of it at random). With `each_view`, `views`: B dicts of codes by view, frontal
    first, and in `studies` `view_rows`, the images' rows; with `replay`, in training: plain texts.
    Training mixes the corpora by weight; evaluation keeps them apart, one loader a corpus, in the
    order of `corpora`.

    Args:
        corpora: folders made by `mavilt prepare`.
        tokens: folders made by `mavilt tokenize`, one a corpus, in the same order; for pairs and
            instructions.
        batch_kind: images | pairs | instructions | text. Pairs and texts are of studies that have a
            text, instructions also of those with questions only; how many are left out is told.
        weights: how often training draws from each corpus; default: in proportion to size.
        batch_size, eval_batch_size, num_workers: as DataLoader's, per process.
        findings: order of the columns of `labels`; those asked about in questions made from labels.
        sections: findings | impression | findings+impression | whole: which part of a report is its
            text.
        cleaning: name of a cleaning protocol of `mavilt_pl.data.report_sections`.
        views: images of these views only, e.g. [PA, AP]; default: the first image of a study.
        each_view: bring the first frontal and the first lateral image of a study, as `views`;
            `codes` are then the first of them, and a study with neither is left out. Of `images`
            each of the two is an item of its own.
        replay: plain texts for training beside the studies, so that language is rehearsed: a
            prepared corpus (the reports of its training split) or a text file (a text a line).
        replay_share: the part of the studies that bring a text along, 0 to 1.
        augment: in training, small shifts, turns, zooms and exposures (Albumentations); never a
            flip: sides matter.
        limit_train, limit_val, limit_test: at most so many studies of each corpus, the same ones
            each time.
        ask_labels: make presence questions from labels.
        questions_per_study: in training, at most so many questions of a study at a time, drawn anew
            each time.
        seed: of the order of training and of what is random about each study; default: the run's,
            `seed_everything`.
    """

    def __init__(
        self,
        corpora: list[str],
        tokens: list[str] | None = None,
        batch_kind: BatchKind = "images",
        weights: list[float] | None = None,
        batch_size: int = 16,
        eval_batch_size: int = 32,
        num_workers: int = 0,
        findings: list[str] | None = None,
        sections: str = "findings",
        cleaning: str = "none",
        views: list[View] | None = None,
        each_view: bool = False,
        replay: str | None = None,
        replay_share: float = 0.25,
        augment: bool = False,
        limit_train: int | None = None,
        limit_val: int | None = None,
        limit_test: int | None = None,
        ask_labels: bool = True,
        questions_per_study: int | None = None,
        seed: int | None = None,
    ):
        super().__init__()
        self.save_hyperparameters(logger=False)
        if batch_kind in ("pairs", "instructions") and (
            tokens is None or len(tokens) != len(corpora)
        ):
            raise UserError(
                f"data.batch_kind: {batch_kind} needs one token cache a corpus in data.tokens; found "
                f"{tokens} for {corpora}"
            )
        if weights is not None and (
            len(weights) != len(corpora) or min(weights) < 0 or sum(weights) <= 0
        ):
            raise UserError(
                f"data.weights: one weight of 0 or more a corpus, not all 0; found {weights} for "
                f"{corpora}"
            )
        if replay is not None and batch_kind not in ("pairs", "instructions"):
            raise UserError(
                f"data.replay: {batch_kind} are not trained beside texts; it is for pairs and "
                f"instructions"
            )
        if not 0 <= replay_share <= 1:
            raise UserError(
                f"data.replay_share {replay_share}: expected a part of the studies, from 0 to 1"
            )
        self.findings = tuple(findings or ())
        self.opened: list[Corpus] = []
        self.caches: list[TokenCache] = []
        self.replayed: list[str] = []
        self._augmentation: Any = None

    @property
    def names(self) -> list[str]:
        """Names of the corpora, in the order of the evaluation loaders."""
        return [corpus.name for corpus in self.opened]

    def setup(self, stage: str) -> None:
        if self.opened:
            return
        self.opened = [Corpus(path) for path in self.hparams["corpora"]]
        if self.hparams["replay"] and stage == "fit":
            self.replayed = self._replayed(Path(self.hparams["replay"]))
        if self.hparams["tokens"] and self.hparams["batch_kind"] in ("pairs", "instructions"):
            self.caches = [
                TokenCache(p, c.fingerprint) for p, c in zip(self.hparams["tokens"], self.opened)
            ]
            for cache in self.caches[1:]:
                self.caches[0].same_tokenizer(cache)

    # What an item is made of.

    def text_of(self, study: Study) -> str:
        return clean(compose(study, self.hparams["sections"]), self.hparams["cleaning"])

    def questions_of(self, study: Study, split: str) -> list[Question]:
        """Those that came with it, and those made from its labels."""
        asked = (
            from_labels(study, self.findings, split == "train")
            if self.hparams["ask_labels"]
            else ()
        )
        return [*study.questions, *asked]

    def _replayed(self, path: Path) -> list[str]:
        if path.is_file():
            try:
                texts = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
            except UnicodeDecodeError as error:
                raise UserError(
                    f"data.replay: {path} is not UTF-8 text ({error.reason} at byte "
                    f"{error.start}); convert it"
                ) from None
        else:
            corpus = Corpus(path)
            texts = [self.text_of(corpus.text(row)) for row in corpus.rows("train")]
        if not (texts := [text for text in texts if text]):
            raise UserError(
                f"data.replay: found no text in {path}; expected a prepared corpus with reports, "
                f"or a text file with a text "
                "on each line"
            )
        return texts

    def views_of(self, corpus: Corpus, row: int) -> dict[Side, int]:
        """The rows in the pixel store of the study's first frontal and first lateral image among
        the wanted views.
        """
        views = self.hparams["views"]
        found: dict[Side, int] = {}
        for number, view in corpus.image_rows(row):
            if (not views or view in views) and view in SIDES:
                found.setdefault(SIDES[view], number)
        return dict(sorted(found.items()))  # frontal before lateral

    def image_of(self, corpus: Corpus, row: int) -> int | None:
        """The row in the pixel store of the study's image: the first of the wanted views."""
        if self.hparams["each_view"]:
            return next(iter(self.views_of(corpus, row).values()), None)
        views = self.hparams["views"]
        return next(
            (number for number, view in corpus.image_rows(row) if not views or view in views), None
        )

    def pixels(
        self, corpus: Corpus, row: int, random: np.random.Generator | None = None
    ) -> torch.Tensor:
        """float32 [1,H,W] in [-1, 1]; augmented where a training draws it with `random`."""
        raw = np.asarray(corpus.pixels(row))
        if random is not None and self.hparams["augment"]:
            raw = self._augment(raw, random)
        return to_float(raw)[None]

    def _augment(self, raw: np.ndarray, random: np.random.Generator) -> np.ndarray:
        if self._augmentation is None:
            import albumentations as A

            self._augmentation = A.Compose(
                [
                    A.Affine(
                        scale=(0.95, 1.08), translate_percent=(-0.04, 0.04), rotate=(-4, 4), p=0.8
                    ),
                    A.RandomBrightnessContrast(brightness_limit=0.08, contrast_limit=0.12, p=0.8),
                ]
            )
        self._augmentation.set_random_seed(int(random.integers(2**31)))
        return self._augmentation(image=raw)["image"]

    # Loaders.

    def _datasets(self, split: str) -> list[StudyDataset]:
        datasets = [StudyDataset(self, number, split) for number in range(len(self.opened))]
        for dataset in datasets:
            if not dataset.rows:
                h = self.hparams
                raise UserError(
                    f"corpus {dataset.corpus.path}: no {split} study has what is needed (batch_kind "
                    f"{h['batch_kind']}, sections "
                    f"{h['sections']}, views {h['views']}): found "
                    f"{dataset.left or 'none of that split'}; look at its studies.parquet and "
                    f"rejects.csv"
                )
        return datasets

    def _rank(self) -> tuple[int, int]:
        trainer = self.trainer
        return (trainer.global_rank, trainer.world_size) if trainer is not None else (0, 1)

    def _seed(self) -> int:
        given = self.hparams["seed"]
        return int(os.environ.get("PL_GLOBAL_SEED", 0)) if given is None else given

    def texts(self, split: str) -> list[str]:
        """All texts of a split, in order."""
        return [
            text
            for c in self.opened
            for row in c.rows(split)
            if (text := self.text_of(c.text(row)))
        ]

    def train_dataloader(self) -> ResumableLoader:
        datasets = self._datasets("train")
        sizes = [len(dataset) for dataset in datasets]
        weights = self.hparams["weights"] or sizes
        rank, world = self._rank()
        if sum(sizes) // world < self.hparams["batch_size"]:
            raise UserError(
                f"data.batch_size {self.hparams['batch_size']}: {sum(sizes)} training studies over "
                f"{world} process"
                f"{'es' * (world > 1)} do not fill one batch; take a smaller batch_size"
            )
        return ResumableLoader(
            SeededConcatDataset(datasets),
            batch_size=self.hparams["batch_size"],
            sampler=WeightedSourceSampler(sizes, weights, self._seed(), rank, world),
            num_workers=self.hparams["num_workers"],
            collate_fn=collate,
            drop_last=True,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=self.hparams["num_workers"] > 0,
            generator=torch.Generator().manual_seed(
                self._seed()
            ),  # its own: the global one is the model's
        )

    def _evaluation(self, split: str) -> list[DataLoader]:
        rank, world = self._rank()
        return [
            DataLoader(
                dataset,
                batch_size=self.hparams["eval_batch_size"],
                sampler=UnpaddedDistributedSampler(len(dataset), rank, world),
                num_workers=self.hparams["num_workers"],
                collate_fn=collate,
                pin_memory=torch.cuda.is_available(),
                generator=torch.Generator().manual_seed(0),
            )
            for dataset in self._datasets(split)
        ]

    def val_dataloader(self) -> list[DataLoader]:
        loaders, world = self._evaluation("val"), self._rank()[1]
        for name, loader in zip(self.names, loaders):
            if 0 < (count := len(loader.dataset)) < world:  # type: ignore[arg-type]
                raise UserError(
                    f"{name}: {count} validation stud{'y' if count == 1 else 'ies'} for {world} "
                    f"processes, which wait for one "
                    "another's figures: expected one each. Raise limit_val, or prepare more of "
                    "them for validation"
                )
        return loaders

    def test_dataloader(self) -> list[DataLoader]:
        return self._evaluation("test")

    def predict_dataloader(self) -> list[DataLoader]:
        return self._evaluation("test")


def sample_key(name: str) -> int:
    """A stable number for a study's name, for noise that does not depend on the batch."""
    return zlib.crc32(name.encode())
