"""One LightningDataModule for all modules: images, pairs, instructions or plain text."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from lightning import LightningDataModule
from torch.utils.data import DataLoader

from mavilt_pl.data.collate import plain_collate
from mavilt_pl.data.corpus import Corpus
from mavilt_pl.data.dataset import BatchKind, ItemOptions, SeededConcatDataset, StudyDataset
from mavilt_pl.data.records import View
from mavilt_pl.data.samplers import (
    ResumableLoader,
    UnpaddedDistributedSampler,
    WeightedSourceSampler,
)
from mavilt_pl.data.token_cache import TokenCache
from mavilt_pl.errors import UserError
from mavilt_pl.ranges import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    Probability,
    Seed,
    Size,
    Workers,
    check_value,
)


class Collate(Protocol):
    """Makes a batch of the items of a split."""

    def __call__(self, items: Sequence[dict[str, Any]], split: str) -> dict[str, Any]:
        """Items → batch."""
        ...


def _ignore_interrupt(_: int) -> None:
    """Let a loader's worker live on at Ctrl-C: the training saves first, and then ends it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class CXRDataModule(LightningDataModule):
    """Prepared corpora as batches.

    A batch is a dict:

    - `pixels` float32 [B,1,H,W] in [-1, 1], or `codes` int64 [B,N];
    - `labels` float32 [B,F]: 1 present, 0 absent, nan otherwise;
    - `text` and `patient`: lists of B strings;
    - `studies`: B dicts (study, hidden_name, source, text, label_names, questions; in training
      `rng_seed`, the seed of what the model drops at random);
    - with `each_view`, `views`: B dicts of codes by view, frontal first, and in `studies`
      `view_rows`, the rows of the images;
    - with `replay`, in training: plain texts.

    A module may set `collate_fn` in its `setup` to add more. Training mixes the corpora by weight;
    evaluation keeps them apart, one loader a corpus, in the order of `corpora`.

    Args:
        corpora: folders written by `mavilt prepare`.
        tokens: folders written by `mavilt tokenize`, one a corpus, in the same order; for pairs and
            instructions.
        batch_kind: images | pairs | instructions | text. Pairs and texts need studies with a text;
            instructions also take studies that only have questions. Skipped studies are counted.
        weights: how often training draws from each corpus; default: in proportion to size.
        batch_size: studies a training batch, per process.
        eval_batch_size: studies a validation or test batch, per process.
        num_workers: loader processes, per process; 0 loads in the training process.
        findings: order of the columns of `labels`; the findings that questions are made from.
        sections: findings | impression | findings+impression | whole: which part of a report is its
            text; several with | between them: the first that the study has.
        cleaning: name of a cleaning protocol of `mavilt_pl.data.report_sections`.
        views: images of these views only, e.g. [PA, AP]; default: the first image of a study.
        each_view: bring the first frontal and the first lateral image of a study, as `views`;
            `codes` are then the first of them, and a study with neither is skipped. With
            `batch_kind: images`, each of the two is an item of its own.
        replay: plain texts that are trained with the studies, so that language is kept: a
            prepared corpus (the reports of its training split) or a text file (one text a line).
        replay_share: share of the studies that bring a text along, 0 to 1.
        augment: in training, small shifts, rotations, zooms and exposures (Albumentations).
        limit_train: at most this many training studies of each corpus, the same ones each time.
        limit_val: the same for validation.
        limit_test: the same for the test.
        ask_labels: make presence questions from labels.
        blank_is_absent: in `labels`, a finding that a labelled study does not mention is absent, as
            classifiers of CheXpert's tables are trained; no question is made of it either way.
        questions_per_study: in training, at most this many questions of a study, drawn again each
            time.
        seed: of the order of training and of what is random about each study; default: the run's
            `seed_everything`.

    Raises:
        UserError: settings contradict one another, or a folder is not what it should be.
    """

    def __init__(
        self,
        corpora: list[str],
        tokens: list[str] | None = None,
        batch_kind: BatchKind = "images",
        weights: list[NonNegativeFloat] | None = None,
        batch_size: Size = 16,
        eval_batch_size: Size = 32,
        num_workers: Workers = 0,
        findings: list[str] | None = None,
        sections: str = "findings",
        cleaning: str = "none",
        views: list[View] | None = None,
        each_view: bool = False,
        replay: str | None = None,
        replay_share: Probability = 0.25,
        augment: bool = False,
        limit_train: PositiveInt | None = None,
        limit_val: PositiveInt | None = None,
        limit_test: PositiveInt | None = None,
        ask_labels: bool = True,
        blank_is_absent: bool = False,
        questions_per_study: NonNegativeInt | None = None,
        seed: Seed | None = None,
    ):
        super().__init__()
        self.save_hyperparameters(logger=False)
        self._check_settings()
        self.findings = tuple(findings or ())
        self.options = ItemOptions(
            batch_kind=batch_kind,
            findings=self.findings,
            sections=sections,
            cleaning=cleaning,
            views=tuple(views) if views else None,
            each_view=each_view,
            augment=augment,
            ask_labels=ask_labels,
            blank_is_absent=blank_is_absent,
            questions_per_study=questions_per_study,
            replay_share=replay_share,
        )
        self.collate_fn: Collate = plain_collate
        self.corpora: list[Corpus] = []
        self.token_caches: list[TokenCache] = []
        self.replay_texts: list[str] = []

    def _check_settings(self) -> None:
        h = self.hparams
        corpora, kind = h["corpora"], h["batch_kind"]
        uses_codes = kind in ("pairs", "instructions")
        if uses_codes and (h["tokens"] is None or len(h["tokens"]) != len(corpora)):
            raise UserError(
                f"data.batch_kind: {kind} needs one token cache a corpus in data.tokens; found "
                f"{h['tokens']} for {corpora}"
            )
        weights = h["weights"]
        if weights is not None and (len(weights) != len(corpora) or sum(weights) <= 0):
            raise UserError(
                f"data.weights: expected one weight of 0 or more a corpus, not all 0; found "
                f"{weights} for {corpora}. Without weights (--data.weights null) corpora count by "
                "their size"
            )
        check_value(Probability, h["replay_share"], "data.replay_share")
        if h["replay"] is not None and not uses_codes:
            raise UserError(
                f"data.replay: batches of {kind} take no plain texts; it is for pairs and "
                "instructions"
            )

    @property
    def names(self) -> list[str]:
        """Names of the corpora, in the order of the evaluation loaders."""
        return [corpus.name for corpus in self.corpora]

    def training_data(self) -> list[dict[str, Any]]:
        """Name, framing, studies and images of what each corpus trains, for a checkpoint."""
        described = []
        for corpus in self.corpora:
            kept = corpus.facts["splits"].get("train", {})
            counts = {unit: found["kept"] for unit, found in kept.items()}
            described.append({"name": corpus.name, "fit": corpus.fit, **counts})
        return described

    def setup(self, stage: str) -> None:
        """Open the corpora and their token caches, once in each process."""
        # Lightning calls `setup` again before a test in the same process.
        if self.corpora:
            return
        self.corpora = [Corpus(path) for path in self.hparams["corpora"]]
        if self.hparams["replay"] and stage == "fit":
            self.replay_texts = self._read_replay(Path(self.hparams["replay"]))
        if self.hparams["tokens"] and self.options.batch_kind in ("pairs", "instructions"):
            for path, corpus in zip(self.hparams["tokens"], self.corpora):
                # With the corpus's fingerprint: codes of another corpus would belong to other
                # images.
                self.token_caches.append(TokenCache(path, corpus.fingerprint))
            # One language model can learn the codes of one tokenizer only.
            for cache in self.token_caches[1:]:
                self.token_caches[0].same_tokenizer(cache)

    def _read_replay(self, path: Path) -> list[str]:
        """Plain texts of a text file, or the training reports of a corpus."""
        if path.is_file():
            try:
                lines = path.read_text(encoding="utf-8").splitlines()
            except UnicodeDecodeError as error:
                raise UserError(
                    f"data.replay: {path} is not UTF-8 text ({error.reason} at byte "
                    f"{error.start}); convert it"
                ) from None
            texts = [line.strip() for line in lines]
        else:
            corpus = Corpus(path)
            # The training split only: texts of the test must not be replayed.
            texts = [self.options.text_of(corpus.text(row)) for row in corpus.rows("train")]
        texts = [text for text in texts if text]
        if not texts:
            raise UserError(
                f"data.replay: found no text in {path}; expected a prepared corpus with reports, "
                "or a text file with a text on each line"
            )
        return texts

    def texts(self, split: str) -> list[str]:
        """All texts of a split, in order."""
        found = []
        for corpus in self.corpora:
            for row in corpus.rows(split):
                text = self.options.text_of(corpus.text(row))
                if text:
                    found.append(text)
        return found

    # Loaders.

    def _datasets(self, split: str, only: Iterable[int] | None = None) -> list[StudyDataset]:
        datasets = []
        for number in range(len(self.corpora)) if only is None else only:
            corpus = self.corpora[number]
            tokens = self.token_caches[number] if self.token_caches else None
            dataset = StudyDataset(
                corpus,
                split,
                self.options,
                tokens,
                self.replay_texts,
                limit=self.hparams[f"limit_{split}"],
            )
            if not dataset.rows:
                options = self.options
                raise UserError(
                    f"corpus {corpus.path}: no {split} study can be used (batch_kind "
                    f"{options.batch_kind}, sections {options.sections}, views {options.views}): "
                    f"found {dataset.omitted or 'none of that split'}; look at its studies.parquet "
                    "and rejects.csv"
                )
            datasets.append(dataset)
        return datasets

    def _rank_and_world(self) -> tuple[int, int]:
        trainer = self.trainer
        return (trainer.global_rank, trainer.world_size) if trainer is not None else (0, 1)

    def _seed(self) -> int:
        given = self.hparams["seed"]
        # Lightning's seed_everything leaves its number there.
        return int(os.environ.get("PL_GLOBAL_SEED", 0)) if given is None else given

    def train_dataloader(self) -> ResumableLoader:
        """All corpora mixed by weight; its position can be saved."""
        if not self.corpora:
            raise UserError(
                "data.corpora is empty: name the corpora that `mavilt prepare` has written, e.g. "
                "--data.corpora [corpora/mimic]"
            )
        datasets = self._datasets("train")
        sizes = [len(dataset) for dataset in datasets]
        rank, world = self._rank_and_world()
        batch_size, workers = self.hparams["batch_size"], self.hparams["num_workers"]
        # Lightning would stop without a step and without an error.
        if sum(sizes) // world < batch_size:
            processes = "1 process" if world == 1 else f"{world} processes"
            raise UserError(
                f"data.batch_size {batch_size}: {sum(sizes)} training studies over {processes} do "
                "not fill one batch; take a smaller batch_size"
            )
        weights = self.hparams["weights"] or sizes
        return ResumableLoader(
            SeededConcatDataset(datasets),
            batch_size=batch_size,
            sampler=WeightedSourceSampler(sizes, weights, self._seed(), rank, world),
            num_workers=workers,
            worker_init_fn=_ignore_interrupt,
            collate_fn=partial(self.collate_fn, split="train"),
            # All ranks must make the same number of steps, and batches of one size keep compiled
            # graphs.
            drop_last=True,
            pin_memory=torch.cuda.is_available(),
            # Workers map the corpora; starting them again in every epoch would cost seconds.
            persistent_workers=workers > 0,
            # A generator of its own: the global one is the model's.
            generator=torch.Generator().manual_seed(self._seed()),
        )

    def evaluation_loaders(self, split: str, only: Iterable[int] | None = None) -> list[DataLoader]:
        """A loader for each corpus, or for those of these numbers, in their order."""
        rank, world = self._rank_and_world()
        loaders: list[DataLoader] = []
        for dataset in self._datasets(split, only):
            loader: DataLoader = DataLoader(
                dataset,
                batch_size=self.hparams["eval_batch_size"],
                sampler=UnpaddedDistributedSampler(len(dataset), rank, world),
                num_workers=self.hparams["num_workers"],
                worker_init_fn=_ignore_interrupt,
                collate_fn=partial(self.collate_fn, split=split),
                pin_memory=torch.cuda.is_available(),
                # A DataLoader draws a base seed for its workers, from the global generator unless
                # it is given one: then training after a validation would draw other numbers.
                generator=torch.Generator().manual_seed(0),
            )
            loaders.append(loader)
        return loaders

    def val_dataloader(self) -> list[DataLoader]:
        """A loader for each corpus, in their order."""
        loaders, world = self.evaluation_loaders("val"), self._rank_and_world()[1]
        for name, loader in zip(self.names, loaders):
            count = len(loader.dataset)  # type: ignore[arg-type]
            # Modules average over ranks what each logs, so a rank without a study of its own would
            # count another's twice.
            if 0 < count < world:
                raise UserError(
                    f"{name}: {count} validation studies for {world} processes, which wait for one "
                    "another's metrics: expected one each. Raise limit_val, or prepare more "
                    "studies for validation"
                )
        return loaders

    def test_dataloader(self) -> list[DataLoader]:
        """A loader for each corpus, in their order."""
        return self.evaluation_loaders("test")

    predict_dataloader = test_dataloader
